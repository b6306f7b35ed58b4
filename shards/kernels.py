"""Compiled kernels of the soft label: counting classes in cells. No allocation per cell, GIL released.

A mixed cell's entries are sorted by falling weight, ties by rising id; void (65535) thereby comes last of a tie.
Compiled once and cached beside this file by numba. Import this inside functions: numba alone takes a quarter of a
second, which those who only open a shard set need not wait for.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from shards.classes import IGNORE

FINEST = 1 << 32  # weights over 2^16 on both axes


def jit(function: Any) -> Any:
    """Compiled at first use, the GIL released; cached on disk where there is a place that can be written."""
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return nb.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds neither this folder nor the user's cache writable
        return nb.njit(**options)(function)


@jit
def _put(ids: Any, weights: Any, start: int, used: int, id: int, weight: int) -> int:
    """Add ``weight`` to ``id`` among the ``used`` entries from ``start`` on; return how many are used now."""
    for e in range(start, start + used):
        if ids[e] == id:
            weights[e] += weight
            return used
    ids[start + used] = id
    weights[start + used] = weight
    return used + 1


@jit
def _sort(ids: Any, weights: Any, start: int, used: int) -> None:
    """Insertion sort of a cell's entries: weight falling, id rising."""
    for e in range(start + 1, start + used):
        id, weight = ids[e], weights[e]
        f = e - 1
        while f >= start and (weights[f] < weight or (weights[f] == weight and ids[f] > id)):
            ids[f + 1] = ids[f]
            weights[f + 1] = weights[f]
            f -= 1
        ids[f + 1] = id
        weights[f + 1] = weight


@jit
def find_mixed(hard: Any, k: int, base: Any, cells: Any) -> int:
    """Fill ``base`` [h, w] with each k x k cell's first pixel; list mixed cells' flat indices; return their number.

    The comparison of k rows against the first runs along the row, so that it vectorises; then k columns fold.
    """
    height, width = hard.shape
    h, w = base.shape
    differs = np.empty(width, np.uint16)
    mixed = 0
    for i in range(h):
        top = hard[i * k]
        rows = min(k, height - i * k)
        differs[:] = 0
        for r in range(1, rows):
            row = hard[i * k + r]
            for x in range(width):
                differs[x] |= row[x] ^ top[x]
        whole = width // k if rows == k else 0
        for j in range(whole):
            x0 = j * k
            first = top[x0]
            odd = differs[x0]
            for x in range(x0 + 1, x0 + k):
                odd |= differs[x] | (top[x] ^ first)
            base[i, j] = first
            if odd:
                cells[mixed] = i * w + j
                mixed += 1
        for j in range(whole, w):  # partial cells: what they lack is void
            base[i, j] = top[j * k]
            cells[mixed] = i * w + j
            mixed += 1
    return mixed


@jit
def find_mixed_pairs(words: Any, base: Any, cells: Any) -> int:
    """``find_mixed`` for k = 2 on little-endian words of four pixels, uint64 [H, W / 4]: two cells at a time."""
    h, w = base.shape
    low, high = np.uint64(0x0000FFFF0000FFFF), np.uint64(16)
    mixed = 0
    for i in range(h):
        for j in range(w // 2):
            top = words[2 * i, j]
            odd = (top ^ words[2 * i + 1, j]) | ((top ^ (top >> high)) & low)
            base[i, 2 * j] = top & np.uint64(0xFFFF)
            base[i, 2 * j + 1] = (top >> np.uint64(32)) & np.uint64(0xFFFF)
            if odd:
                if odd & np.uint64(0xFFFFFFFF):
                    cells[mixed] = i * w + 2 * j
                    mixed += 1
                if odd >> np.uint64(32):
                    cells[mixed] = i * w + 2 * j + 1
                    mixed += 1
    return mixed


@jit
def find_mixed_fours(words: Any, base: Any, cells: Any) -> int:
    """``find_mixed`` for k = 4 on words of four pixels, uint64 [H, W / 4]: a word is a cell's row."""
    h, w = base.shape
    mixed = 0
    for i in range(h):
        a, b, c, d = words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]
        for j in range(w):
            first = a[j] & np.uint64(0xFFFF)
            even = first * np.uint64(0x0001000100010001)
            base[i, j] = first
            if (a[j] ^ even) | (a[j] ^ b[j]) | (a[j] ^ c[j]) | (a[j] ^ d[j]):
                cells[mixed] = i * w + j
                mixed += 1
    return mixed


