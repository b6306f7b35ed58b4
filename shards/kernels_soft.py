"""Compiled kernels that read a stored soft label (``shards.codec.soft`` has the layout), GIL released.

Flags are bits, most significant first: of all cells, those on borders before the others, then of the mixed ones once
more for each further class. What the flags want is counted before anything is written, so sizes are known to fit.

Import this inside functions: it brings numba with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.kernels import jit

COUNT, POSITIVE, ORDER = -1, -2, -3  # what is wrong: flags and entries do not fit, a weight, an entry's place


@jit
def widen(stored: Any, wide: bool, out: Any) -> None:
    """Bytes of ids as uint16: two bytes an id, the low one first, or (not ``wide``) one, 255 then as 65535."""
    for i in range(len(out)):
        if wide:
            out[i] = np.uint16(stored[2 * i]) | np.uint16(stored[2 * i + 1]) << np.uint16(8)
        else:
            out[i] = 65535 if stored[i] == 255 else stored[i]


@jit
def mark_borders(base: Any, edge: Any) -> int:
    """``edge`` [h, >= w] of zeros: 1 where a cell's class differs from a neighbour's, wrapping round; how many."""
    h, w = base.shape
    found = 0
    for i in range(h):
        row, up, down, marks = base[i], base[i - 1 if i else h - 1], base[i + 1 if i + 1 < h else 0], edge[i]
        for j in range(1, w - 1):
            odd = (row[j] ^ up[j]) | (row[j] ^ down[j]) | (row[j] ^ row[j - 1]) | (row[j] ^ row[j + 1])
            marks[j] = 1 if odd else 0
        for j in (0, w - 1):
            left, right = row[j - 1 if j else w - 1], row[j + 1 if j + 1 < w else 0]
            odd = (row[j] ^ up[j]) | (row[j] ^ down[j]) | (row[j] ^ left) | (row[j] ^ right)
            marks[j] = 1 if odd else 0
        for j in range(w):
            found += marks[j]
    return found


@jit
def _bit(bits: Any, at: int) -> Any:
    return (bits[at >> 3] >> (7 - (at & 7))) & 1


@jit
def _next(bits: Any, at: int, end: int) -> int:
    """The first flag from ``at`` on that is set, ``end`` where there is none before."""
    while at < end:
        if at & 7 == 0 and bits[at >> 3] == 0:
            at += 8
        elif _bit(bits, at):
            return at
        else:
            at += 1
    return end


@jit
def list_borders(edge: Any, w: int, borders: Any) -> None:
    """Flat indices of the cells that ``mark_borders`` has marked, rising, into int32 [how many + 1].

    ``edge`` is [h, W] with W a multiple of 8, zeros beyond w.
    """
    words = edge.view(np.uint64)
    found = 0
    for i in range(len(edge)):
        for first in range(0, w, 8):
            if words[i, first >> 3]:
                for j in range(first, first + 8):  # no branch: which of them are marked, nobody can foresee
                    borders[found] = i * w + j
                    found += edge[i, j]


@jit
def find_mixed_cells(bits: Any, borders: Any, size: int, cells: Any, order: Any, others: Any) -> int:
    """List the mixed cells: ``cells`` their flat indices, rising; ``order`` their places there as the flags go on.

    Args:
        bits: the flags, at least ``size``: those of the border cells, then those of the others.
        borders: flat indices of the border cells, rising.
        size: h * w.
        cells, order, others: int32 [t]; the last one is scratch.

    Returns:
        How many, or COUNT where there are more than t.
    """
    count = len(borders)
    mine, found, rest = np.empty(count + 1, np.int32), 0, 0
    for b in range(count):
        mine[found] = borders[b]
        found += _bit(bits, b)
    at, before = _next(bits, count, size), 0
    while at < size:
        if found + rest == len(cells):
            return COUNT
        while before < count and borders[before] - before <= at - count:
            before += 1  # borders[b] - b other cells stand before border cell b
        others[rest] = at - count + before
        rest += 1
        at = _next(bits, at + 1, size)
    if found + rest > len(cells):
        return COUNT
    a, b = 0, 0
    for m in range(found + rest):
        if b == rest or (a < found and mine[a] < others[b]):
            cells[m] = mine[a]
            order[a] = m
            a += 1
        else:
            cells[m] = others[b]
            order[found + b] = m
            b += 1
    return found + rest


@jit
def count_entries(bits: Any, at: int, order: Any, entries: int, starts: Any) -> int:
    """``starts`` [m + 1]: where each mixed cell's entries begin; 0, or COUNT where they are not ``entries`` in all.

    ``order`` [m] holds the mixed cells as the flags from ``at`` on go through them.
    """
    live, left = order.copy(), len(order)
    starts[:] = 2  # the heaviest class and one more
    starts[0] = 0
    total = left
    while left:
        if at + left > 8 * len(bits):
            return COUNT
        kept = 0
        for q in range(left):
            if _bit(bits, at + q):
                starts[live[q] + 1] += 1
                live[kept] = live[q]
                kept += 1
        at, left = at + left, kept
        total += kept
    for m in range(len(order)):
        starts[m + 1] += starts[m]
    for p in range(at, 8 * len(bits)):
        if p - at > 7 or _bit(bits, p):
            return COUNT
    return 0 if total == entries else COUNT


@jit
def place_entries(further: Any, wide: Any, order: Any, starts: Any, ids: Any, weights: Any) -> None:
    """Bring ids and weights, stored plane by plane, to their cells; the place of the heaviest class stays free.

    ``further`` [2, t * bytes]: the stored bytes; ``wide``: whether an id has two bytes, and whether 255 is void.
    """
    live, left = order.copy(), len(order)
    rank, e = 1, 0
    two, narrow = wide
    while left:
        kept = 0
        for q in range(left):
            at = starts[live[q]] + rank
            if two:
                id = np.int64(further[0, 2 * e]) | np.int64(further[0, 2 * e + 1]) << 8
                weights[at] = np.int64(further[1, 2 * e]) | np.int64(further[1, 2 * e + 1]) << 8
            else:
                id, weights[at] = np.int64(further[0, e]), further[1, e]
            ids[at] = 65535 if narrow and id == 255 else id
            e += 1
            if starts[live[q] + 1] > at + 1:
                live[kept] = live[q]
                kept += 1
        left, rank = kept, rank + 1


@jit
def complete(base: Any, cells: Any, starts: Any, ids: Any, weights: Any, denominator: int) -> int:
    """Give each cell's heaviest class, that of ``base`` [h * w], the rest; 0, or what is wrong: POSITIVE, ORDER."""
    seen = _scratch(starts)
    for m in range(len(cells)):
        first, end = starts[m], starts[m + 1]
        total = 0
        for e in range(first + 1, end):
            if weights[e] == 0:
                return POSITIVE
            total += weights[e]
        if total >= denominator:
            return POSITIVE
        ids[first], weights[first] = base[cells[m]], denominator - total
        for e in range(first + 1, end):
            if weights[e] > weights[e - 1] or (weights[e] == weights[e - 1] and ids[e] <= ids[e - 1]):
                return ORDER
        if end - first == 2:  # most are
            if ids[first] == ids[first + 1]:
                return ORDER
        elif _repeats(ids, first, end, m + 1, seen):
            return ORDER
    return 0


@jit
def _scratch(starts: Any) -> Any:
    """For ``_repeats``: a place for each id where a cell has so many classes that comparing all pairs takes long."""
    most = 0
    for m in range(len(starts) - 1):
        most = max(most, starts[m + 1] - starts[m])
    return np.zeros(65536 if most > 32 else 0, np.int32)


@jit
def _repeats(ids: Any, first: int, end: int, mark: int, seen: Any) -> bool:
    """Whether an id stands twice among those from ``first`` to ``end``; ``seen``: scratch for ``mark``, or empty."""
    if len(seen):
        for e in range(first, end):
            if seen[ids[e]] == mark:
                return True
            seen[ids[e]] = mark
        return False
    for e in range(first + 1, end):
        for f in range(first, e):
            if ids[e] == ids[f]:
                return True
    return False
