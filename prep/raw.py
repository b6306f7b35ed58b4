"""What a raw dataset looks like to the pipeline: samples as files on disk, and the reader that knows the layout.

A reader is one short file in `prep/datasets/`. It lists samples and decodes labels; it opens no image and knows
nothing of scales, shards or processes. Everything downstream sees class indices 0..C-1 and IGNORE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.classes import ClassTable

UInt16 = NDArray[np.uint16]

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_/-]")


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies on disk. Nothing is opened yet; files that are listed but absent are found later.

    Attributes:
        key: unique within the split; letters, digits, `_`, `-` and `/`, no dot (see `clean_key`).
        image: the colour image.
        label: the label file, or None where the split has no labels.
        instances: the instance map, or None.
        weak: class indices that the image is known to show, or None.
        meta: small JSON values that are stored with the sample.
        problem: a reason, known to the reader already, why this sample cannot be used; it goes to quarantine.
    """

    key: str
    image: Path
    label: Path | None = None
    instances: Path | None = None
    weak: tuple[int, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Reader(Protocol):
    """Knows one dataset's files and ids. Instances are stateless, cheap to build and picklable."""

    @property
    def name(self) -> str:
        """The command-line name, e.g. "cityscapes"."""

    @property
    def title(self) -> str:
        """The dataset's full name for people."""

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
    def protocol(self) -> Mapping[str, Any]:
        """Facts that evaluation needs and that go into the manifest; {} where there are none."""

    def splits(self, root: Path) -> tuple[str, ...]:
        """Splits present under `root`, in the dataset's usual order. Raises LayoutError where there is none."""

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        """Samples of a split in a fixed order. Raises LayoutError: what was found, what expected, what to do."""

    def decode_label(self, data: bytes, where: str) -> UInt16:
        """Label file -> class indices uint16 [H, W], void = IGNORE.

        Args:
            data: the file's bytes.
            where: names the sample in errors and ends in the file's name ("camvid 0016E5_00390: trainannot/x.png").

        Raises:
            SampleError: not a label file of this dataset; names the unknown id or colour.
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


def clean_key(text: str) -> str:
    """A file stem as a shard key: every character that keys may not hold becomes `_` (dots would split members)."""
    return _NOT_IN_KEYS.sub("_", text)