@jit
def count_cells(hard: Any, k: int, w: int, cells: Any, starts: Any, ids: Any, weights: Any) -> int:
    """Count the classes of each listed k x k cell; returns how many cells stay mixed (all-void partial ones do not).

    ``cells`` is compacted in place; ``starts`` [len + 1], ``ids`` and ``weights`` [len * k * k] are filled.
    """
    height, width = hard.shape
    end = 0
    kept = 0
    for m in range(len(cells)):
        y0, x0 = cells[m] // w * k, cells[m] % w * k
        y1, x1 = min(y0 + k, height), min(x0 + k, width)
        used = 0
        id, run = hard[y0, x0], 0  # neighbours mostly agree: entries are looked up once a run
        for y in range(y0, y1):
            for x in range(x0, x1):
                if hard[y, x] != id:
                    used = _put(ids, weights, end, used, id, run)
                    id, run = hard[y, x], 0
                run += 1
        used = _put(ids, weights, end, used, id, run)
        lacking = k * k - (y1 - y0) * (x1 - x0)
        if lacking:
            used = _put(ids, weights, end, used, IGNORE, lacking)
        if used == 1:
            continue
        _sort(ids, weights, end, used)
        cells[kept] = cells[m]
        starts[kept] = end
        end += used
        kept += 1
    starts[kept] = end
    return kept


@jit
def _apportion(ids: Any, sums: Any, used: int, total: int, denominator: int, shares: Any) -> None:
    """Largest remainder: integer ``shares`` of ``denominator`` in proportion to ``sums``; ties to the lower id."""
    left = denominator
    for e in range(used):
        if total == FINEST:  # the usual case; a division by a variable costs as much as the rest of the cell
            shares[e] = sums[e] * denominator >> 32
            sums[e] = sums[e] * denominator & (FINEST - 1)
        else:
            shares[e] = sums[e] * denominator // total
            sums[e] = sums[e] * denominator % total
        left -= shares[e]
    while left > 0:
        best = 0
        for e in range(1, used):
            if sums[e] > sums[best] or (sums[e] == sums[best] and ids[e] < ids[best]):
                best = e
        shares[best] += 1
        sums[best] = -1
        left -= 1


@jit
def _compare_rows(hard: Any, y0: int, ny: int, differs: Any) -> None:
    """``differs`` [W]: nonzero where a column of rows y0 to y0 + ny - 1 holds more than one class (vectorises)."""
    top = hard[y0]
    differs[:] = 0
    for y in range(y0 + 1, y0 + ny):
        row = hard[y]
        for x in range(len(differs)):
            differs[x] |= row[x] ^ top[x]


@jit
def _uniform(top: Any, differs: Any, x0: int, nx: int) -> bool:
    """Whether columns x0 to x0 + nx - 1 hold one class, given their first row and ``_compare_rows``."""
    odd = differs[x0]
    for x in range(x0 + 1, x0 + nx):
        odd |= differs[x] | (top[x] ^ top[x0])
    return bool(odd == 0)


@jit
def _weigh_cell(hard: Any, y0: int, wy: Any, ny: int, x0: int, wx: Any, nx: int, ids: Any, sums: Any) -> int:
    """Sum the separable weights of one cell by class into ``ids`` and ``sums``; returns how many classes."""
    first = hard[y0, x0]
    used = 1
    ids[0] = first
    own = 0
    for a in range(ny):
        part = 0
        for b in range(nx):
            id = hard[y0 + a, x0 + b]
            if id == first:
                part += wx[b]
            elif wy[a] * wx[b]:
                used = _put(ids, sums, 0, used, id, wy[a] * wx[b])
        own += part * wy[a]
    sums[0] = own
    if own == 0:  # a first pixel of weight 0
        used -= 1
        ids[0], sums[0] = ids[used], sums[used]
    return used


