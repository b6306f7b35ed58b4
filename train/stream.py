"""The order of samples: shard sets become an endless, resumable stream of batches.

The stream is a sequence of positions 0, 1, 2, ...; which sample stands at a position, and how it is augmented, are
pure functions of (manifest digests, seed, position). Step s of a global batch of G samples takes the positions s * G
to (s + 1) * G - 1, rank r of W the r-th part of them. So a run may stop after any step and go on with the next
sample, at any number of workers and ranks, and an epoch holds every sample once: the next one follows on without a
short batch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from types import FrameType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import shards
from shards.errors import SegshardsError, SettingsError
from shards.order import generator
from train import lvis
from train.augment import GREY, augment
from train.batch import Batch, Item, collate, planar, targets_of
from train.config import Recipe
from train.distributed import World
from train.sources import Sources

U16 = npt.NDArray[np.uint16]
GRACE_SECONDS = 60  # what a data worker that was told to end gets for it


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

    @abstractmethod
    def item(self, position: int) -> Item:
        """The augmented sample at `position`; raises SegshardsError."""


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
        if epoch not in self._orders:
            self._orders = {key: self._orders[key] for key in self._orders if abs(key - epoch) < 2}
            self._orders[epoch] = self.sources.order(self.recipe.loop.seed, epoch)
        return int(self._orders[epoch][place])

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


class Positions(Sampler[list[int]]):
    """The positions of this rank's micro-batches, from step `start` on: `accumulate` lists a step.

    Raises:
        SettingsError: the global batch does not divide by ranks and accumulation.
    """

    def __init__(self, recipe: Recipe, world: World, start: int = 0) -> None:
        loop = recipe.loop
        self.batch, self.parts, self.rank, self.start = loop.batch, loop.accumulate, world.rank, start
        self.steps = loop.steps
        if loop.batch % (world.size * loop.accumulate):
            raise SettingsError(
                f"loop.batch = {loop.batch}: expected a multiple of {world.size} processes x "
                f"{loop.accumulate} (loop.accumulate)"
            )
        self.size = loop.batch // (world.size * loop.accumulate)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            first = step * self.batch + self.rank * self.size * self.parts
            for part in range(self.parts):
                yield list(range(first + part * self.size, first + (part + 1) * self.size))


@contextmanager
def batches(
    stream: Positioned, world: World, start: int = 0, positions: Sequence[list[int]] | None = None
) -> Iterator[Feed]:
    """This rank's micro-batches from step `start` to the recipe's last, or those of the given positions; data workers
    end with the context."""
    workers = min(stream.recipe.data.workers, _cores())
    leaving = multiprocessing.RawValue("b", 0)
    loader = DataLoader(
        stream,
        batch_sampler=Positions(stream.recipe, world, start) if positions is None else positions,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=world.device.type == "cuda",
        worker_init_fn=partial(_start_worker, leaving),
        generator=torch.Generator(),  # its own, so that the loader draws nothing from the run's randomness
        prefetch_factor=4 if workers else None,
    )
    feed = Feed(iter(loader))
    del loader
    try:
        yield feed
    finally:
        leaving.value = 1
        feed.close()


class Feed:
    """An iterator over batches that raises what a data worker met, and whose workers can be ended at will."""

    def __init__(self, source: Iterator[Batch | Failure]) -> None:
        self._source: Iterator[Batch | Failure] | None = source

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        if self._source is None:
            raise StopIteration
        batch = next(self._source)
        if isinstance(batch, Failure):
            raise batch.error
        return batch

    def close(self) -> None:
        """Let go of the loader, whatever else (a traceback, say) holds this object: its workers end now."""
        self._source = None


class Timed:
    """The batches of a loader, with a clock on how long the loop waited for them."""

    def __init__(self, source: Feed) -> None:
        self.source, self.waited, self.began = source, 0.0, time.perf_counter()
        self.last: Batch | None = None

    def next(self) -> Batch:
        """The next batch; an error of a data worker is raised here."""
        before = time.perf_counter()
        batch = next(self.source)
        self.waited += time.perf_counter() - before
        return batch

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, and how many of them were waiting."""
        now = time.perf_counter()
        seconds, waited = now - self.began, self.waited
        self.began, self.waited = now, 0.0
        return seconds, waited


def _collate(items: Sequence[Item | Failure]) -> Batch | Failure:
    good = []
    for item in items:
        if isinstance(item, Failure):
            return item
        good.append(item)
    try:
        return collate(good)
    except SegshardsError as error:
        return Failure(error)


def _start_worker(leaving: Any, worker: int) -> None:
    """One thread a worker. A signal to all processes of a run is the loop's to answer: it finishes its step, with data
    if need be, and ends its workers then."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    def end(number: int, frame: FrameType | None) -> None:
        if leaving.value:
            os._exit(0)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
