"""segshards' trainer: the batches that `seg-train` steps on, read at the stored scale 1/4 with sparse soft targets.

No augmentation, whole images; order, decoding, targets, collation and workers are the trainer's own (train/feed.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.bench.loaders.work import FACTOR, Job, Pair
from train.config import load_recipe
from train.distributed import World
from train.feed import batches as feed
from train.sources import open_sources
from train.stream import Stream

DISTRIBUTIONS = ("segshards", "simplejpeg", "torch")


def batches(job: Job) -> Iterator[Pair]:
    """Images and (ids, weights, what they sum to) of an epoch."""
    torch.set_num_threads(1)
    changes = [f"data.scales=1/{FACTOR}", f"data.workers={job.count}", f"loop.batch={job.batch}"]
    recipe = load_recipe("demo", [*changes, "augment.flip=false", "augment.crop=none", "loss.void=keep"])
    stream = Stream(open_sources([Path(job.shards)], recipe), recipe)
    places = np.array_split(np.arange(len(stream)), range(job.batch, len(stream), job.batch))
    with feed(stream, World(torch.device("cpu")), positions=[part.tolist() for part in places]) as source:
        for batch in source:
            yield batch.images, (batch.ids.numpy(), batch.weights.numpy(), np.ones(len(batch.keys)))
