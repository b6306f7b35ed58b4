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
SET_BITS = np.zeros((256, 8), np.uint8)  # of each byte, the places of its ones, most significant first, then zeros
for _byte in range(256):
    _places = [place for place in range(8) if _byte >> (7 - place) & 1]
    SET_BITS[_byte, : len(_places)] = _places
ONES = np.array([_byte.bit_count() for _byte in range(256)], np.uint8)
PACK = np.uint64(0x8040201008040201)  # times eight bytes of 0 or 1, the first one lowest: its top byte has them as bits


@jit
def read(stored: Any, mixed: Any, further: Any, wide: Any, w: int, denominator: int) -> Any:
    """A label out of the stored arrays.

    Args:
        stored: the bytes of ``base``.
        mixed: the flags, as many as cells and entries want.
        further: the bytes of ids and of weights, [2, t * bytes].
        wide: whether ``base`` and ``further`` have two bytes a value.
        w: columns.
        denominator: what a cell's weights sum to.

    Returns:
        what is wrong, 0 for nothing; then base [h * w], cells, starts, ids and weights of ``SoftLabel``.
    """
    wide_base, wide_further = wide
    size, entries = len(stored) >> wide_base, further.shape[1] >> wide_further
    base = np.empty(size, np.uint16)
    widen(stored, wide_base, base)
    edge = np.zeros((size // w, (w + 7) >> 3 << 3), np.uint8)
    borders = mark_borders(base.reshape(-1, w), edge)
    cells, order = np.empty(entries, np.int32), np.empty(entries, np.int32)
    found = find_mixed_cells(mixed, edge, borders, w, cells, order)
    starts = np.zeros(max(found, 0) + 1, np.int64)
    ids, weights = np.empty(0, np.uint16), np.empty(0, np.uint16)
    if found < 0 or count_entries(mixed, size, order[:found], entries, starts):
        return COUNT, base, cells, starts, ids, weights
    cells = cells[:found].copy()
    ids, weights = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.uint16)
    place_entries(further, (wide_further, not wide_base), order[:found], starts, ids, weights)
    return complete(base, cells, starts, ids, weights, denominator), base, cells, starts, ids, weights


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
def find_mixed_cells(bits: Any, edge: Any, count: int, w: int, cells: Any, order: Any) -> int:
    """List the mixed cells: ``cells`` their flat indices, rising; ``order`` their places there as the flags go on.

    Args:
        bits: the flags, at least h * w: those of the border cells, then those of the others.
        edge: the border cells [h, W], W a multiple of 8, zeros beyond w.
        count: how many they are.
        w: columns.
        cells, order: int32 [t].

    Returns:
        How many, or COUNT where there are more than t.
    """
    most, size = len(cells), len(edge) * w
    borders, mine = np.empty((2, count + 8), np.int32)
    others = np.empty(most + 16, np.int32)
    _list_borders(edge, w, borders)
    found: int = _mixed_borders(bits, borders, count, mine)
    rest = _mixed_others(bits, borders[:count], size, others)
    if rest < 0 or found + rest > most:
        return COUNT
    total: int = found + rest
    a = 0
    for b in range(rest + 1):
        end = others[b] if b < rest else size
        while a < found and mine[a] < end:
            cells[a + b] = mine[a]
            order[a] = a + b
            a += 1
        if b < rest:
            cells[a + b] = end
            order[found + b] = a + b
    return total


@jit
def _list_borders(edge: Any, w: int, borders: Any) -> None:
    """Flat indices of the border cells, rising, into int32 [how many + 8]; eight at a time, so that none is guessed."""
    words, across = edge.reshape(-1).view(np.uint64), edge.shape[1] >> 3
    marked, count, found = np.empty(len(words) + 1, np.int32), 0, 0
    for word in range(len(words)):
        marked[count] = word
        count += words[word] != 0
    for n in range(count):
        word = marked[n]
        byte = (words[word] * PACK) >> np.uint64(56)
        first = word // across * w + word % across * 8
        for k in range(8):
            borders[found + k] = first + SET_BITS[byte, k]
        found += ONES[byte]


@jit
def _mixed_borders(bits: Any, borders: Any, count: int, mine: Any) -> int:
    """Those of ``count`` border cells whose flag is set, into int32 [count + 8]; how many."""
    found = 0
    for first in range(0, count - 7, 8):
        byte = bits[first >> 3]
        for k in range(8):
            mine[found + k] = borders[first + SET_BITS[byte, k]]
        found += ONES[byte]
    for b in range(count & ~7, count):
        mine[found] = borders[b]
        found += _bit(bits, b)
    return found


@jit
def _mixed_others(bits: Any, borders: Any, size: int, others: Any) -> int:
    """Flat indices of the other cells whose flag is set, rising, into int32 [t + 16]; how many, or COUNT."""
    count, before = len(borders), 0
    found: int = _set_flags(bits, count, size, others)
    for n in range(found):
        place = others[n] - count
        while before < count and borders[before] - before <= place:
            before += 1  # borders[b] - b other cells stand before border cell b
        others[n] = place + before
    return found


@jit
def _set_flags(bits: Any, start: int, end: int, flags: Any) -> int:
    """The places of the ones from bit ``start`` to before bit ``end``, rising, into int32 [t + 16]; how many, or COUNT.

    Whole bytes are looked at, so up to seven ones before and behind are found too, and left out.
    """
    first, last = start >> 3, (end + 7) >> 3
    used, count, found = np.empty(last - first + 1, np.int32), 0, 0
    for place in range(first, last):
        used[count] = place
        count += bits[place] != 0
    for n in range(count):
        byte = bits[used[n]]
        if found + 8 > len(flags):
            return COUNT
        for k in range(8):
            flags[found + k] = 8 * used[n] + SET_BITS[byte, k]
        found += ONES[byte]
        if n == 0:
            found = _without(flags, found, start)
    while found and flags[found - 1] >= end:
        found -= 1
    return found


@jit
def _without(flags: Any, found: int, start: int) -> int:
    """Take the first flags out that lie before ``start``; how many are left."""
    before = 0
    while before < found and flags[before] < start:
        before += 1
    for n in range(before, found):
        flags[n - before] = flags[n]
    return found - before


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
    whole, seen = np.int32(denominator), _scratch(starts)
    weightless: Any = 0  # cells
    disordered: Any = 0
    for m in range(len(cells)):
        first, end = starts[m], starts[m + 1]
        id, weight = np.int32(base[cells[m]]), np.int32(weights[first + 1])
        if end - first == 2:  # most are; no branch beyond this one
            rest, other = whole - weight, np.int32(ids[first + 1])
            weightless += (weight <= 0) | (rest <= 0)
            disordered += (rest < weight) | ((rest == weight) & (other < id)) | (other == id)
        else:
            rest = whole - _further_weight(weights, first, end)
            weightless += rest <= 0
            ids[first], weights[first] = id, max(rest, 0)
            disordered += not _rises(ids, weights, first, end) or _repeats(ids, first, end, m + 1, seen)
        ids[first], weights[first] = id, rest
    if weightless:
        return POSITIVE
    return ORDER if disordered else 0


@jit
def _further_weight(weights: Any, first: int, end: int) -> int:
    """The sum of a cell's weights behind its first, or more than any denominator where one of them is 0."""
    total = 0
    for e in range(first + 1, end):
        total += weights[e] if weights[e] else 1 << 16
    return total


@jit
def _rises(ids: Any, weights: Any, first: int, end: int) -> bool:
    """Whether a cell's weights fall and ids rise among equal ones."""
    for e in range(first + 1, end):
        if weights[e] > weights[e - 1] or (weights[e] == weights[e - 1] and ids[e] <= ids[e - 1]):
            return False
    return True


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
