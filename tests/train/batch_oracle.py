"""The slow, obvious way from a sparse soft label to a target: whole-array operations of NumPy."""

from __future__ import annotations

import numpy as np

import shards
from train.batch import Targets


def slow_targets(soft: shards.SoftLabel, void: str, most: int) -> Targets:
    """Ids and weights [k, m] with void among them, sorted and cut by whole-array operations."""
    counts = np.diff(soft.starts)
    column = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(soft.ids)) - np.repeat(soft.starts[:-1], counts)
    ids = np.zeros((soft.max_classes, len(counts)), np.int32)
    weights = np.zeros_like(ids)
    ids[rank, column], weights[rank, column] = soft.ids, soft.weights
    weights = np.where(ids == shards.IGNORE, 0, weights)
    order = np.argsort(weights == 0, axis=0, kind="stable")
    ids, weights = np.take_along_axis(ids, order, 0), np.take_along_axis(weights, order, 0)
    mass = weights.sum(0)
    planes = int(np.clip((weights > 0).sum(0).max(initial=1), 1, most))
    capped = int((weights[planes:] > 0).any(0).sum())
    ids, weights = ids[:planes], weights[:planes]
    total = mass / soft.denominator if void == "keep" else np.ones(len(mass))
    if void == "mask":
        total = np.where(2 * mass > soft.denominator, total, 0.0)
    shares = (weights * (total / np.maximum(weights.sum(0), 1))).astype(np.float32)
    return Targets(soft.base, soft.cells, np.where(shares > 0, ids, 0).astype(np.int32), shares, capped)
