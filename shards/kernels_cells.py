"""Compiled kernels that move the cells of a soft label (``shards.softlabel``), GIL released.

Import this inside functions: it brings numba with it.
"""

from __future__ import annotations

from typing import Any

from shards.classes import IGNORE
from shards.kernels import jit


@jit
def mirror(cells: Any, w: int, out_cells: Any, chosen: Any) -> None:
    """Mirror cells in rows of w: ``out_cells``, rising again, and ``chosen``, their places in ``cells``."""
    begin = 0
    while begin < len(cells):
        row_start = cells[begin] // w * w
        end = begin + 1
        while end < len(cells) and cells[end] < row_start + w:
            end += 1
        for m in range(begin, end):
            to = begin + end - 1 - m
            out_cells[to] = 2 * row_start + w - 1 - cells[m]
            chosen[to] = m
        begin = end


@jit
def window(cells: Any, first: int, width: int, y: int, x: int, w: int, out_cells: Any, chosen: Any) -> int:
    """Of ``cells``, all in rows from y on, those in columns x to x + w - 1, by their places in the window.

    ``chosen`` are their places in a list that ``cells`` stand in from ``first`` on. Returns how many.
    """
    found = 0
    for m in range(len(cells)):
        row = cells[m] // width
        column = cells[m] - row * width - x
        if 0 <= column < w:
            out_cells[found] = (row - y) * w + column
            chosen[found] = first + m
            found += 1
    return found


@jit
def count_chosen(starts: Any, chosen: Any, out_starts: Any) -> None:
    """Where the entries of the chosen cells begin when they stand one after the other, ``out_starts`` [n + 1]."""
    out_starts[0] = 0
    for n in range(len(chosen)):
        out_starts[n + 1] = out_starts[n] + starts[chosen[n] + 1] - starts[chosen[n]]


@jit
def take(starts: Any, ids: Any, weights: Any, chosen: Any, out_starts: Any, out_ids: Any, out_weights: Any) -> None:
    """Copy the entries of the chosen cells to where ``out_starts`` says."""
    for n in range(len(chosen)):
        shift = starts[chosen[n]] - out_starts[n]
        for e in range(out_starts[n], out_starts[n + 1]):
            out_ids[e] = ids[e + shift]
            out_weights[e] = weights[e + shift]


@jit
def top_planes(base: Any, cells: Any, starts: Any, ids: Any, weights: Any, whole: Any, out: Any) -> None:
    """Write all of ``out`` = (ids, weights), both uint16 [k, h * w]: ``SoftLabel.topk``; ``whole``: the denominator."""
    out_ids, out_weights = out
    for p in range(len(out_ids)):
        plane_ids, plane_weights = out_ids[p], out_weights[p]
        for x in range(len(base)):
            plane_ids[x] = base[x] if p == 0 else IGNORE
            plane_weights[x] = whole if p == 0 else 0
    for m in range(len(cells)):
        for p in range(min(len(out_ids), starts[m + 1] - starts[m])):
            out_ids[p, cells[m]] = ids[starts[m] + p]
            out_weights[p, cells[m]] = weights[starts[m] + p]
