"""Compiled kernels between a sparse soft label and the planes of a batch, GIL released.

Import this inside functions: it brings numba with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.classes import IGNORE
from shards.kernels import jit

MASK, RENORMALISE, KEEP = range(3)  # void rules


@jit
def count_classes(starts: Any, ids: Any) -> int:
    """The largest number of classes besides void in any mixed cell; 0 where there is none."""
    most = 0
    for m in range(len(starts) - 1):
        used = 0
        for e in range(starts[m], starts[m + 1]):
            used += ids[e] != IGNORE
        most = max(most, used)
    return most


@jit
def share_out(starts: Any, ids: Any, weights: Any, denominator: int, rule: int, out_ids: Any, shares: Any) -> int:
    """Fill ``out_ids`` and ``shares`` [K, m]: each cell's K heaviest classes, summing to what the void rule says.

    Returns:
        How many cells hold further classes.
    """
    planes, cut = len(out_ids), 0
    for m in range(len(starts) - 1):
        mass, kept, used = 0, 0, 0
        for e in range(starts[m], starts[m + 1]):
            if ids[e] == IGNORE:
                continue
            mass += weights[e]
            if used < planes:
                kept += weights[e]
            used += 1
        cut += used > planes
        total = 1.0
        if rule == KEEP:
            total = mass / denominator
        elif rule == MASK and 2 * mass <= denominator:
            total = 0.0
        factor, plane = total / max(kept, 1), 0
        for e in range(starts[m], starts[m + 1]):
            if ids[e] == IGNORE or plane == planes:
                continue
            share = np.float32(weights[e] * factor)
            shares[plane, m] = share
            out_ids[plane, m] = ids[e] if share > 0 else 0
            plane += 1
        for rest in range(plane, planes):
            shares[rest, m] = 0
            out_ids[rest, m] = 0
    return cut


@jit
def fill_planes(base: Any, cells: Any, ids: Any, shares: Any, out_ids: Any, out_shares: Any) -> None:
    """Write all of ``out_ids`` and ``out_shares`` [>= K, h * w]: ``base`` [h * w] whole, the mixed cells over it."""
    out_ids[1:] = 0
    out_shares[1:] = 0
    for x in range(len(base)):
        known = base[x] != IGNORE
        out_ids[0, x] = base[x] if known else 0
        out_shares[0, x] = 1 if known else 0
    for plane in range(len(ids)):
        for m in range(len(cells)):
            out_ids[plane, cells[m]] = ids[plane, m]
            out_shares[plane, cells[m]] = shares[plane, m]
