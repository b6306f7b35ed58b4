"""The plan of a build: which samples of which splits, listed once and in a fixed order, before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prep.build.settings import Settings
from prep.places import place_name, place_size
from prep.raw import FilePart, RawSample, Reader
from shards.errors import LayoutError, SettingsError

CHUNK = 4  # samples that travel to a worker and back together: few, so that memory stays flat


@dataclass(frozen=True)
class SplitPlan:
    """One split: its samples in order."""

    name: str
    samples: tuple[RawSample, ...]

    @property
    def labelled(self) -> bool:
        """Whether any sample has a label; a split without any stores images alone."""
        return any(sample.label is not None for sample in self.samples)


@dataclass(frozen=True)
class Chunk:
    """A few consecutive samples of one split; `index` counts chunks over the whole build, `last` ends a split."""

    index: int
    split: str
    samples: tuple[RawSample, ...]
    last: bool


@dataclass(frozen=True)
class Plan:
    """What a build will do."""

    reader: Reader
    settings: Settings
    splits: tuple[SplitPlan, ...]
    listing: str  # sha256 over keys, paths and file sizes
    source_bytes: int

    @property
    def samples(self) -> int:
        return sum(len(split.samples) for split in self.splits)

    @property
    def identity(self) -> dict[str, object]:
        """The settings that decide the build's bytes, as JSON values."""
        return self.settings.to_dict(tuple(split.name for split in self.splits), self.listing)

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """All chunks from number `start` on, in order."""
        index = 0
        for split in self.splits:
            for first in range(0, len(split.samples), CHUNK):
                if index >= start:
                    end = first + CHUNK
                    yield Chunk(index, split.name, split.samples[first:end], end >= len(split.samples))
                index += 1

    @property
    def chunk_count(self) -> int:
        return sum(-(-len(split.samples) // CHUNK) for split in self.splits)


def make_plan(reader: Reader, settings: Settings) -> Plan:
    """List the samples of a dataset.

    Raises:
        LayoutError: the root is not there or lacks what the layout needs.
        SettingsError: a split that is not there.
    """
    root = settings.root
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise LayoutError(f"{root} {found}: expected the folder of {reader.title}; point --root at it")
    splits = tuple(_plan_split(reader, settings, name) for name in _choose_splits(reader, settings))
    listing, source_bytes = _digest_listing(root, splits)
    return Plan(reader, settings, splits, listing, source_bytes)


def _choose_splits(reader: Reader, settings: Settings) -> tuple[str, ...]:
    present = reader.splits(settings.root)
    for name in settings.splits:
        if name not in present:
            raise SettingsError(
                f"split '{name}' not found under {settings.root}: {reader.name} has {', '.join(present)} there; "
                "choose among these with --split"
            )
    return tuple(name for name in present if not settings.splits or name in settings.splits)


def _plan_split(reader: Reader, settings: Settings, name: str) -> SplitPlan:
    samples: list[RawSample] = []
    seen: dict[str, RawSample] = {}
    for sample in reader.samples(settings.root, name):
        if settings.limit is not None and len(samples) >= settings.limit:
            break
        first = seen.setdefault(sample.key, sample)
        if first is not sample and sample.problem is None:
            where = place_name(first.image, settings.root)
            sample = replace(sample, problem=f"duplicate key '{sample.key}': {where} has it already")
        samples.append(sample)
    if not samples:
        raise LayoutError(
            f"split '{name}' under {settings.root} holds no samples: expected some; choose another --split"
        )
    return SplitPlan(name, tuple(samples))


def _digest_listing(root: Path, splits: tuple[SplitPlan, ...]) -> tuple[str, int]:
    """sha256 over every key, path and file size, and the sum of the sizes."""
    digest, total = hashlib.sha256(), 0
    for split in splits:
        for sample in split.samples:
            digest.update(f"{split.name}\0{sample.key}\0{sample.problem or ''}".encode())
            for place in (sample.image, sample.label, sample.instances):
                size = place_size(place) if isinstance(place, Path | FilePart) else -1
                total += max(size, 0)
                digest.update(f"\0{place_name(place, root) if place else ''}\0{size}".encode())
            digest.update(b"\n")
    return digest.hexdigest(), total
