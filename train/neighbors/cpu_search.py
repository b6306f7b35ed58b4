"""Exact k nearest classes on the CPU: compiled rows, a quick pass in the queries' precision, doubts settled in float64.

Four queries at a time meet the whole table: their distances are sums of squared differences (never |q|^2 - 2qc +
|c|^2, which cancels), so their error is *relative*: (d + 4) roundings, whatever the offset or the length of the
vectors. Classes fall into groups (every G-th one); the pass keeps each group's minimum, vectorised, and only the k + 1
groups with the least minima are looked at class by class. Where the k + 1 least distances of a row lie farther apart
than rounding can explain, their order is proven. Otherwise (near-ties, duplicated classes, overflow, NaN) the row's
classes within the bound are compared in float64 as train/neighbors/contract.py says.

Scratch: 4 x C distances a thread and a block of converted queries; nothing of size N x C.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import torch
from torch import Tensor

from shards.kernels import jit

LANES = 16  # float32 values of the widest registers
GROUPS = 256  # groups of a large table; up to here each class is its own
TILE = 4  # queries that share a read of the table
BLOCK = 4096  # queries converted at a time
SPLIT = 1 << 20  # pairs of query and class that are worth a thread
ROW = 256  # what a query costs beyond its pairs, in pairs
AHEAD = np.float32(1.2)  # how far a query's neighbours may lie beyond those of the one before, to be found quickly
WIDEST = 64  # k beyond which insertion costs more than a sort; such searches go to the torch path


def _fused(function: Any) -> Any:
    """`shards.kernels.jit` with fused multiply-adds allowed; the bound covers them."""
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": {"contract"}}
    try:
        return nb.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds neither this folder nor the user's cache writable
        return nb.njit(**options)(function)


@_fused
def _add(x: Any, panel: Any, i: int, base: int, size: int, dist: Any) -> None:
    """Add dimensions i to i + 3 of four queries x [4, d] against classes base to base + size - 1 to dist [4, C]."""
    end = base + size
    p0, p1, p2, p3 = panel[i, base:end], panel[i + 1, base:end], panel[i + 2, base:end], panel[i + 3, base:end]
    o0, o1, o2, o3 = dist[0, base:end], dist[1, base:end], dist[2, base:end], dist[3, base:end]
    a0, a1, a2, a3 = x[0, i], x[0, i + 1], x[0, i + 2], x[0, i + 3]
    b0, b1, b2, b3 = x[1, i], x[1, i + 1], x[1, i + 2], x[1, i + 3]
    c0, c1, c2, c3 = x[2, i], x[2, i + 1], x[2, i + 2], x[2, i + 3]
    e0, e1, e2, e3 = x[3, i], x[3, i + 1], x[3, i + 2], x[3, i + 3]
    for j in range(size):
        s, t, u, v = p0[j], p1[j], p2[j], p3[j]
        o0[j] = o0[j] + (a0 - s) * (a0 - s) + (a1 - t) * (a1 - t) + (a2 - u) * (a2 - u) + (a3 - v) * (a3 - v)
        o1[j] = o1[j] + (b0 - s) * (b0 - s) + (b1 - t) * (b1 - t) + (b2 - u) * (b2 - u) + (b3 - v) * (b3 - v)
        o2[j] = o2[j] + (c0 - s) * (c0 - s) + (c1 - t) * (c1 - t) + (c2 - u) * (c2 - u) + (c3 - v) * (c3 - v)
        o3[j] = o3[j] + (e0 - s) * (e0 - s) + (e1 - t) * (e1 - t) + (e2 - u) * (e2 - u) + (e3 - v) * (e3 - v)


@jit
def _fold(out: Any, least: Any) -> None:
    """least = min(least, out), element by element; NaN never gets in."""
    for j in range(len(least)):
        v = out[j]
        least[j] = v if v < least[j] else least[j]


@jit
def _scan(x: Any, panel: Any, size: int, dist: Any, least: Any) -> None:
    """Distances of four queries to every class, dist [4, C'], and the groups' minima, least [4, size]."""
    dist[:] = 0
    least[:] = np.inf
    for base in range(0, panel.shape[1], size):
        for i in range(0, panel.shape[0], 4):
            _add(x, panel, i, base, size, dist)
        for r in range(4):
            _fold(dist[r, base : base + size], least[r])


@jit
def _put(value: Any, id: int, values: Any, ids: Any, used: int, room: int) -> int:
    """Insert into the `used` ascending values where it is among the `room` least; returns how many are used now."""
    if used < room:
        s = used
        used += 1
    elif value < values[room - 1]:
        s = room - 1
    else:
        return used
    while s > 0 and values[s - 1] > value:
        values[s] = values[s - 1]
        ids[s] = ids[s - 1]
        s -= 1
    values[s] = value
    ids[s] = id
    return used


@jit
def _least(values: Any, number: int, guess: Any, near: Any, best: Any, ids: Any) -> None:
    """The len(best) least of the first `number` values, ascending, into best, their places into ids.

    A good guess of the largest of them (neighbouring pixels lie alike) saves most of the comparisons that a processor
    cannot predict: what lies below is gathered without a branch, and only that is sorted.
    """
    room, used, found = len(best), 0, 0
    for v in range(number):
        near[found] = v
        found += values[v] <= guess
    if found >= room:
        for i in range(found):
            v = near[i]
            if used < room or values[v] < best[room - 1]:
                used = _put(values[v], v, best, ids, used, room)
        return
    for v in range(number):
        if used < room or values[v] < best[room - 1]:
            used = _put(values[v], v, best, ids, used, room)


@jit
def _members(dist: Any, classes: int, size: int, groups: Any, bound: Any, best: Any, ids: Any) -> int:
    """The least distances among the classes of the groups found, into best and ids; returns how many there are."""
    found = 0
    for group in groups:
        for c in range(group, classes, size):
            if dist[c] <= bound:
                found = _put(dist[c], c, best, ids, found, len(best))
    return found


@jit
def _pick(dist: Any, least: Any, classes: int, slack: Any, guess: Any, work: Any, best: Any, ids: Any) -> bool:
    """The room = len(best) least distances of one query, ascending; whether their order is proven in float64 too."""
    top, groups, near = work
    size, room = len(least), len(best)
    relative, absolute = slack
    if size >= classes:  # each class is its own group
        _least(least, classes, guess, near, best, ids)
    else:
        _least(least, size, guess, near, top, groups)
        if _members(dist, classes, size, groups, top[room - 1], best, ids) < room:
            return False
    sure = True
    for s in range(1, room):
        sure &= np.float64(best[s - 1]) * (1 + relative) + absolute < np.float64(best[s])
    return sure and best[0] < np.inf


@jit
def _farther(a: float, b: float) -> bool:
    """Whether distance a comes after b: NaN after all numbers, equals keep the order in which they came."""
    return a > b or (np.isnan(a) and not np.isnan(b))


@jit
def _exact(x: Any, table: Any, c: int) -> float:
    """The contract's distance of a query and class c."""
    total = 0.0
    for i in range(table.shape[1]):
        step = np.float64(x[i]) - np.float64(table[c, i])
        total += step * step
    return total


@jit
def _settle(x: Any, table: Any, dist: Any, limit: float, exact: Any, ids: Any) -> None:
    """The k = len(ids) nearest by the contract, among the classes whose distance is not above `limit`."""
    k, used = len(ids), 0
    for c in range(len(table)):
        if dist[c] > limit:
            continue
        value = _exact(x, table, c)
        if used < k:
            s = used
            used += 1
        elif _farther(exact[k - 1], value):
            s = k - 1
        else:
            continue
        while s > 0 and _farther(exact[s - 1], value):
            exact[s] = exact[s - 1]
            ids[s] = ids[s - 1]
            s -= 1
        exact[s] = value
        ids[s] = c


@jit
def _search(queries: Any, table: Any, panel: Any, size: int, slack: Any, out: Any) -> int:
    """Fill out [n, k] for queries [n', d'] (n' a multiple of 4); returns how many rows were settled in float64."""
    n, k = out.shape
    classes = len(table)
    room = min(k + 1, classes)
    dist, least = np.empty((4, panel.shape[1]), panel.dtype), np.empty((4, size), panel.dtype)
    best, ids, exact = np.full(room, np.inf, panel.dtype), np.empty(room, np.int64), np.empty(k, np.float64)
    work = (np.empty(room, panel.dtype), np.empty(room, np.int64), np.empty(size + 1, np.int64))
    guess = best[0]
    doubts = 0
    for row in range(0, n, 4):
        x = queries[row : row + 4]
        _scan(x, panel, size, dist, least)
        for r in range(min(4, n - row)):
            best[:] = np.inf
            if not _pick(dist[r], least[r], classes, slack, guess, work, best, ids):
                limit = np.float64(best[k - 1]) * (1 + slack[0]) + slack[1]
                _settle(x[r], table, dist[r], limit, exact, ids[:k])
                doubts += 1
            guess = AHEAD * best[room - 1]
            for s in range(k):
                out[row + r, s] = ids[s]
    return doubts


@dataclass(frozen=True)
class CpuTable:
    """A class table made ready: see `prepare`."""

    rows: Any  # [C, d]
    panel: Any  # [d', C'], transposed, padded with zeros (dimensions) and infinity (classes)
    group: int  # number of groups


def prepare(table: Tensor) -> CpuTable:
    """A table [C, d], float32 or float64 on the CPU, laid out for the kernel (one copy and a half)."""
    rows = np.ascontiguousarray(table.detach().numpy())
    classes, width = rows.shape
    panels = -(-classes // GROUPS)
    group = _up(-(-classes // panels), LANES)
    panel = np.zeros((_up(width, 4), group * panels), rows.dtype)
    panel[:width, :classes] = rows.T
    panel[0, classes:] = np.inf
    return CpuTable(rows, panel, group)


def search(queries: Tensor, table: CpuTable, k: int) -> Tensor:
    """ids int64 [N, k] of queries [N, d] on the CPU, by as many threads as torch uses; k at most `WIDEST` and C."""
    ids = np.empty((len(queries), k), np.int64)
    threads = max(1, min(torch.get_num_threads(), len(ids) * (len(table.rows) + ROW) // SPLIT))
    spans = np.linspace(0, len(ids), threads + 1).astype(int)
    if threads == 1:
        _part(queries, table, ids, 0, len(ids))
        return torch.from_numpy(ids)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(_part, queries, table, ids, spans[t], spans[t + 1]) for t in range(threads)]
        for job in jobs:
            job.result()
    return torch.from_numpy(ids)


def _part(queries: Tensor, table: CpuTable, ids: Any, low: int, high: int) -> None:
    """Search queries low to high - 1, a block of converted ones at a time."""
    depth = table.panel.shape[0]
    width = table.rows.shape[1]
    slack = _slack(width, np.finfo(table.panel.dtype))
    block = np.zeros((min(BLOCK, _up(high - low, TILE)), depth), table.panel.dtype)
    for start in range(low, high, BLOCK):
        end = min(high, start + BLOCK)
        torch.from_numpy(block)[: end - start, :width] = queries[start:end].detach()
        _search(block, table.rows, table.panel, table.group, slack, ids[start:end])


def _slack(width: int, unit: Any) -> tuple[float, float]:
    """The (relative, absolute) gap between two quick distances above which the contract's have the same order.

    A distance of either kind is within (1 + u)^(d + 4) of the real one, each way: 2 roundings for a difference, one
    for its square, at most d sums; two of each kind give 4 (d + 4) u, rounded up. Underflow adds what a subnormal
    flushed to zero may lose.
    """
    return 5 * (width + 8) * float(unit.eps) / 2, 8 * (width + 1) * float(unit.tiny)


def _up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple
