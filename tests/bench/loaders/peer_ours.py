"""segshards: `shards.Loader`, as README shows it, in the project's own environment.

Modes: documented and fast (the same: image and hard label at scale 1), raw, soft (the stored scale 1/4, target as
sparse planes), soft-dense (the same made dense), quarter-resized (scale 1 read and image and label resized together to
1/4, target as in soft).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import shards
from tests.bench.loaders.work import FACTOR, PLANES, Job, Pair, single_threaded, stack

DISTRIBUTIONS = ("segshards", "simplejpeg", "opencv-python-headless", "pillow", "numba")
SMALL = f"1/{FACTOR}"


class Raw(shards.Loader[Any]):
    """Stored bytes instead of decoded samples."""

    def read(self, index: int) -> Any:
        members = self.dataset.members(index)
        return next(members[s] for s in ("jpg", "png") if s in members), members["seg.png"]


def write(job: Job) -> None:
    """Nothing: the source set is ours."""


def pair(sample: shards.Sample) -> Pair:
    """Image and hard label."""
    return sample.image, sample.hard


def sparse(sample: shards.Sample) -> Pair:
    """Image and stored soft label."""
    return sample.image, sample.soft


def planes(labels: Sequence[shards.SoftLabel]) -> tuple[Any, Any, Any]:
    """The heaviest classes of each cell: ids and weights [B, K, h, w], and what a cell's weights sum to, [B]."""
    ids, weights = np.empty((2, len(labels), PLANES, *labels[0].shape), np.uint16)
    for place, soft in enumerate(labels):
        soft.topk(PLANES, out=(ids[place], weights[place]))
    return ids, weights, np.array([soft.denominator for soft in labels])


class Dense:
    """The stored soft label as [h, w, C]."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, sample: shards.Sample) -> Pair:
        assert sample.soft is not None
        return sample.image, sample.soft.dense(self.classes, "keep").transpose(2, 0, 1)


def resized(sample: shards.Sample) -> Pair:
    """Image and label resized together from full resolution."""
    assert sample.hard is not None
    return shards.resize_pair(sample.image, sample.hard, SMALL, "box")


def loader(job: Job) -> shards.Loader[Any]:
    """The loader of a mode."""
    small = job.mode in ("soft", "soft-dense")
    dataset = shards.open(job.shards, split="train", scale=SMALL if small else "1")
    kind: Any = Raw if job.mode == "raw" else shards.Loader
    work = {"raw": None, "soft": sparse, "soft-dense": Dense(job.classes), "quarter-resized": resized}
    return kind(dataset, batch=job.batch, threads=job.count, transform=work.get(job.mode, pair))


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch."""
    if job.mode != "raw":
        single_threaded()
    for batch in loader(job).epoch(0):
        stacked = together(batch)
        del batch  # or the samples would stay beside it until the next batch is there
        yield stacked


def together(batch: list[Pair]) -> Pair:
    """A batch as arrays; soft labels as planes."""
    if not isinstance(batch[0][1], shards.SoftLabel):
        return stack(batch)
    images, labels = zip(*batch, strict=True)
    return np.stack(images), planes(labels)
