"""Which samples of which sets become the splits of a new shard set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.codec import decode_meta, encode_meta
from shards.dataset import ShardDataset
from shards.errors import FormatError, SettingsError
from shards.manifest import Manifest, load_manifest
from shards.scale import Scale
from shards.store import Place, Store, open_store
from shards.tar import MEMBER_SUFFIXES

Format = Literal["webdataset", "zarr"]


@dataclass(frozen=True)
class OpenSet:
    """A shard set whose manifest has been read."""

    store: Store
    manifest: Manifest

    @classmethod
    def at(cls, place: Place) -> OpenSet:
        """Open a folder or URL; raises UserError, FormatError."""
        store = open_store(place)
        return cls(store, load_manifest(store))

    def split(self, name: str, scale: str) -> ShardDataset:
        """One of its splits at one of its scales."""
        return ShardDataset(self.store, self.manifest, name, Scale.parse(scale))

    def keys(self, split: str) -> list[str]:
        """The keys of a split, in order; they are the same at each scale."""
        return self.split(split, self.manifest.scales[0]).keys()


@dataclass(frozen=True)
class Part:
    """Samples of one split of one set, in the order in which they are stored anew.

    Args:
        source: the set.
        split: its split.
        indices: int64 [n], which samples.
        prefix: put before their keys.
    """

    source: OpenSet
    split: str
    indices: npt.NDArray[np.int64]
    prefix: str = ""

    def keys(self) -> list[str]:
        """The new keys."""
        keys = self.source.keys(self.split)
        return [self.prefix + keys[i] for i in self.indices]

    def members(self, scale: str) -> Iterator[dict[str, bytes]]:
        """suffix -> bytes of each sample at one scale, in the order in which a tar holds them; raises FormatError."""
        dataset = self.source.split(self.split, scale)
        dataset.ahead(self.indices)
        for i in self.indices:
            found = dataset.members(int(i))
            members = {suffix: found[suffix] for suffix in MEMBER_SUFFIXES if suffix in found}
            if self.prefix:
                where = f"{dataset.where(int(i))} [json]"
                meta = decode_meta(members.get("json", b""), where)
                if "key" not in meta:
                    raise FormatError(where, "metadata names no key; build or copy the set again")
                members["json"] = encode_meta({**meta, "key": f"{self.prefix}{meta['key']}"})
            yield members


@dataclass(frozen=True)
class SplitPlan:
    """A split of the new set.

    Args:
        name, labelled: as the manifest has them.
        parts: its samples.
        groups: by scale, how many samples each shard holds; {}: shards are cut by their size.
    """

    name: str
    labelled: bool
    parts: tuple[Part, ...]
    groups: dict[str, list[int]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many."""
        return sum(len(part.indices) for part in self.parts)

    def keys(self) -> list[str]:
        """All keys; raises SettingsError where one comes twice."""
        keys = [key for part in self.parts for key in part.keys()]  # noqa: SIM118  # not a dict
        twice = [key for key, count in Counter(keys).items() if count > 1] if len(set(keys)) < len(keys) else []
        if twice:
            prefixed = any(part.prefix for part in self.parts)
            remedy = (
                "the sets have one name, so --prefix cannot tell them apart; choose other samples of one of them with "
                "seg-shards subset --keys"
                if prefixed
                else "give --prefix to put each set's name before its keys"
            )
            raise SettingsError(
                f"split {self.name!r} would hold the key {twice[0]!r} twice ({len(twice)} such keys): {remedy}"
            )
        return keys


@dataclass(frozen=True)
class SetPlan:
    """A new set.

    Args:
        manifest: what it says, but for format, scales, splits, files and digest.
        format: how it is stored.
        scales: which scales, largest first.
        splits: its splits.
        limit: most bytes of a shard, where shards are cut by size.
        settings: how it was made; goes into the manifest.
    """

    manifest: Manifest
    format: Format
    scales: list[str]
    splits: Sequence[SplitPlan]
    settings: dict[str, Any]
    limit: int

    @property
    def steps(self) -> int:
        """Samples over all scales, for progress."""
        return sum(split.samples for split in self.splits) * len(self.scales)


def every_sample(source: OpenSet, split: str) -> Part:
    """A whole split."""
    return Part(source, split, np.arange(source.manifest.splits[split].samples, dtype=np.int64))


def origin(source: OpenSet) -> dict[str, str]:
    """What the manifest of a new set says of one that it is made of."""
    return {"dataset": source.manifest.dataset, "digest": source.manifest.digest}
