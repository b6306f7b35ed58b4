"""Evaluation at full source resolution: what a run's network makes of every image of a split.

    seg-eval --run runs/demo --shards data/demo --split val --json scores.json

Scores compare the prediction at the source's size with the hard label of scale 1. The network is shown the source
image, or the image at `input_scale`: the stored one where there is one, else made with the shard set's own filter.

A shard set may have other classes than the run (train/class_match.py): an answer then counts as the shard set's class
of that name, and one that the shard set does not have is wrong wherever it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import shards
from shards.classes import ClassTable
from shards.errors import FormatError
from shards.manifest import Manifest, load_manifest
from shards.store import Place, Store, open_store
from train.checkpoint import norms_of
from train.class_match import Answers, Bools, Rule, match
from train.distributed import World
from train.inference import Views, as_label, covered, predict
from train.metrics_split import SplitMetrics
from train.run import Run
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
        path: the shard set's folder or URL.
        store: where its files are read from.
        manifest: its manifest, read once: a set that is published anew meanwhile is not mixed with it.
        name: the split's name.
        input_scale: the scale that the network is shown.
        answers: how a run with other classes answers; None: its classes are the shard set's.
        base: bool [C], the classes that the run has seen with pixel labels, for scores by group; None: not known.
    """

    path: Place
    store: Store
    manifest: Manifest
    name: str
    input_scale: str
    answers: Answers | None = None
    base: Bools | None = None

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
        full = self.dataset("1")
        stored = self.input_scale in self.manifest.splits[self.name].scales
        small = self.dataset(self.input_scale) if stored else None
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for index in indices:
                now = ahead or pool.submit(self._example, full, small, index)
                following = index + indices.step
                ahead = pool.submit(self._example, full, small, following) if following in indices else None
                yield now.result()

    def dataset(self, scale: str) -> shards.ShardDataset:
        """The samples at a stored scale."""
        return shards.ShardDataset(self.store, self.manifest, self.name, shards.Scale.parse(scale))

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


def open_for_scoring(
    path: Place,
    split: str,
    input_scale: str,
    classes: ClassTable,
    whose: str,
    rule: Rule | None = None,
    base: Bools | None = None,
    check: bool = True,
) -> Split:
    """A split to be scored by a network that knows `classes`.

    Args:
        path: the shard set.
        split: the split's name.
        input_scale: the scale that the network is shown.
        classes: the network's, R of them.
        whose: the network in messages.
        rule: how classes are matched where the shard set has others; None: they must be equal.
        base: bool [R], the network's classes that were annotated with pixels, where the run tells them apart.
        check: as in `shards.open`.

    Raises:
        UserError: no shard set, no such split, no labels, scale 1 not stored, other classes than the network's that
            the rule does not allow, or an input scale that is none or that the filter cannot make.
        FormatError: its manifest is broken.
    """
    opened = replace(open_split(path, split, input_scale, check), base=base)
    if rule is None:
        check_classes(whose, classes, path, opened.classes)
    if rule is None or (classes.digest == opened.classes.digest and rule == Rule()):
        return opened
    answers = match(classes, opened.classes, rule, whose, path)
    return replace(opened, answers=answers, base=None if base is None else answers.of_run(base, len(opened.classes)))


def open_split(path: Place, split: str, input_scale: str, check: bool = True) -> Split:
    """A labelled split, whatever its classes; arguments and errors as of `open_for_scoring`."""
    store = open_store(path, check=check)
    manifest = load_manifest(store)
    check_split(path, manifest, split)
    check_scales(path, manifest, split, ["1"])
    scale = shards.Scale.parse(input_scale)
    scale.size(1, 1, manifest.filter)  # refuses what the filter cannot make
    return Split(path, store, manifest, split, str(scale))


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
        watch: called with every example of this rank and its prediction, in the shard set's classes: void where the
            answer is none of them. Pixels that are not scored are void in the example's label.

    Returns:
        The scores as plain values, and the number of samples.
    """
    model.eval()
    outside = split.answers is not None
    metrics = SplitMetrics(split.classes, split.manifest.protocol, world.device, outside, split.base)
    answer = Answering(model, split, views, world.device)
    total = split.samples if limit is None else min(split.samples, limit)
    for example in split.examples(range(world.rank, total, world.size)):
        prediction, scored = answer(example)
        metrics.update(prediction, scored.hard, scored.instances)
        if watch is not None:
            watch(scored, as_label(prediction.masked_fill(prediction == len(split.classes), shards.IGNORE)))
    for table in metrics.tables():
        table.copy_(world.sum_counts(table))
    return metrics.to_dict(), total


class Answering:
    """A network's answers on the samples of a split, in the shard set's classes.

    Args:
        model: in evaluation mode, on `device`.
        split: the split.
        views: scales and flip.
        device: where to compute.
    """

    def __init__(self, model: nn.Module, split: Split, views: Views, device: torch.device) -> None:
        self.model, self.split, self.views, self.device = model, split, views, device
        answers = split.answers
        self._allowed = None if answers is None else answers.allowed
        self._place: Tensor | None = None  # the shard set's class of each answer
        if answers is not None:
            place = answers.place if answers.allowed is None else answers.place[answers.allowed]
            self._place = torch.from_numpy(place).to(device)
        self._kept = np.arange(shards.IGNORE + 1, dtype=np.uint16)  # labels as they are scored
        if answers is not None:
            self._kept[answers.left_out] = shards.IGNORE

    def __call__(self, example: Example) -> tuple[Tensor, Example]:
        """int64 [H, W], classes 0..C-1, or C for an answer that is none of them; and the sample as it is scored."""
        h, w = example.hard.shape
        extent = covered((h, w), self.split.input_scale, self.split.manifest.filter)
        prediction = predict(self.model, example.shown, (h, w), self.views, self.device, extent, self._allowed)
        if self._place is None:
            return prediction, example
        return self._place[prediction], replace(example, hard=self._kept[example.hard])


def facts_of(run: Run, split: Split, step: int, samples: int, exact_norms: bool) -> dict[str, Any]:
    """What scores were taken of, as plain values for JSON: how many samples of what, by which network."""
    return {
        "samples": samples,
        "split": split.name,
        "run": str(run.folder),
        "recipe": run.recipe.name,
        "step": step,
        "norms": norms_of(run.folder, exact_norms),
        "shards": str(split.path),
        "dataset": split.manifest.dataset,
        "manifest_digest": split.manifest.digest,
        "input_scale": split.input_scale,
    }
