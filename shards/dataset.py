"""Open a shard set and read samples at random, by index or key, without torch.

>>> ds = shards.open("data/camvid", split="train", scale="1/2")
>>> ds[0].image.shape, ds["0001TP_006690"].soft.topk(2)
>>> ds.sample(0, without=("instances",))                    # None there: nothing is decoded that nobody looks at
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from shards.classes import ClassTable
from shards.codec.sample import Part, Sample, decode_sample, weak_labels
from shards.errors import FormatError, SettingsError, UserError
from shards.manifest import Manifest, load_manifest
from shards.scale import Scale
from shards.store import Place, Store, open_store
from shards.tarset import TarReader
from shards.zarrset import ZarrReader

if TYPE_CHECKING:
    from shards.cache import CacheSettings
    from shards.manifest import File

Indices = Sequence[int] | npt.NDArray[np.int64]
__all__ = ["Sample", "ShardDataset", "decode_sample", "open_split", "weak_labels"]


class Reader(Protocol):
    """Access to the stored bytes of one split at one scale."""

    def keys(self) -> list[str]: ...
    def members(self, i: int) -> dict[str, bytes]: ...
    def files(self, indices: Indices) -> Iterator[tuple[int, File]]: ...
    def where(self, i: int) -> str: ...


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
        self._label = ("seg.png" if self.scale == "1" else "soft.npz") if manifest.splits[split].labelled else None
        self._reader: Reader
        if part.store:
            self._reader = ZarrReader(self.store, part, self._count)
        else:
            self._reader = TarReader(self.store, part)
        self._positions: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | str) -> Sample:
        """Sample by index (negative from the end) or key; raises IndexError, UserError (unknown key), FormatError."""
        return self.sample(index)

    def sample(self, index: int | str, without: tuple[Part, ...] = ()) -> Sample:
        """As ``self[index]``, but what is named in ``without`` is not decoded and None: hard, soft, instances."""
        i = self.position(index)
        members, where = self._reader.members(i), self._reader.where(i)
        if self._label and self._label not in members:
            raise FormatError(where, "no label found in a labelled split; build or copy the set again", self._label)
        return decode_sample(members, len(self.classes), where, without)

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

    def where(self, i: int) -> str:
        """What messages call sample i: the file that holds it, and its key; raises FormatError."""
        return self._reader.where(i)

    @property
    def stored(self) -> int:
        """Bytes of its files."""
        part = self.manifest.splits[self.split].scales[self.scale]
        return sum(file.bytes for file in part.files) + sum(shard.bytes + shard.index.bytes for shard in part.shards)

    def ahead(self, indices: Indices) -> None:
        """These samples will be read next, in this order: their files are fetched in the background, where that pays.

        Returns at once and raises nothing; what is asked for anew takes the place of what was asked for before.
        """
        announce([self], indices)

    def files(self, indices: Indices) -> Iterator[tuple[int, File]]:
        """The files of these samples, each once, with the place in `indices` that needs it first; raises nothing."""
        return self._reader.files(indices)


def check_room(datasets: Sequence[ShardDataset], run: int | None, remedy: str) -> None:
    """SettingsError where sets at URLs are larger than their cache and read in runs of samples from all over them.

    Args:
        datasets: all that are read side by side.
        run: as in `epoch_order`.
        remedy: how a person asks for whole shards.
    """
    sizes = [(dataset.stored, room) for dataset in datasets if (room := dataset.store.room) is not None]
    total = sum(stored for stored, _ in sizes)
    if run is None or not sizes or total <= min(room for _, room in sizes):
        return
    names = ", ".join(dict.fromkeys(dataset.folder for dataset in datasets if dataset.store.room is not None))
    most = min(room for _, room in sizes)
    raise SettingsError(
        f"{names}: {total / 1e9:.3g} GB found, to be read in runs of {run} samples from anywhere, and a cache of "
        f"{most / 1e9:.3g} GB; expected all to fit, since each shard would be fetched again and again: give {remedy} "
        f"to read shard by shard, or a larger cache, such as SEGSHARDS_CACHE_GB={total * 1.1 / 1e9:.3g}"
    )


def announce(datasets: Sequence[ShardDataset], indices: Indices) -> None:
    """As `ShardDataset.ahead`, for several scales of one split that are read side by side from one store."""
    merged = heapq.merge(*(dataset.files(indices) for dataset in datasets), key=itemgetter(0))
    datasets[0].store.ahead(file for _, file in merged)


def open_split(
    place: Place | Store,
    split: str,
    scale: str | Scale = "1",
    cache: CacheSettings | Place | None = None,
    check: bool = True,
) -> ShardDataset:
    """Open one split of a shard set at one scale (exported as ``shards.open``).

    Args:
        place: folder or URL of the shard set: https://, s3://, gs:// and whatever else fsspec knows.
        split, scale: of those that it holds.
        cache: for a URL, the folder that keeps what was fetched, or its settings; None: as the environment says
            (SEGSHARDS_CACHE, SEGSHARDS_CACHE_GB).
        check: let no flipped bit pass for data: each sample's checksum is compared when it is read; what has none
            (Zarr, sets of before) is hashed whole when a process first reads of it, remote files as they arrive.

    Raises:
        UserError: no shard set there, or no such split or scale in it; says what there is.
        FormatError: a damaged or foreign manifest.
    """
    store = open_store(place, cache, check)
    manifest = load_manifest(store)
    wanted = Scale.parse(scale)
    if split not in manifest.splits:
        raise UserError(f"split {split!r} not found in {store.name}; it holds {_listed(manifest.splits)}")
    if str(wanted) not in manifest.splits[split].scales:
        raise UserError(
            f"scale {wanted} not found in {store.name}; it holds {', '.join(manifest.scales)}: add it to --scales"
        )
    return ShardDataset(store, manifest, split, wanted)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
