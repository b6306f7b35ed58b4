"""The shard sets that a run reads, opened together and checked against each other and the recipe.

Several sets are joined end to end; their class tables must be equal. The order of an epoch is one shuffle over the
shards of all of them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import shards
from shards.classes import ClassTable
from shards.codec import decode_hard, decode_meta
from shards.errors import FormatError, SettingsError, UserError
from shards.manifest import Manifest, load_manifest
from shards.order import epoch_order
from shards.scale import Scale
from train.config import Recipe

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Sources:
    """Open shard sets, one split of each, at the scales that a recipe needs; picklable.

    Args:
        paths: their folders.
        manifests: their manifests.
        sets: for each the open `ShardDataset` of each scale.
        split: the split.
    """

    paths: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    sets: tuple[dict[str, shards.ShardDataset], ...]
    split: str

    def __len__(self) -> int:
        """Samples of all sources together."""
        return self.starts[-1]

    @cached_property
    def starts(self) -> list[int]:
        """Where each source's samples start, and after the last one the number of all."""
        lengths = [manifest.splits[self.split].samples for manifest in self.manifests]
        return [sum(lengths[:place]) for place in range(len(lengths) + 1)]

    @cached_property
    def classes(self) -> ClassTable:
        """The class table that all of them share."""
        return self.manifests[0].class_table

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each source by its folder."""
        return {str(p): m.splits[self.split].samples for p, m in zip(self.paths, self.manifests, strict=True)}

    def describe(self) -> tuple[dict[str, str], ...]:
        """What run.json keeps of each source."""
        return tuple(
            {"path": str(path), "dataset": manifest.dataset, "digest": manifest.digest, "filter": manifest.filter}
            for path, manifest in zip(self.paths, self.manifests, strict=True)
        )

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The samples of all sources in the order of one epoch, int64 [len(self)]."""
        groups = [size for opened in self.sets for size in next(iter(opened.values())).groups]
        return epoch_order(groups, joined_digest([m.digest for m in self.manifests]), seed, epoch)

    def sample(self, index: int, scale: str) -> shards.Sample:
        """The sample at `index`, counted over all sources, at one of the opened scales."""
        source, place = self._locate(index)
        sample: shards.Sample = self.sets[source][scale][place]
        return sample

    def labelled(self, index: int) -> tuple[str, U8, U16]:
        """Key, image uint8 [H, W, 3] and hard label uint16 [H, W] at scale 1.

        Raises:
            SettingsError: the sample has no label.
        """
        sample = self.sample(index, "1")
        if sample.hard is None:
            raise SettingsError(f"sample {sample.key} has no label: train on a labelled split (data.split)")
        return sample.key, sample.image, sample.hard

    def hard(self, index: int) -> U16:
        """The hard label at scale 1, uint16 [H, W], without decoding its image."""
        source, place = self._locate(index)
        opened = self.sets[source]["1"]
        where = f"{self.paths[source]}/{self.split}/1 sample {place} [seg.png]"
        data = opened.members(place).get("seg.png")
        if data is None:
            raise FormatError(where, "no label there; build the shard set again with --fresh")
        return decode_hard(data, len(self.classes), where)

    def meta(self, index: int) -> dict[str, Any]:
        """What is stored of the sample besides image and label, without decoding those."""
        source, place = self._locate(index)
        scale, opened = next(iter(self.sets[source].items()))
        where = f"{self.paths[source]}/{self.split}/{scale} sample {place} [json]"
        data = opened.members(place).get("json")
        if data is None:
            raise FormatError(where, "no meta there; build the shard set again with --fresh")
        return decode_meta(data, where)

    def box_factor(self, index: int, scale: str) -> int | None:
        """k where the sample's shard set was made with the box filter at 1/k, else None."""
        filter = self.manifests[self._locate(index)[0]].filter
        return Scale.parse(scale).box_factor() if filter == "box" else None

    def _locate(self, index: int) -> tuple[int, int]:
        """(source, index within it)."""
        source = bisect_right(self.starts, index) - 1
        return source, index - self.starts[source]


def open_sources(paths: Sequence[Path], recipe: Recipe) -> Sources:
    """Open the shard sets that a recipe trains on.

    Raises:
        UserError: no shard set, no such split, no labels, a scale that is not stored, class tables that differ, or
            no sample at all.
        FormatError: a manifest is broken.
    """
    if not paths:
        raise UserError("no shard set given; expected --shards DIR, made by seg-prep")
    manifests = tuple(load_manifest(path) for path in paths)
    for path, manifest in zip(paths, manifests, strict=True):
        check_split(path, manifest, recipe.data.split)
        check_scales(path, manifest, recipe.data.split, needed_scales(recipe))
        check_classes(paths[0], manifests[0].class_table, path, manifest.class_table)
    split = recipe.data.split
    sets = tuple({s: shards.open(path, split=split, scale=s) for s in needed_scales(recipe)} for path in paths)
    sources = Sources(tuple(paths), manifests, sets, split)
    if not len(sources):
        raise UserError(f"split {split} of {', '.join(map(str, paths))} holds no sample; expected one at least")
    return sources


def needed_scales(recipe: Recipe) -> list[str]:
    """The stored scales that a recipe's training reads; the first one gives the order."""
    scales = [str(Scale.parse(text)) for text in recipe.data.scales]
    if recipe.data.labels in ("nearest", "nearest-corner"):
        scales.append("1")  # hard labels are stored there alone
    return list(dict.fromkeys(scales))


def check_split(path: Path, manifest: Manifest, split: str, labelled: bool = True) -> None:
    """Raise UserError unless the shard set has the split, with labels where they are needed."""
    if split not in manifest.splits:
        raise UserError(f"{path} has no split {split!r}; it holds {', '.join(manifest.splits)}: build it with seg-prep")
    if labelled and not manifest.splits[split].labelled:
        raise UserError(f"split {split!r} of {path} has no labels; expected a labelled one")


def check_scales(path: Path, manifest: Manifest, split: str, needed: Sequence[str]) -> None:
    """Raise UserError unless the split holds every needed scale."""
    stored = list(manifest.splits[split].scales)
    missing = [scale for scale in needed if scale not in stored]
    if missing:
        wanted = ",".join(dict.fromkeys([*stored, *missing]))
        raise UserError(
            f"{path} holds scales {', '.join(stored)} and not {', '.join(missing)}: "
            f"build it with seg-prep {manifest.dataset} ... --scales {wanted} --fresh"
        )


def check_classes(path: Path | str, first: ClassTable, other_path: Path | str, other: ClassTable) -> None:
    """Raise UserError, naming the first difference, unless both class tables are equal."""
    if first.digest == other.digest:
        return
    if len(first) != len(other):
        found = f"{len(first)} and {len(other)} classes"
    else:
        found = next(
            f"class {index} is {a!r} and {b!r}"
            for name in ("names", "colours", "wnids", "categories", "things")
            for index, (a, b) in enumerate(zip(getattr(first, name), getattr(other, name), strict=True))
            if a != b
        )
    raise UserError(f"class tables of {path} and {other_path} differ: {found}; expected equal ones")


def joined_digest(digests: Sequence[str]) -> str:
    """One digest for several; that of one source is its own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
