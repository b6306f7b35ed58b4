"""The order of samples: shard sets become an endless, resumable stream of them; train/feed.py makes its batches.

The stream is a sequence of positions 0, 1, 2, ...; which sample stands at a position, and how it is augmented, are
pure functions of (manifest digests, seed, position). Step s of a global batch of G samples takes the positions s * G
to (s + 1) * G - 1, rank r of W the r-th part of them. So a run may stop after any step and go on with the next
sample, at any number of workers and ranks, and an epoch holds every sample once: the next one follows on without a
short batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

import shards
from shards.errors import SegshardsError, SettingsError
from shards.order import generator
from train import lvis
from train.augment import GREY, augment
from train.batch import Item, planar, targets_of
from train.config import Recipe
from train.sources import Sources

U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Failure:
    """An error on its way from a data worker to the loop, which raises it there."""

    error: SegshardsError


class Positioned(Dataset[Item | Failure], ABC):
    """Samples by their position in the order of a run."""

    recipe: Recipe

    def __getitem__(self, position: int) -> Item | Failure:
        try:
            return self.item(position)
        except SegshardsError as error:
            return Failure(error)

    def __getitems__(self, positions: Sequence[int]) -> list[Item | Failure]:
        """The samples of a batch, up to the first that fails: what follows may each take as long to fail, as where a
        server does not answer. torch's data workers ask for batches like this."""
        made: list[Item | Failure] = []
        for position in positions:
            made.append(self[position])
            if isinstance(made[-1], Failure):
                break
        return made

    @abstractmethod
    def item(self, position: int) -> Item:
        """The augmented sample at `position`; raises SegshardsError. Safe in several threads."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """How many positions in a row lie near each other in the shards, about."""

    @abstractmethod
    def ahead(self, positions: Sequence[int]) -> None:
        """The samples at these positions will be asked for next, in this order."""


class Stream(Positioned):
    """The samples of some shard sets by their position in the order of the run.

    Args:
        sources: the open shard sets.
        recipe: which scales, labels, augmentation and seed.
        fill: the colour of padding, 0..255.

    Raises:
        SettingsError: loss.lvis_negatives with another class table; a crop that data.target_stride does not divide.
    """

    def __init__(self, sources: Sources, recipe: Recipe, fill: tuple[int, int, int] = GREY) -> None:
        self.sources, self.recipe, self.fill = sources, recipe, fill
        self.check()
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def check(self) -> None:
        """Raise SettingsError where the recipe asks for what these samples cannot give."""
        if self.recipe.loss.lvis_negatives:
            lvis.check_table(len(self.sources.classes))
        check_stride(self.recipe)

    def __len__(self) -> int:
        """Samples in an epoch; positions go on beyond."""
        return len(self.sources)

    def index(self, position: int) -> int:
        """The sample, counted over all sources, that stands at `position`."""
        epoch, place = divmod(position, len(self))
        orders = self._orders  # other threads may put another dict in its place, and change none
        if epoch not in orders:
            near = {key: order for key, order in orders.items() if abs(key - epoch) < 2}
            data, seed = self.recipe.data, self.recipe.loop.seed
            orders = {**near, epoch: self.sources.order(seed, epoch, data.window, data.run)}
            self._orders = orders
        return int(orders[epoch][place])

    @property
    def reach(self) -> int:
        """The samples of the shards that are mixed with each other."""
        return max(1, round(self.recipe.data.window * self.sources.per_shard))

    def ahead(self, positions: Sequence[int]) -> None:
        """The samples at these positions will be asked for next, in this order."""
        self.sources.ahead([self.index(position) for position in positions])

    def generator(self, position: int) -> np.random.Generator:
        """The randomness of the sample at `position`: a pure function of (seed, epoch, place in the epoch)."""
        return generator("augment", self.recipe.loop.seed, *divmod(position, len(self)))

    def item(self, position: int) -> Item:
        """The augmented sample at `position`.

        Raises:
            SegshardsError: a shard is broken, or a sample has no label.
        """
        rng, index, data = self.generator(position), self.index(position), self.recipe.data
        if data.mode == "rescale":
            key, image, soft = self._rescaled(index, rng)
        else:
            key, image, soft = self._stored(index, rng)
        image, soft = augment(image, soft, self.recipe.augment, rng, self.fill)
        soft = soft.reduce(data.target_stride) if data.target_stride > 1 else soft
        targets = targets_of(soft, self.recipe.loss.void, data.max_classes_per_cell)
        return Item(key, planar(image), targets, self._allowed(index))

    def _allowed(self, index: int) -> npt.NDArray[np.bool_] | None:
        """Which classes are candidates on the sample at `index`, bool [C]; None: all."""
        if not self.recipe.loss.lvis_negatives:
            return None
        return lvis.candidates(self.sources.meta(index), len(self.sources.classes))

    def _stored(self, index: int, rng: np.random.Generator) -> tuple[str, Any, shards.SoftLabel]:
        """Image and label as stored at one of the recipe's scales."""
        data, scale = self.recipe.data, self.scale(rng)
        if scale == "1":
            key, image, hard = self.sources.labelled(index)
            return key, image, shards.SoftLabel.from_hard(hard)
        sample = self.sources.sample(index, scale)
        if sample.soft is None:
            raise SettingsError(f"sample {sample.key} has no label: train on a labelled split (data.split)")
        if data.labels == "soft":
            return sample.key, sample.image, sample.soft
        if data.labels == "hardened":
            return sample.key, sample.image, shards.SoftLabel.from_hard(sample.soft.harden())
        factor = self.sources.box_factor(index, scale)
        picked = nearest(self.sources.hard(index), sample.soft.shape, data.labels == "nearest-corner", factor)
        return sample.key, sample.image, shards.SoftLabel.from_hard(picked)

    def _rescaled(self, index: int, rng: np.random.Generator) -> tuple[str, Any, shards.SoftLabel]:
        """The source image and label resized together at a random scale, uniform in its logarithm."""
        filter, labels = self.recipe.augment.filter, self.recipe.data.labels
        if self.recipe.data.scaled_decode:
            key, image, hard, size = self.sources.reduced(index, lambda shape: self.size(shape, rng))
        else:
            key, image, hard = self.sources.labelled(index)
            size = self.size(hard.shape, rng)
        image = shards.resize_image_to(image, size, filter)
        if labels in ("nearest", "nearest-corner"):
            return key, image, shards.SoftLabel.from_hard(nearest(hard, size, labels == "nearest-corner"))
        soft = shards.soften_to(hard, size, filter)
        return key, image, shards.SoftLabel.from_hard(soft.harden()) if labels == "hardened" else soft

    def scale(self, rng: np.random.Generator) -> str:
        """One of the recipe's scales."""
        scales = self.recipe.data.scales
        return scales[int(rng.integers(len(scales)))]

    def size(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
        """What an image of `shape` (H, W, ...) is resized to, (h, w)."""
        assert self.recipe.augment.rescale is not None  # the recipe's own check
        low, high = (math.log(limit) for limit in self.recipe.augment.rescale)
        ratio = math.exp(float(rng.uniform(low, high)))
        return max(1, math.floor(shape[0] * ratio + 0.5)), max(1, math.floor(shape[1] * ratio + 0.5))

    @property
    def epoch_steps(self) -> Fraction:
        """Steps in an epoch."""
        return Fraction(len(self), self.recipe.loop.batch)

    def passes(self, step: int) -> dict[str, Any]:
        """What the log says of the epochs that `step` steps make."""
        return {"epoch": step * self.recipe.loop.batch / len(self)}


def check_stride(recipe: Recipe) -> None:
    """Raise SettingsError where labels cannot be softened to one cell for data.target_stride pixels a side."""
    data, crop = recipe.data, recipe.augment.crop
    if crop is not None and any(side % data.target_stride for side in crop):
        raise SettingsError(
            f"crop = {list(crop)}: expected multiples of data.target_stride = {data.target_stride}, the size of a cell"
        )
    if data.target_stride > 16 and data.mode == "rescale" and data.labels == "soft":
        raise SettingsError(
            f'data.target_stride = {data.target_stride}: expected 16 at most with data.mode = "rescale", whose soft '
            'labels are in shares of 1/255 already; or set data.labels = "nearest"'
        )


def nearest(hard: U16, size: tuple[int, int], corner: bool = False, factor: int | None = None) -> U16:
    """A hard label sampled at one pixel a cell, as a nearest-neighbour resize does it.

    Args:
        hard: uint16 [H, W].
        size: (h, w) of the result.
        corner: False: the pixel at floor((i + 1/2) * k), a cell's centre (Pillow, torch "nearest-exact"); True: at
            floor(i * k) (torch "nearest", OpenCV).
        factor: k of both axes; left out, H / h and W / w, exactly.

    Returns:
        uint16 [h, w].
    """
    shift = 0 if corner else 1
    picked = []
    for cells, pixels in zip(size, hard.shape, strict=True):
        top, bottom = (factor, 1) if factor else (pixels, cells)
        index = (2 * np.arange(cells, dtype=np.int64) + shift) * top // (2 * bottom)
        picked.append(np.minimum(index, pixels - 1))
    return np.ascontiguousarray(hard[picked[0][:, None], picked[1][None, :]])
