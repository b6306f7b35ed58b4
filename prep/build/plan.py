"""The plan of a build: which samples of which splits, in a fixed order, before anything is written.

Samples are gone through twice and never held: once here, to count them and to find duplicate keys, and once while
they are encoded. Only where keys do not rise from sample to sample are they gone through once more, and then each takes
some bytes while duplicates are looked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path

import numpy as np

from prep.build.settings import Settings
from prep.places import file_status, place_name
from prep.raw import FilePart, Place, RawSample, Reader
from shards.errors import LayoutError, SettingsError
from shards.scale import Scale

# Samples that travel to a worker and back together: few, so that memory stays flat; more in builds so large that
# their images are small or their journal would be long.
CHUNK, LARGEST_CHUNK, CHUNKS = 4, 256, 4096


@dataclass(frozen=True)
class SplitPlan:
    """One split.

    Attributes:
        samples: how many there are.
        has_labels: whether any has a pixel label in the source; then all must, or (with `--weak`) say what they show.
        labelled: whether pixel labels are stored: where there are some, but with `--weak`.
        bad: samples of which the reader, or the duplicates below, say that they cannot be used.
        duplicates: {position: why} of samples whose key has come before.
    """

    name: str
    samples: int
    has_labels: bool
    labelled: bool
    bad: int
    duplicates: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """A few consecutive samples of one split; `index` counts chunks over the whole build, `last` ends a split."""

    index: int
    split: str
    samples: tuple[RawSample, ...]
    last: bool


class _Listing:
    """What is remembered of all samples while they are gone through: sums over them.

    Attributes:
        digest: over keys, paths and file sizes.
        stamp: over the times when files were last written; of files that hold many places, once.
    """

    def __init__(self) -> None:
        self.digest, self.stamp = hashlib.sha256(), hashlib.sha256()
        self._larger = set[Path]()

    def look_at(self, place: Place) -> int:
        """Bytes of a place; when its file was written goes into the stamp."""
        if not isinstance(place, FilePart):
            size, time = file_status(place)
        elif place.path in self._larger:
            return place.length
        else:
            self._larger.add(place.path)
            size, time = place.length, file_status(place.path)[1]
        self.stamp.update(b"%d\n" % time)
        return size


@dataclass(frozen=True)
class Plan:
    """What a build will do."""

    reader: Reader
    settings: Settings
    splits: tuple[SplitPlan, ...]
    listing: str  # sha256 over keys, paths and file sizes
    stamp: str  # sha256 over the times when the files were last written; no part of the identity
    source_bytes: int

    @property
    def samples(self) -> int:
        return sum(split.samples for split in self.splits)

    @property
    def identity(self) -> dict[str, object]:
        """The settings that decide the build's bytes, as JSON values."""
        names = tuple(split.name for split in self.splits)
        return self.settings.to_dict(names, self.listing) | {
            "classes": self.reader.classes.digest,
            **({"reader": dict(self.reader.identity)} if self.reader.identity else {}),
        }

    @property
    def chunk_size(self) -> int:
        """Samples in a chunk."""
        return max(CHUNK, min(LARGEST_CHUNK, self.samples // CHUNKS))

    @property
    def chunk_count(self) -> int:
        return sum(-(-split.samples // self.chunk_size) for split in self.splits)

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """All chunks from number `start` on, in order. Raises LayoutError where the source has changed meanwhile."""
        index, size = 0, self.chunk_size
        for split in self.splits:
            count = -(-split.samples // size)
            if index + count > start:
                first = max(start - index, 0)
                samples = islice(self._samples(split), first * size, None)
                for number in range(first, count):
                    part = tuple(islice(samples, size))
                    yield Chunk(index + number, split.name, part, number == count - 1)
            index += count

    def _samples(self, split: SplitPlan) -> Iterator[RawSample]:
        count = 0
        for sample in islice(self.reader.samples(self.settings.root, split.name), split.samples):
            why = split.duplicates.get(count)
            told = sample.label is not None or (sample.weak is not None and not split.labelled)
            if split.has_labels and not told and sample.problem is None:
                why = why or "no label, while other samples of its split have one"
            yield replace(sample, problem=why) if why else sample
            count += 1
        if count != split.samples:
            raise LayoutError(
                f"split '{split.name}' under {self.settings.root} had {split.samples} samples and has {count} now: "
                "expected a source that stays as it is; run the same command again"
            )


def make_plan(reader: Reader, settings: Settings) -> Plan:
    """List the samples of a dataset.

    Raises:
        LayoutError: the root is not there or lacks what the layout needs.
        SettingsError: a split that is not there.
    """
    check_root(reader, settings.root)
    listing, total = _Listing(), 0
    splits = []
    for name in _choose_splits(reader, settings):
        split, size = _plan_split(reader, settings, name, listing)
        splits.append(split)
        total += size
    return Plan(reader, settings, tuple(splits), listing.digest.hexdigest(), listing.stamp.hexdigest(), total)


def check_root(reader: Reader, root: Path) -> None:
    """LayoutError where the root is not a folder."""
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise LayoutError(f"{root} {found}: expected the folder of {reader.title}; point --root at it")


def _choose_splits(reader: Reader, settings: Settings) -> tuple[str, ...]:
    present = reader.splits(settings.root)
    for name in settings.splits:
        if name not in present:
            raise SettingsError(
                f"split '{name}' not found under {settings.root}: {reader.name} has {', '.join(present)} there; "
                "choose among these with --split"
            )
    chosen = tuple(name for name in present if not settings.splits or name in settings.splits)
    _check_streams(chosen, settings.scales)
    return chosen


def _check_streams(splits: tuple[str, ...], scales: tuple[Scale, ...]) -> None:
    """SettingsError where two splits' shards would have one name: "train" at 1/2 and "train-1" at 2."""
    seen: dict[str, str] = {}
    for split, scale in product(splits, scales):
        what = f"split '{split}' at scale {scale}"
        first = seen.setdefault(f"{split}-{scale.folder}", what)
        if first is not what:
            raise SettingsError(
                f"{first} and {what} would have shards of one name, {split}-{scale.folder}-00000.tar: expected names "
                "that differ; rename a split, or leave it or the scale out"
            )


def _plan_split(reader: Reader, settings: Settings, name: str, listing: _Listing) -> tuple[SplitPlan, int]:
    """The split's plan and its bytes; every sample goes into the listing."""
    count, labelled, bad, total, last, rising = 0, 0, 0, 0, "", True
    for sample in islice(reader.samples(settings.root, name), settings.limit):
        count += 1
        rising = rising and last < sample.key
        last = sample.key
        labelled += sample.label is not None
        bad += sample.problem is not None
        total += _add_to_listing(listing, settings, name, sample)
    if not count:
        raise LayoutError(
            f"split '{name}' under {settings.root} holds no samples: expected some; choose another --split"
        )
    duplicates = {} if rising else _find_duplicates(reader, settings, name, count)
    stored = labelled > 0 and not settings.weak
    return SplitPlan(name, count, labelled > 0, stored, bad + len(duplicates), duplicates), total


def _find_duplicates(reader: Reader, settings: Settings, name: str, count: int) -> dict[int, str]:
    """{position: why} of usable samples whose key an earlier one of the first `count` samples has."""
    samples = islice(reader.samples(settings.root, name), count)
    keys = array("q", (hash(sample.key) for sample in samples))  # 64 bits tell all but a few apart; see below
    hashes = np.frombuffer(keys, np.int64)
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return {}
    suspects = np.flatnonzero(np.isin(hashes, repeated))
    wanted, seen, found = set(suspects.tolist()), dict[str, RawSample](), dict[int, str]()
    for position, sample in enumerate(islice(reader.samples(settings.root, name), int(suspects[-1]) + 1)):
        if position not in wanted:
            continue
        first = seen.setdefault(sample.key, sample)
        if first is not sample and sample.problem is None:
            where = place_name(first.image, settings.root)
            found[position] = f"duplicate key '{sample.key}': {where} has it already"
    return found


def _add_to_listing(listing: _Listing, settings: Settings, split: str, sample: RawSample) -> int:
    """Add key, paths, sizes and facts of a sample; returns its bytes."""
    parts, total = [f"{split}\0{sample.key}\0{sample.problem or ''}"], 0
    for place in (sample.image, sample.label, sample.instances):
        places = place if isinstance(place, tuple) else (place,) if place else ()
        for part in places:
            size = listing.look_at(part)
            total += max(size, 0)
            at = f"@{part.offset}" if isinstance(part, FilePart) else ""
            parts.append(f"{place_name(part, settings.root)}{at}\0{size}")
        parts.append("" if place is None else "end")
    if sample.facts is not None or sample.weak is not None or sample.meta:
        parts.append(repr((sample.facts, sample.weak, dict(sample.meta))))
    listing.digest.update("\0".join(parts).encode(errors="backslashreplace") + b"\n")
    return total
