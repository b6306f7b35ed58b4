"""Evaluation at full source resolution: what a run's network makes of every image of a split.

    seg-eval --run runs/demo --shards data/demo --split val --json scores.json

Scores compare the prediction at the source's size with the hard label of scale 1. The network is shown the source
image, or the image at `input_scale`: the stored one where there is one, else made with the shard set's own filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

import shards
from shards.classes import ClassTable
from shards.errors import FormatError
from shards.manifest import Manifest, load_manifest
from train.distributed import World
from train.inference import Views, as_label, covered, predict
from train.metrics_split import SplitMetrics
from train.sources import check_classes, check_scales, check_split

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
Watcher = Callable[["Example", U16], None]


@dataclass(frozen=True)
class Example:
    """One sample to be scored.

    Args:
        key: its key.
        shown: uint8 [h, w, 3], what the network is shown.
        image: uint8 [H, W, 3], the source image.
        hard: uint16 [H, W], its label.
        instances: uint16 [H, W], where stored.
    """

    key: str
    shown: U8
    image: U8
    hard: U16
    instances: U16 | None


@dataclass(frozen=True)
class Split:
    """A labelled split of a shard set, ready to be scored.

    Args:
        path: the shard set's folder.
        manifest: its manifest.
        name: the split's name.
        input_scale: the scale that the network is shown.
    """

    path: Path
    manifest: Manifest
    name: str
    input_scale: str

    @property
    def classes(self) -> ClassTable:
        """The class table."""
        return self.manifest.class_table

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.manifest.splits[self.name].samples

    def examples(self, indices: range) -> Iterator[Example]:
        """The samples at `indices`; the next one is decoded while one is scored."""
        full = shards.open(self.path, split=self.name, scale="1")
        stored = self.input_scale in self.manifest.splits[self.name].scales
        small = shards.open(self.path, split=self.name, scale=self.input_scale) if stored else None
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for index in indices:
                now = ahead or pool.submit(self._example, full, small, index)
                following = index + indices.step
                ahead = pool.submit(self._example, full, small, following) if following in indices else None
                yield now.result()

    def _example(self, full: shards.ShardDataset, small: shards.ShardDataset | None, index: int) -> Example:
        sample = full[index]
        if sample.hard is None:
            raise FormatError(self.path, f"sample {sample.key} of split {self.name} has no label; build it again")
        if self.input_scale == "1":
            shown = sample.image
        elif small is not None:
            shown = small[index].image
        else:
            shown = shards.resize_image(sample.image, self.input_scale, self.manifest.filter)
        return Example(sample.key, shown, sample.image, sample.hard, sample.instances)


def open_for_scoring(path: Path, split: str, input_scale: str, classes: ClassTable, whose: str) -> Split:
    """A split to be scored by a network that knows `classes`.

    Raises:
        UserError: no shard set, no such split, no labels, scale 1 not stored, other classes than the network's, or an
            input scale that is none or that the filter cannot make.
        FormatError: its manifest is broken.
    """
    manifest = load_manifest(path)
    check_classes(whose, classes, path, manifest.class_table)
    check_split(path, manifest, split)
    check_scales(path, manifest, split, ["1"])
    scale = shards.Scale.parse(input_scale)
    scale.size(1, 1, manifest.filter)  # refuses what the filter cannot make
    return Split(path, manifest, split, str(scale))


def evaluate(
    model: nn.Module,
    split: Split,
    views: Views,
    world: World,
    limit: int | None = None,
    watch: Watcher | None = None,
) -> tuple[dict[str, Any], int]:
    """Score every image of a split; ranks share the work.

    Args:
        model: on the world's device; set to evaluation mode here.
        split: the samples.
        views: scales and flip.
        world: this process among all.
        limit: score the first so many samples only.
        watch: called with every example of this rank and its prediction.

    Returns:
        The scores as plain values, and the number of samples.
    """
    model.eval()
    metrics = SplitMetrics(split.classes, split.manifest.protocol, world.device)
    total = split.samples if limit is None else min(split.samples, limit)
    for example in split.examples(range(world.rank, total, world.size)):
        h, w = example.hard.shape
        extent = covered((h, w), split.input_scale, split.manifest.filter)
        prediction = predict(model, example.shown, (h, w), views, world.device, extent)
        metrics.update(prediction, example.hard, example.instances)
        if watch is not None:
            watch(example, as_label(prediction))
    for table in metrics.tables():
        table.copy_(world.sum_counts(table))
    return metrics.to_dict(), total
