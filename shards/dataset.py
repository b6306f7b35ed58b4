"""Open a shard set and read samples at random, by index or key, without torch.

>>> ds = shards.open("data/camvid", split="train", scale="1/2")
>>> ds[0].image.shape, ds["0001TP_006690"].soft.topk(2)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shards.arrays import ZarrReader
from shards.classes import ClassTable
from shards.codec import decode_hard, decode_image, decode_instances, decode_meta, decode_soft
from shards.errors import FormatError, UserError
from shards.manifest import Manifest, load_manifest
from shards.scale import Scale
from shards.softlabel import U16, SoftLabel
from shards.store import Place, Store, open_store
from shards.tarset import TarReader


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
    def ahead(self, indices: Iterable[int] | npt.NDArray[np.int64]) -> None: ...


class ShardDataset:
    """One split of a shard set at one scale. Files open when first needed; it can be pickled to other processes.

    Args:
        place: the shard set: folder, URL or open store.
        manifest: its manifest.
        split, scale: of it.
    """

    def __init__(self, place: Place | Store, manifest: Manifest, split: str, scale: Scale) -> None:
        self.store = open_store(place)
        self.folder = self.store.name  # or URL
        self.manifest, self.split, self.scale = manifest, split, str(scale)
        part = manifest.splits[split].scales[self.scale]
        self.classes: ClassTable = manifest.class_table
        self.groups: list[int] = list(part.groups)
        self._count = manifest.splits[split].samples
        self._reader: Reader
        if part.store:
            self._reader = ZarrReader(Path(self.folder) / part.store, self._count)
        else:
            self._reader = TarReader(self.store, part)
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

    def ahead(self, indices: Iterable[int] | npt.NDArray[np.int64]) -> None:
        """These samples will be read next, in this order: their files are fetched in the background, where that pays.

        Returns at once and raises nothing; what is asked for anew takes the place of what was asked for before.
        """
        self._reader.ahead(indices)


def open_split(place: Place | Store, split: str, scale: str | Scale = "1") -> ShardDataset:
    """Open one split of a shard set at one scale (exported as ``shards.open``).

    Raises:
        UserError: no shard set there, or no such split or scale in it; says what there is.
        FormatError: a damaged or foreign manifest.
    """
    store = open_store(place)
    manifest = load_manifest(store)
    wanted = Scale.parse(scale)
    if split not in manifest.splits:
        raise UserError(f"split {split!r} not found in {store.name}; it holds {_listed(manifest.splits)}")
    if str(wanted) not in manifest.splits[split].scales:
        raise UserError(
            f"scale {wanted} not found in {store.name}; it holds {', '.join(manifest.scales)}: add it to --scales"
        )
    return ShardDataset(store, manifest, split, wanted)


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
