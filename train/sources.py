"""The shard sets that a run reads, opened together and checked against each other and the recipe.

Several sets are joined end to end; their class tables must be equal. The order of an epoch is one shuffle over the
shards of all of them. The sources of a mixture are opened each like this, and have a label space in common.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import shards
from shards.classes import ClassTable
from shards.codec import decode_hard, decode_meta
from shards.codec.scaled import FACTORS, decode_image_scaled
from shards.dataset import announce, check_room
from shards.errors import FormatError, SettingsError, UserError
from shards.manifest import Manifest, load_manifest
from shards.order import RUN, WINDOW, epoch_order
from shards.scale import Scale
from shards.store import Place, open_store
from train.config import Recipe
from train.label_space import Given, LabelSpace, unite
from train.mixture import named_paths, of_source

Labels = Literal["pixel", "image"]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
Size = tuple[int, int]  # height, width
WHOLE_SHARDS = "--set data.run=none --set data.window=4"


@dataclass(frozen=True)
class Sources:
    """Open shard sets, one split of each, at the scales that a recipe needs; picklable.

    Args:
        paths: their folders or URLs.
        manifests: their manifests.
        sets: for each the open `ShardDataset` of each scale.
        split: the split.
    """

    paths: tuple[Place, ...]
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

    @property
    def datasets(self) -> list[shards.ShardDataset]:
        """All that is open, of each source at each scale."""
        return [dataset for opened in self.sets for dataset in opened.values()]

    @cached_property
    def classes(self) -> ClassTable:
        """The class table that all of them share."""
        return self.manifests[0].class_table

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each source by its folder."""
        return {str(p): m.splits[self.split].samples for p, m in zip(self.paths, self.manifests, strict=True)}

    @property
    def scored(self) -> Place:
        """The shard set whose split "val" is scored in training."""
        return self.paths[0]

    @property
    def space(self) -> None:
        """The label space of a mixture: none here."""
        return None

    def largest(self, recipe: Recipe) -> tuple[int, int]:
        """(height, width) of the first sample where it is largest, before any crop."""
        height, width = self.sample(0, recipe.data.scales[0]).image.shape[:2]
        most = recipe.augment.rescale[1] if recipe.augment.rescale else 1.0
        return max(1, round(height * most)), max(1, round(width * most))

    def describe(self) -> tuple[dict[str, str], ...]:
        """What run.json keeps of each source."""
        return tuple(
            {"path": str(path), "dataset": manifest.dataset, "digest": manifest.digest, "filter": manifest.filter}
            for path, manifest in zip(self.paths, self.manifests, strict=True)
        )

    @property
    def groups(self) -> list[int]:
        """Samples in each shard, of all sources."""
        return [size for opened in self.sets for size in next(iter(opened.values())).groups]

    @property
    def per_shard(self) -> float:
        """Samples in a shard on average."""
        return len(self) / max(1, len(self.groups))

    def order(self, seed: int, epoch: int, window: int = WINDOW, run: int | None = RUN) -> npt.NDArray[np.int64]:
        """The samples of all sources in the order of one epoch, int64 [len(self)]; `window` and `run` as in
        `epoch_order`."""
        return epoch_order(self.groups, joined_digest([m.digest for m in self.manifests]), seed, epoch, window, run)

    def ahead(self, indices: Sequence[int]) -> None:
        """Samples, counted over all sources, that will be read next, in this order."""
        places = [self._locate(index) for index in indices]
        for source, opened in enumerate(self.sets):
            own = [place for chosen, place in places if chosen == source]
            if own:
                announce(list(opened.values()), own)  # at once: what is asked for anew replaces what was before

    def sample(self, index: int, scale: str) -> shards.Sample:
        """The sample at `index`, counted over all sources, at one of the opened scales; without its instances."""
        source, place = self._locate(index)
        sample: shards.Sample = self.sets[source][scale].sample(place, without=("instances",))
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

    def reduced(self, index: int, wanted: Callable[[tuple[int, ...]], Size]) -> tuple[str, U8, U16, Size]:
        """As `labelled`, with a size (h, w) that follows from the label's shape; a JPEG is decoded at the smallest of
        its scales 1, 1/2, 1/4, 1/8 that is no smaller.

        Raises:
            FormatError: a member is broken, or the image has another size than the label.
        """
        source, place = self._locate(index)
        opened = self.sets[source]["1"]
        members, where = opened.members(place), opened.where(place)
        hard = self._decoded_hard(members, where)
        size, suffix = wanted(hard.shape), next((s for s in ("jpg", "png", "webp") if s in members), "jpg")
        image = decode_image_scaled(members.get(suffix, b""), size, f"{where} [{suffix}]")
        shapes = [tuple(-(-side // factor) for side in hard.shape) for factor in (1, *FACTORS)]
        if image.shape[:2] not in shapes:
            raise FormatError(where, f"an image of {image.shape[:2]} found for a label of {hard.shape}", suffix)
        return str(decode_meta(members.get("json", b""), f"{where} [json]").get("key", "")), image, hard, size

    def hard(self, index: int) -> U16:
        """The hard label at scale 1, uint16 [H, W], without decoding its image."""
        source, place = self._locate(index)
        opened = self.sets[source]["1"]
        return self._decoded_hard(opened.members(place), opened.where(place))

    def _decoded_hard(self, members: Mapping[str, bytes], where: str) -> U16:
        """The hard label among a sample's members."""
        data = members.get("seg.png")
        if data is None:
            raise FormatError(f"{where} [seg.png]", "no label there; build the shard set again with --fresh")
        return decode_hard(data, len(self.classes), f"{where} [seg.png]")

    def tags(self, index: int, sample: shards.Sample) -> npt.NDArray[np.int64]:
        """The classes that an image shows, by what is stored of it: int64 [t], rising.

        Those it is tagged with, else those of its label: at scale 1 where that is opened, else at the sample's scale.
        """
        if sample.weak is not None:
            return np.unique(sample.weak).astype(np.int64)
        source, _ = self._locate(index)
        if sample.hard is not None:
            shown = np.bincount(sample.hard.ravel())
        elif sample.soft is not None and "1" in self.sets[source]:
            shown = np.bincount(self.hard(index).ravel())
        elif sample.soft is not None:
            shown = np.bincount(np.concatenate([sample.soft.base.ravel(), sample.soft.ids]))
        else:
            return np.zeros(0, np.int64)
        return np.flatnonzero(shown[: shards.IGNORE])

    def meta(self, index: int) -> dict[str, Any]:
        """What is stored of the sample besides image and label, without decoding those."""
        source, place = self._locate(index)
        opened = next(iter(self.sets[source].values()))
        where, data = f"{opened.where(place)} [json]", opened.members(place).get("json")
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


@dataclass(frozen=True)
class MixedSources:
    """The sources of a mixture, open.

    Args:
        names: of the sources, in the recipe's order.
        each: their shard sets.
        labels: of what kind theirs are.
        space: the classes of all of them.
    """

    names: tuple[str, ...]
    each: tuple[Sources, ...]
    labels: tuple[Labels, ...]
    space: LabelSpace

    @property
    def scored(self) -> Place:
        """The shard set whose split "val" is scored in training: of those with labels for it, the one with the most
        novel classes, the first of several.

        Raises:
            UserError: none has labels for it.
        """
        found = [one for source in self.each for one in zip(source.paths, source.manifests, strict=True)]
        labelled = [(path, m) for path, m in found if "val" in m.splits and m.splits["val"].labelled]
        if not labelled:
            raise UserError("no shard set of the mixture has a split 'val' with pixel labels")
        novel = {name for name, base in zip(self.classes.names, self.space.base, strict=True) if not base}
        return max(labelled, key=lambda one: len(novel.intersection(one[1].class_table.names)))[0]

    @property
    def classes(self) -> ClassTable:
        """The class table of the run."""
        return self.space.classes

    def __len__(self) -> int:
        """Samples of all sources together."""
        return sum(map(len, self.each))

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each source by its name."""
        return {name: len(source) for name, source in zip(self.names, self.each, strict=True)}

    def largest(self, recipe: Recipe) -> tuple[int, int]:
        """(height, width) of the largest samples that a source gives, by its crop or its first sample."""
        own = [of_source(recipe, index) for index in range(len(self.each))]
        pairs = zip(own, self.each, strict=True)
        return max((one.augment.crop or source.largest(one) for one, source in pairs), key=math.prod)

    def describe(self) -> tuple[dict[str, str], ...]:
        """What run.json keeps of each shard set."""
        pairs = zip(self.names, self.each, strict=True)
        return tuple({**kept, "source": name} for name, source in pairs for kept in source.describe())


def open_all(words: Sequence[str], recipe: Recipe) -> Sources | MixedSources:
    """Open what `--shards` names: DIR, or NAME=DIR for a recipe with a mixture.

    Raises:
        UserError, SettingsError: as `open_sources`, `named_paths` and `unite`.
        FormatError: a manifest is broken.
    """
    if not words:
        raise UserError("no shard set given; expected --shards DIR, made by seg-prep")
    paths = named_paths(words, recipe)
    if recipe.mixture is None:
        return open_sources(paths[""], recipe)
    each = tuple(
        open_sources(paths[source.name], of_source(recipe, index), source.labels)
        for index, source in enumerate(recipe.mixture.sources)
    )
    given = [
        Given(str(opened.paths[0]), opened.classes, source.labels == "pixel", source.known)
        for source, opened in zip(recipe.mixture.sources, each, strict=True)
    ]
    check_room([dataset for opened in each for dataset in opened.datasets], recipe.data.run, WHOLE_SHARDS)
    return MixedSources(tuple(paths), each, tuple(source.labels for source in recipe.mixture.sources), unite(given))


def open_sources(paths: Sequence[Place], recipe: Recipe, labels: Labels = "pixel") -> Sources:
    """Open the shard sets that a recipe trains on, or those of one source of a mixture.

    Raises:
        UserError: no shard set, no such split, no labels, a scale that is not stored, class tables that differ, or
            no sample at all.
        SettingsError: sets at URLs that are larger than their cache, in runs of samples from all over them.
        FormatError: a manifest is broken.
    """
    if not paths:
        raise UserError("no shard set given; expected --shards DIR, made by seg-prep")
    stores = [open_store(path, check=recipe.data.check) for path in paths]
    manifests = tuple(load_manifest(store) for store in stores)
    for path, manifest in zip(paths, manifests, strict=True):
        check_split(path, manifest, recipe.data.split, labels == "pixel")
        check_scales(path, manifest, recipe.data.split, needed_scales(recipe, labels))
        check_classes(paths[0], manifests[0].class_table, path, manifest.class_table)
    split = recipe.data.split
    sets = tuple(
        {
            s: shards.ShardDataset(store, manifest, split, Scale.parse(s))
            for s in _opened_scales(recipe, manifest, labels)
        }
        for store, manifest in zip(stores, manifests, strict=True)
    )
    sources = Sources(tuple(paths), manifests, sets, split)
    if not len(sources):
        raise UserError(f"split {split} of {', '.join(map(str, paths))} holds no sample; expected one at least")
    check_room(sources.datasets, recipe.data.run, WHOLE_SHARDS)
    if labels == "image":
        _check_tags(sources)
    return sources


def _opened_scales(recipe: Recipe, manifest: Manifest, labels: Labels) -> list[str]:
    """The scales to open of a shard set: those that are needed, and scale 1 where image labels are best read there."""
    split = manifest.splits[recipe.data.split]
    more = ["1"] if labels == "image" and split.labelled and "1" in split.scales else []
    return list(dict.fromkeys([*needed_scales(recipe, labels), *more]))


def _check_tags(sources: Sources) -> None:
    """Raise UserError where a shard set has neither pixel labels nor, by its first sample, image-level ones."""
    for path, manifest, first in zip(sources.paths, sources.manifests, sources.starts, strict=False):
        split = manifest.splits[sources.split]
        if split.samples and not split.labelled and "weak" not in sources.meta(first):
            raise UserError(
                f"split {sources.split!r} of {path} has neither image-level labels nor pixel labels; expected either "
                'for a source with labels = "image"'
            )


def needed_scales(recipe: Recipe, labels: Labels = "pixel") -> list[str]:
    """The stored scales that a recipe's training reads; the first one gives the order."""
    scales = [str(Scale.parse(text)) for text in recipe.data.scales]
    if labels == "pixel" and recipe.data.labels in ("nearest", "nearest-corner"):
        scales.append("1")  # hard labels are stored there alone
    return list(dict.fromkeys(scales))


def check_split(path: Place, manifest: Manifest, split: str, labelled: bool = True) -> None:
    """Raise UserError unless the shard set has the split, with labels where they are needed."""
    if split not in manifest.splits:
        raise UserError(f"{path} has no split {split!r}; it holds {', '.join(manifest.splits)}: build it with seg-prep")
    if labelled and not manifest.splits[split].labelled:
        raise UserError(f"split {split!r} of {path} has no labels; expected a labelled one")


def check_scales(path: Place, manifest: Manifest, split: str, needed: Sequence[str]) -> None:
    """Raise UserError unless the split holds every needed scale."""
    stored = list(manifest.splits[split].scales)
    missing = [scale for scale in needed if scale not in stored]
    if missing:
        wanted = ",".join(dict.fromkeys([*stored, *missing]))
        raise UserError(
            f"{path} holds scales {', '.join(stored)} and not {', '.join(missing)}: "
            f"build it with seg-prep {manifest.dataset} ... --scales {wanted} --fresh"
        )


def check_classes(path: Place, first: ClassTable, other_path: Place, other: ClassTable) -> None:
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