@jit
def weigh_cells(
    hard: Any, fy: Any, ny: Any, wy: Any, fx: Any, nx: Any, wx: Any, total: int, denominator: int, base: Any, out: Any
) -> int:
    """Weigh every cell with separable integer weights; returns the number of entries written.

    ``out`` holds (cells, counts, ids, weights), sized by the caller; counts[0] returns the number of mixed cells.
    Where the entries do not fit, -1 is returned and the caller comes again with more room.
    """
    cells, counts, ids, weights = out
    h, w = base.shape
    widest = wy.shape[1] * wx.shape[1] + 1
    cid, csum, share = np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest, np.int64)
    differs = np.empty(hard.shape[1], np.uint16)
    end, mixed = 0, 0
    for i in range(h):
        _compare_rows(hard, fy[i], ny[i], differs)
        top = hard[fy[i]]
        for j in range(w):
            base[i, j] = top[fx[j]]
            if _uniform(top, differs, fx[j], nx[j]):
                continue
            used = _weigh_cell(hard, fy[i], wy[i], ny[i], fx[j], wx[j], nx[j], cid, csum)
            _apportion(cid, csum, used, total, denominator, share)
            _sort(cid, share, 0, used)
            while used > 1 and share[used - 1] == 0:
                used -= 1
            base[i, j] = cid[0]
            if used == 1:
                continue
            if end + used > len(ids) or mixed + 1 >= len(cells):
                return -1
            for e in range(used):  # a slice assignment costs more than the cell
                ids[end + e] = cid[e]
                weights[end + e] = share[e]
            cells[mixed] = i * w + j
            counts[mixed + 1] = used
            end += used
            mixed += 1
    counts[0] = mixed
    return end


@jit
def _one_class(base: Any, slot: Any, y0: int, x0: int, k: int) -> bool:
    """Whether k x k cells from (y0, x0) on, all within the label, hold one class and no other."""
    if y0 + k > base.shape[0] or x0 + k > base.shape[1]:
        return False
    odd = 0
    for y in range(y0, y0 + k):
        for x in range(x0, x0 + k):
            odd |= (base[y, x] ^ base[y0, x0]) | (slot[y, x] != -1)
    return bool(odd == 0)


@jit
def merge_cells(base: Any, slot: Any, starts: Any, ids: Any, weights: Any, k: int, unit: int, merged: Any) -> int:
    """Add up k x k cells of a soft label; cells beyond the border are void. Returns the number of entries.

    ``slot`` [h, w]: index into ``starts`` of a mixed cell, -1 of a uniform one (weight ``unit``).
    ``merged`` = (base, cells, starts, ids, weights) of the result; merged starts[0] returns the number of mixed cells.
    """
    mbase, mcells, mstarts, mids, mweights = merged
    h, w = base.shape
    oh, ow = mbase.shape
    end, mixed = 0, 0
    for i in range(oh):
        for j in range(ow):
            if _one_class(base, slot, i * k, j * k, k):
                mbase[i, j] = base[i * k, j * k]
                continue
            used = 0
            for y in range(i * k, i * k + k):
                for x in range(j * k, j * k + k):
                    if y >= h or x >= w:
                        used = _put(mids, mweights, end, used, IGNORE, unit)
                    elif slot[y, x] < 0:
                        used = _put(mids, mweights, end, used, base[y, x], unit)
                    else:
                        for e in range(starts[slot[y, x]], starts[slot[y, x] + 1]):
                            used = _put(mids, mweights, end, used, ids[e], weights[e])
            _sort(mids, mweights, end, used)
            mbase[i, j] = mids[end]
            if used > 1:
                mcells[mixed] = i * ow + j
                end += used
                mixed += 1
                mstarts[mixed] = end
    mstarts[0] = mixed
    return end
