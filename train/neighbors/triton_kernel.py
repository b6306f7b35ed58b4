"""The fused kernel of the triton backend (train/neighbors/triton_search.py says what it computes and why).

Triton reads these functions' source: they take no annotations, and everything is in their arguments.
"""

# mypy: ignore-errors
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _keep(dist, first, best, ids, lanes, slots):
    """Swap the least distances of a block [R, B] into the candidates [R, M] while that improves any row."""
    worst = tl.max(best, axis=1)
    least = tl.min(dist, axis=1)
    while tl.max((least < worst).to(tl.int32), axis=0) > 0:
        lane = tl.argmin(dist, axis=1)
        slot = tl.argmax(best, axis=1)
        swap = (slots[None, :] == slot[:, None]) & (least < worst)[:, None]
        best = tl.where(swap, least[:, None], best)
        ids = tl.where(swap, first + lane[:, None], ids)
        dist = tl.where(lanes[None, :] == lane[:, None], float("inf"), dist)
        worst = tl.max(best, axis=1)
        least = tl.min(dist, axis=1)
    return best, ids


@triton.jit
def nearest_kernel(
    queries, columns, out, settled, number, classes, stride, relative, absolute,
    D: tl.constexpr, K: tl.constexpr, KEEP: tl.constexpr, SLOTS: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """One program: rows of `queries` [N, D] against `columns` float32 [D, stride]; out int64 [N, K], settled int8."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    inside = rows < number
    start = rows.to(tl.int64) * D
    lanes, slots = tl.arange(0, B), tl.arange(0, SLOTS)
    inf = float("inf")
    spare = tl.zeros([R, SLOTS], tl.float32) + tl.where(slots < KEEP, inf, -inf)[None, :]
    best, ids = spare, tl.zeros([R, SLOTS], tl.int32) - 1
    for first in range(0, classes, B):
        real = first + lanes < classes
        dist = tl.zeros([R, B], tl.float32)
        for j in range(D):
            x = tl.load(queries + start + j, mask=inside, other=0.0).to(tl.float32)
            c = tl.load(columns + j * stride + first + lanes, mask=real, other=inf)
            step = x[:, None] - c[None, :]
            dist += step * step
        dist = tl.where(dist == dist, dist, inf)  # NaN is never a candidate; its rows are left uncertain
        best, ids = _keep(dist, first, best, ids, lanes, slots)

    held = (ids >= 0) & (slots < KEEP)[None, :]
    exact = tl.zeros([R, SLOTS], tl.float64)
    for j in range(D):
        x = tl.load(queries + start + j, mask=inside, other=0.0).to(tl.float64)
        c = tl.load(columns + j * stride + ids, mask=held, other=0.0).to(tl.float64)
        step = x[:, None] - c
        exact += step * step
    exact = tl.where(held, exact, inf)
    order = tl.where(held, ids, classes + slots[None, :])  # unused slots: after all classes, all different
    edge = tl.max(tl.where(held, best, -inf), axis=1).to(tl.float64)
    kth = tl.zeros([R], tl.float64) + inf
    for s in range(SLOTS):
        here = slots[None, :] == s
        value = tl.sum(tl.where(here, exact, 0.0), axis=1)
        id = tl.sum(tl.where(here, order, 0), axis=1)
        before = (exact < value[:, None]) | ((exact == value[:, None]) & (order < id[:, None]))
        rank = tl.sum(before.to(tl.int32), axis=1)
        kth = tl.where(rank == K - 1, value, kth)
        tl.store(out + rows.to(tl.int64) * K + rank, id.to(tl.int64), mask=inside & (rank < K))
    full = tl.sum(held.to(tl.int32), axis=1)
    sure = (full == KEEP) & ((kth < edge * (1 - relative) - absolute) | (classes == KEEP))
    tl.store(settled + rows, sure.to(tl.int8), mask=inside)
