"""Open a shard set and read samples at random, by index or key, without torch.

>>> ds = shards.open("data/camvid", split="train", scale="1/2")
>>> ds[0].image.shape, ds["0001TP_006690"].soft.topk(2)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shards.arrays import ZarrReader
from shards.classes import ClassTable
from shards.codec import decode_hard, decode_image, decode_instances, decode_meta, decode_soft
from shards.errors import FormatError, UserError
from shards.index import decode_entry, decode_index
from shards.manifest import Manifest, ScaleSet, load_manifest
from shards.scale import Scale
from shards.softlabel import U16, SoftLabel
from shards.tar import IndexEntry, read_range, read_sample


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of one scale.

    Args:
        key: unique within the split.
        image: uint8 [H, W, 3], RGB.
        hard: uint16 [H, W], void 65535; stored at scale 1 of labelled splits.
        soft: SoftLabel of H x W cells; stored at the other scales of labelled splits.
        weak: uint32 [L], classes that the image shows, where known.
        instances: uint16 [H, W], 0 none, 1..N; stored at scale 1 where the source has them.
        meta: key, split, source path, size of the source image, ...
    """

    key: str
    image: npt.NDArray[np.uint8]
    hard: U16 | None
    soft: SoftLabel | None
    weak: npt.NDArray[np.uint32] | None
    instances: U16 | None
    meta: dict[str, Any]


class Reader(Protocol):
    """Access to the stored bytes of one split at one scale."""

    def keys(self) -> list[str]: ...
    def members(self, i: int) -> dict[str, bytes]: ...


class TarReader:
    """Samples in tar shards: one pread each. An index is checked whole at first use; then four bytes a sample stay.

    Entries are read from the index file again when their sample is: a set of millions of samples takes little memory.
    """

    def __init__(self, folder: Path, part: ScaleSet) -> None:
        self._folder, self.part = folder, part
        self._ends = list(accumulate(s.samples for s in part.shards))
        self._lines: dict[int, npt.NDArray[np.uint32]] = {}  # of each index, where its lines begin, and its end

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}}

    def keys(self) -> list[str]:
        """All keys, in order."""
        return [e.key for s in range(len(self.part.shards)) for e in self.entries(s)]

    def members(self, i: int) -> dict[str, bytes]:
        """suffix -> bytes of sample i."""
        shard = bisect_right(self._ends, i)
        record = self.part.shards[shard]
        return read_sample(self._folder / record.path, self._entry(shard, i - self._ends[shard] + record.samples))

    def entries(self, shard: int) -> list[IndexEntry]:
        """The index of one shard; raises FormatError."""
        record = self.part.shards[shard]
        path = self._folder / record.index.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FormatError(path, f"cannot be read ({error.strerror}); build or copy it again") from error
        found = decode_index(data, path)
        if len(found) != record.samples:
            raise FormatError(path, f"{len(found)} samples found; the manifest has {record.samples}")
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        self._lines[shard] = np.concatenate(([0], ends + 1)).astype(np.uint32)
        return found

    def _entry(self, shard: int, number: int) -> IndexEntry:
        """One entry; the whole index is read and checked where that has not been done yet."""
        if shard not in self._lines:
            return self.entries(shard)[number]
        start, end = (int(at) for at in self._lines[shard][number : number + 2])
        path = self._folder / self.part.shards[shard].index.path
        return decode_entry(read_range(path, start, end - start), path, number + 1)


class ShardDataset:
    """One split of a shard set at one scale. Files open when first needed; it can be pickled to other processes."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, scale: Scale) -> None:
        self.folder, self.manifest, self.split, self.scale = folder, manifest, split, str(scale)
        part = manifest.splits[split].scales[self.scale]
        self.classes: ClassTable = manifest.class_table
        self.groups: list[int] = list(part.groups)
        self._count = manifest.splits[split].samples
        self._reader: Reader = ZarrReader(folder / part.store, self._count) if part.store else TarReader(folder, part)
        self._positions: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | str) -> Sample:
        """Sample by index (negative from the end) or key; raises IndexError, UserError (unknown key), FormatError."""
        i = self.position(index)
        return decode_sample(self.members(i), len(self.classes), f"{self.folder}/{self.split}/{self.scale} sample {i}")

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def keys(self) -> list[str]:
        """All keys, in stored order."""
        return self._reader.keys()

    def position(self, index: int | str) -> int:
        """The index of a key, or a checked index."""
        if isinstance(index, str):
            if self._positions is None:
                self._positions = {key: i for i, key in enumerate(self.keys())}
            if index not in self._positions:
                raise UserError(
                    f"key {index!r} not found in {self.folder} split {self.split}; seg-shards ls lists keys"
                )
            return self._positions[index]
        i = int(index) + (self._count if index < 0 else 0)
        if not 0 <= i < self._count:
            raise IndexError(f"sample {index} of {self._count}")
        return i

    def members(self, i: int) -> dict[str, bytes]:
        """suffix -> stored bytes of sample i."""
        return self._reader.members(i)

    def ahead(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Hear which samples will be read next, in order; files on this machine need no preparation."""


def open_split(path: str | Path, split: str, scale: str | Scale = "1") -> ShardDataset:
    """Open one split of a shard set at one scale (exported as ``shards.open``).

    Raises:
        UserError: no shard set there, or no such split or scale in it; says what there is.
        FormatError: a damaged or foreign manifest.
    """
    folder = Path(path)
    manifest = load_manifest(folder)
    wanted = Scale.parse(scale)
    if split not in manifest.splits:
        raise UserError(f"split {split!r} not found in {folder}; it holds {_listed(manifest.splits)}")
    if str(wanted) not in manifest.splits[split].scales:
        raise UserError(
            f"scale {wanted} not found in {folder}; it holds {', '.join(manifest.scales)}: add it to --scales"
        )
    return ShardDataset(folder, manifest, split, wanted)


def decode_sample(members: Mapping[str, bytes], num_classes: int, where: str) -> Sample:
    """A Sample from its stored members; raises FormatError naming the member."""
    image = next((s for s in ("jpg", "png", "webp") if s in members), None)
    if image is None or "json" not in members:
        raise FormatError(where, f"members {', '.join(members) or 'none'} found; expected an image and json")
    meta = decode_meta(members["json"], f"{where} [json]")
    hard = decode_hard(members["seg.png"], num_classes, f"{where} [seg.png]") if "seg.png" in members else None
    soft = decode_soft(members["soft.npz"], f"{where} [soft.npz]") if "soft.npz" in members else None
    instances = decode_instances(members["inst.png"], f"{where} [inst.png]") if "inst.png" in members else None
    pixels = decode_image(members[image], f"{where} [{image}]")
    sample = Sample(
        str(meta.get("key", "")), pixels, hard, soft, weak_labels(meta, num_classes, where), instances, meta
    )
    if soft is not None and soft.largest_id >= num_classes:
        raise FormatError(where, f"class id {soft.largest_id} found; expected ids below {num_classes}", "soft.npz")
    for name, part in (("seg.png", hard), ("soft.npz", soft), ("inst.png", instances)):
        if part is not None and part.shape != pixels.shape[:2]:
            raise FormatError(where, f"{part.shape} found for an image of {pixels.shape[:2]}", name)
    return sample


def weak_labels(meta: dict[str, Any], num_classes: int, where: str) -> npt.NDArray[np.uint32] | None:
    """The image-level label uint32 [L] in a sample's metadata, None where it has none; raises FormatError."""
    ids = meta.get("weak")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < num_classes for i in ids):
        raise FormatError(where, f"weak labels are not class ids below {num_classes}", "json")
    return np.array(ids, np.uint32)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
