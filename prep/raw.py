"""What a raw dataset looks like to the pipeline: samples as files on disk, and the reader that knows the layout.

A reader is one short file in `prep/datasets/`. It lists samples and decodes labels; it opens no image and knows
nothing of scales, shards or processes. Everything downstream sees class indices 0..C-1 and IGNORE.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from shards.classes import ClassTable
from shards.errors import SampleError

UInt16 = NDArray[np.uint16]

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_/-]")


@dataclass(frozen=True)
class FilePart:
    """A run of bytes in a file: a member of a tar, one element of a large JSON file.

    Attributes:
        path: the file.
        offset, length: bytes.
        name: what people call the part ("n01440764_18.JPEG"), or "" where the file's name says enough.
    """

    path: Path
    offset: int
    length: int
    name: str = ""


Place = Path | FilePart


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies on disk. Nothing is opened yet; files that are listed but absent are found later.

    Attributes:
        key: unique within the split; letters, digits, `_`, `-` and `/`, no dot (see `clean_key`).
        image: the colour image.
        label: where the label lies, or None where the sample has none. Several places (the annotations of one image
            in a JSON file) are read in order and joined by newlines; an empty tuple is a label of zero bytes.
        instances: the instance map, or None.
        weak: class indices that the image is known to show, ascending, or None.
        meta: small JSON values that are stored with the sample.
        facts: what the reader knows of the label already and its `decode_label` needs; small and picklable, with a
            `repr` that says all of it.
        problem: a reason, known to the reader already, why this sample cannot be used; it goes to quarantine.
    """

    key: str
    image: Place
    label: Place | tuple[FilePart, ...] | None = None
    instances: Path | None = None
    weak: tuple[int, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    facts: Any = None
    problem: str | None = None


@dataclass(frozen=True)
class DecodedLabel:
    """A decoded label and what was counted while it was decoded.

    Attributes:
        hard: class indices uint16 [H, W], void = IGNORE.
        tally: {what: how often}; summed over a split and handed to `Reader.reports` when the build is published.
    """

    hard: UInt16
    tally: Mapping[str, int] = field(default_factory=dict)


class Reader(Protocol):
    """Knows one dataset's files and ids. Cheap to build, picklable while small; `BaseReader` has what most share."""

    @property
    def name(self) -> str:
        """The command-line name, e.g. "cityscapes"."""

    @property
    def title(self) -> str:
        """The dataset's full name for people, with its class count: "Cityscapes, fine annotations, 19 classes"."""

    @property
    def layout(self) -> str:
        """The expected folders, several lines of text."""

    @property
    def source(self) -> str:
        """Where to get it."""

    @property
    def terms(self) -> str:
        """Licence or terms of use of the source."""

    @property
    def classes(self) -> ClassTable:
        """The C classes of the decoded labels."""

    @property
    def possible(self) -> tuple[str, ...]:
        """Names of classes of which this copy of the dataset holds a part, where it may hold a part."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Facts that evaluation needs and that go into the manifest; {} where there are none."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the command's options that this reader takes beyond the common ones ("aug", "overlap")."""

    @property
    def default_scales(self) -> str:
        """The scales that are stored where none are asked for."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What else decides the bytes of a build, as JSON values: the digest of a mapping file, a release's version.

        A build only continues while it stays the same; the class table and the options' values need not be in it.
        """

    def bind(self, root: Path, options: Mapping[str, str]) -> Reader:
        """The reader for what lies under `root`, with its options set; itself where neither changes anything.

        Classes that depend on the data (a classes.txt, a release's version) are settled here. Small files may be
        read; nothing is listed.

        Args:
            root: the raw dataset's folder, which exists.
            options: values by name, all among `options`; a flag that is set is "yes".

        Raises:
            SettingsError: a value that an option does not take.
            LayoutError: the root lacks what is needed to settle the classes.
        """

    def splits(self, root: Path) -> tuple[str, ...]:
        """Splits present under `root`, in the dataset's usual order. Raises LayoutError where there is none."""

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        """Samples of a split, lazily and in a fixed order: it is gone through twice, and may be millions long.

        Raises:
            LayoutError: what was found, what expected, what to do.
        """

    def decode_label(self, data: bytes, where: str, facts: Any) -> UInt16 | DecodedLabel:
        """Label file -> class indices uint16 [H, W], void = IGNORE.

        Args:
            data: the bytes of the label's place.
            where: names the sample in errors and ends in the file's name ("camvid 0016E5_00390: trainannot/x.png").
            facts: of the sample.

        Raises:
            SampleError: not a label of this dataset; names the unknown id or colour.
        """

    def decode_instances(self, data: bytes, hard: UInt16, where: str) -> UInt16:
        """Instance file -> uint16 [H, W]: 0 = none, 1..N consecutive in ascending order of the source's ids.

        Args:
            data: the file's bytes.
            hard: the decoded label uint16 [H, W]; instances on void are dropped.
            where: names the sample in errors.

        Raises:
            SampleError: not an instance file of this dataset, or not of the label's size.
        """

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        """{file name: JSON value} to publish beside the shards, from each split's summed `DecodedLabel.tally`."""


class BaseReader:
    """What most readers share; a reader overrides what is its own."""

    name = ""
    possible: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = MappingProxyType({})
    options: tuple[str, ...] = ()
    default_scales = "1,1/2,1/4,1/8"
    identity: Mapping[str, Any] = MappingProxyType({})

    def bind(self, root: Path, options: Mapping[str, str]) -> Reader:
        """Nothing to settle."""
        return cast(Reader, self)

    def decode_label(self, data: bytes, where: str, facts: Any) -> UInt16 | DecodedLabel:
        """No pixel labels."""
        raise SampleError(f"{where}: {self.name} has no label maps")

    def decode_instances(self, data: bytes, hard: UInt16, where: str) -> UInt16:
        """No instance maps."""
        raise SampleError(f"{where}: {self.name} has no instance maps")

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        """Nothing counted."""
        return {}


def clean_key(text: str) -> str:
    """A file stem as a shard key: every character that keys may not hold becomes `_` (dots would split members)."""
    return _NOT_IN_KEYS.sub("_", text)
