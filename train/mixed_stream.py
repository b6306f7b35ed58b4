"""The samples of a mixture by their position in the run: each source has an order, epochs and augmentation of its own.

Position p of the run lies in part p // n, n = loop.batch / mixture.parts samples a part. The part's source
(train/mixture.py) gives the next n samples of its own endless order, in which a small source repeats as often as it
must. So a sample is still a pure function of (digests, seed, position), found without looking at any before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

import shards
from train.augment import GREY, augment
from train.batch import NOWHERE, Item, Targets, planar
from train.config import Recipe
from train.mixture import of_source, turns
from train.sources import MixedSources, Sources
from train.stream import Positioned, Stream

Lookup = npt.NDArray[np.uint16]


class MixedStream(Positioned):
    """The samples of all sources of a mixture.

    Args:
        sources: the open sources.
        recipe: with the mixture.
        fill: the colour of padding, 0..255.

    Raises:
        SettingsError: a crop that data.target_stride does not divide.
    """

    def __init__(self, sources: MixedSources, recipe: Recipe, fill: tuple[int, int, int] = GREY) -> None:
        assert recipe.mixture is not None
        self.sources, self.recipe, self.turns = sources, recipe, turns(recipe.mixture)
        self.parts, self.part = recipe.mixture.parts, recipe.loop.batch // recipe.mixture.parts
        self.streams = tuple(
            _STREAMS[source.labels](opened, of_source(recipe, index), sources.space.lookup(opened.classes))
            for index, (source, opened) in enumerate(zip(recipe.mixture.sources, sources.each, strict=True))
        )
        self.fill = fill

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour of padding."""
        return self.streams[0].fill

    @fill.setter
    def fill(self, colour: tuple[int, int, int]) -> None:
        for stream in self.streams:
            stream.fill = colour

    def place(self, position: int) -> tuple[int, int]:
        """(source, position in its own order) of the sample at `position`."""
        part, offset = divmod(position, self.part)
        source = self.turns.of(part)
        return source, int(self.turns.before(part)[source]) * self.part + offset

    def item(self, position: int) -> Item:
        """The augmented sample at `position`, its classes those of the run; raises SegshardsError as `Stream.item`."""
        source, own = self.place(position)
        return replace(self.streams[source].item(own), source=source)

    @property
    def reach(self) -> int:
        """The samples of the shards that are mixed with each other, in the source with the smallest of them."""
        return min(stream.reach for stream in self.streams)

    def ahead(self, positions: Sequence[int]) -> None:
        """The samples at these positions will be asked for next, in this order."""
        places = [self.place(position) for position in positions]
        for source, stream in enumerate(self.streams):
            stream.ahead([own for chosen, own in places if chosen == source])

    @property
    def epoch_steps(self) -> Fraction:
        """Steps in an epoch of the first source."""
        share = Fraction(self.turns.quotas[0], sum(self.turns.quotas))
        return len(self.streams[0]) / (share * self.recipe.loop.batch)

    def passes(self, step: int) -> dict[str, Any]:
        """What the log says of the epochs that `step` steps make: of the first source, and of each by its name."""
        seen = self.turns.before(step * self.parts) * self.part
        epochs = {
            name: int(samples) / len(stream)
            for name, samples, stream in zip(self.sources.names, seen, self.streams, strict=True)
        }
        return {"epoch": next(iter(epochs.values())), "epochs": epochs}


class PixelStream(Stream):
    """The samples of a source with pixel labels; `lookup` uint16 [classes] gives the run's class of each of its own."""

    def __init__(self, sources: Sources, recipe: Recipe, lookup: Lookup) -> None:
        super().__init__(sources, recipe)
        self.lookup = lookup

    def item(self, position: int) -> Item:
        """As `Stream.item`, with the run's classes."""
        item = super().item(position)
        return replace(item, targets=_renamed(item.targets, self.lookup))


class ImageStream(Stream):
    """The samples of a source of which only the classes in each image are known; `lookup` as in `PixelStream`."""

    def __init__(self, sources: Sources, recipe: Recipe, lookup: Lookup) -> None:
        super().__init__(sources, recipe)
        self.lookup = lookup

    def check(self) -> None:
        """Nothing: these images have no cells."""

    def item(self, position: int) -> Item:
        """The augmented image at `position` and the classes of the whole image; raises FormatError."""
        rng, index = self.generator(position), self.index(position)
        sample = self.sources.sample(index, self.scale(rng))
        image = sample.image
        if self.recipe.data.mode == "rescale":
            image = shards.resize_image_to(image, self.size(image.shape, rng), self.recipe.augment.filter)
        blank = shards.SoftLabel.from_hard(np.full(image.shape[:2], shards.IGNORE, np.uint16))
        image, _ = augment(image, blank, self.recipe.augment, rng, self.fill)
        tags = np.sort(self.lookup[self.sources.tags(index, sample)]).astype(np.int64)
        return Item(sample.key, planar(image), NOWHERE, tags=tags)


_STREAMS: dict[str, type[PixelStream] | type[ImageStream]] = {"pixel": PixelStream, "image": ImageStream}


def _renamed(targets: Targets, lookup: Lookup) -> Targets:
    """Targets with other class ids; void and empty slots stay."""
    base = np.full_like(targets.base, shards.IGNORE)
    known = targets.base != shards.IGNORE
    base[known] = lookup[targets.base[known]]
    ids = np.where(targets.weights > 0, lookup[targets.ids], 0).astype(np.int32)
    return replace(targets, base=base, ids=ids)


def make_stream(sources: Sources | MixedSources, recipe: Recipe) -> Stream | MixedStream:
    """The samples of a run."""
    return MixedStream(sources, recipe) if isinstance(sources, MixedSources) else Stream(sources, recipe)
