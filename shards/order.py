"""The order in which samples are read: a pure function of (manifest digests, seed, epoch).

Runs of a few samples are shuffled, then samples within windows of as many runs as make up `WINDOW` shards: batches are
as mixed as in a true shuffle, also where samples are stored class by class, and a read is near the one before it
(`python -m tests.bench.shuffle`). Whole shards can take the place of runs, for shards that come from far away.
No state, no worker number, no rank: every process works out the same global order and takes its part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shards.errors import SettingsError

WINDOW, RUN = 16, 4  # of the usual order


def generator(*parts: str | int) -> np.random.Generator:
    """A random generator that is a pure function of its parts (Philox keyed by their sha256); NumPy's integers are
    integers."""
    text = "\0".join(f"str:{part}" if isinstance(part, str) else f"int:{int(part)}" for part in parts)
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def epoch_order(
    groups: Sequence[int], digest: str, seed: int, epoch: int, window: int = WINDOW, run: int | None = RUN
) -> npt.NDArray[np.int64]:
    """Sample indices in the order of one epoch, int64 [sum(groups)]: each sample once.

    Args:
        groups: samples in each shard, in shard order.
        digest: the manifest's digest, or the digests of several joined.
        seed: of the run.
        epoch: from 0.
        window: shards whose samples are mixed with each other.
        run: None: whole shards are mixed. Else shards are cut into runs of so many samples, and as many runs as make up
            `window` shards are mixed, from anywhere in the set: for samples that are stored in an order of their own
            (by city, by class), in files that can be read anywhere at will.
    """
    if window < 1 or any(g < 0 for g in groups) or (run is not None and run < 1):
        raise SettingsError(
            f"window {window}, run {run} or a negative group found; expected window and run >= 1, counts >= 0"
        )
    random = generator("order", digest, seed, epoch)
    sizes = np.asarray(groups, np.int64)
    if run is not None:
        window = max(1, -(-window * int(sizes.sum()) // max(1, len(sizes) * run)))  # in runs
        sizes = _cut(sizes, run)
    chosen = random.permutation(len(sizes))
    starts, counts = (np.cumsum(sizes) - sizes)[chosen], sizes[chosen]
    ends = np.cumsum(counts)
    order: npt.NDArray[np.int64] = np.arange(counts.sum(), dtype=np.int64) + np.repeat(starts - (ends - counts), counts)
    for first in range(0, len(chosen), window):
        low, high = ends[first] - counts[first], ends[min(first + window, len(chosen)) - 1]
        order[low:high] = random.permutation(order[low:high])
    return order


def _cut(sizes: npt.NDArray[np.int64], run: int) -> npt.NDArray[np.int64]:
    """Groups cut into runs, int64 [runs]; the last one of a group may be shorter."""
    counts = -(-sizes // run)
    runs = np.full(counts.sum(), run, np.int64)
    filled = counts > 0
    runs[np.cumsum(counts)[filled] - 1] = (sizes - (counts - 1) * run)[filled]
    return runs
