"""The order in which samples are read: a pure function of (manifest digests, seed, epoch).

Shards are shuffled, then samples are shuffled within windows of a few shards, so that reads stay mostly sequential.
No state, no worker number, no rank: every process works out the same global order and takes its part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shards.errors import SettingsError


def generator(*parts: str | int) -> np.random.Generator:
    """A random generator that is a pure function of its parts (Philox keyed by their sha256)."""
    text = "\0".join(f"{type(p).__name__}:{p}" for p in parts)
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def epoch_order(groups: Sequence[int], digest: str, seed: int, epoch: int, window: int = 4) -> npt.NDArray[np.int64]:
    """Sample indices in the order of one epoch, int64 [sum(groups)]: each sample once.

    Args:
        groups: samples in each shard, in shard order.
        digest: the manifest's digest, or the digests of several joined.
        seed: of the run.
        epoch: from 0.
        window: shards whose samples are mixed with each other.
    """
    if window < 1 or any(g < 0 for g in groups):
        raise SettingsError(f"window {window} or a negative group found; expected window >= 1 and counts >= 0")
    random = generator("order", digest, seed, epoch)
    starts = np.concatenate(([0], np.cumsum(np.asarray(groups, np.int64))))
    shuffled = random.permutation(len(groups))
    parts = []
    for first in range(0, len(shuffled), window):
        chosen = shuffled[first : first + window]
        samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in chosen])
        parts.append(random.permutation(samples))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
