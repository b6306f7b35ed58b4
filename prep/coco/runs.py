"""Masks as runs: polygons and COCO's run-length codes -> sorted, disjoint (start, end) of pixels counted down columns.

Pixel (x, y) of an image of height H has the number x * H + y, as in COCO's run-length code. A polygon covers exactly
the pixels that pycocotools' `frPyObjects` gives it: the border is drawn on a grid five times as fine, rounding as C's
casts do, and a pixel column's border points toggle inside and outside. Only those points of the fine border that fall
on a column's centre matter, so only those are computed here, in closed form along each edge.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import SampleError
from shards.kernels import jit

Runs = NDArray[np.int32]
FARTHEST = float(1 << 20)  # a coordinate beyond this is an error, and no integer below overflows
MOST = 1 << 24  # border points of one annotation; real ones have some thousands
_FINE = 5  # COCO's subpixels a pixel; a column's centre is the third of them
_FULL, _NEGATIVE, _BAD_CODE = -1, -2, -3


@jit
def _columns(low: int, high: int, width: int) -> tuple[int, int]:
    """First and last column whose centre lies between fine positions `low` and `high` - 1, clipped to the image."""
    first = max((low - 2 + _FINE - 1) // _FINE, 0)
    last = min((high - 1 - 2) // _FINE, width - 1)
    return first, last


@jit
def _row(fine: int, height: int) -> int:
    """The first row whose centre lies at or below the fine position, as COCO rounds and clips it."""
    y = (float(fine) + 0.5) / _FINE - 0.5
    return math.ceil(min(max(y, 0.0), float(height)))


@jit
def _fine_points(xy: Any, starts: Any, x: Any, y: Any) -> bool:
    """Scale coordinates to the fine grid, each polygon closed; False where one is not finite or far outside."""
    at = 0
    for p in range(len(starts) - 1):
        first = at
        for j in range(starts[p], starts[p + 1]):
            if not (abs(xy[2 * j]) <= FARTHEST and abs(xy[2 * j + 1]) <= FARTHEST):
                return False
            x[at], y[at] = int(_FINE * xy[2 * j] + 0.5), int(_FINE * xy[2 * j + 1] + 0.5)
            at += 1
        x[at], y[at] = x[first], y[first]
        at += 1
    return True


@jit
def _count(x: Any, width: int, per_column: Any) -> int:
    """How often one closed polygon's border crosses each column's centre line, shifted by one; returns the sum."""
    total = 0
    for j in range(len(x) - 1):
        first, last = _columns(min(x[j], x[j + 1]), max(x[j], x[j + 1]), width)
        for column in range(first, last + 1):
            per_column[column + 1] += 1
        total += max(last - first + 1, 0)
        if total > MOST:
            break
    return total


@jit
def _steep(c: int, xs: int, slope: float, length: int) -> int:
    """The step t along a steep edge between which and t + 1 the border passes from fine column c to c + 1 or back."""
    t = min(max(int((c + 0.5 - xs) / slope), 0), length - 1)
    if slope > 0:
        while t > 0 and int(xs + slope * t + 0.5) > c:
            t -= 1
        while int(xs + slope * (t + 1) + 0.5) <= c:
            t += 1
    else:
        while t > 0 and int(xs + slope * t + 0.5) <= c:
            t -= 1
        while int(xs + slope * (t + 1) + 0.5) > c:
            t += 1
    return t


@jit
def _cross(x: Any, y: Any, width: int, height: int, ends: Any, rows: Any) -> None:
    """Put the row of every crossing into its column's part of `rows`; `ends` moves along as they fill."""
    for j in range(len(x) - 1):
        xs, xe, ys, ye = x[j], x[j + 1], y[j], y[j + 1]
        dx, dy = abs(xe - xs), abs(ye - ys)
        if dx == 0:
            continue
        if (dx >= dy and xs > xe) or (dx < dy and ys > ye):  # COCO draws an edge from its lower end
            xs, xe, ys, ye = xe, xs, ye, ys
        first, last = _columns(min(xs, xe), max(xs, xe), width)
        slope = (ye - ys) / dx if dx >= dy else (xe - xs) / dy
        for column in range(first, last + 1):
            c = _FINE * column + 2
            if dx >= dy:
                t = c - xs
                fine = min(int(ys + slope * t + 0.5), int(ys + slope * (t + 1) + 0.5))
            else:
                fine = ys + _steep(c, xs, slope, dy)
            rows[ends[column]] = _row(fine, height)
            ends[column] += 1


@jit
def _toggle(starts: Any, rows: Any, height: int, out: Any) -> int:
    """Each column's rows, sorted, in pairs -> runs (start, end), touching ones joined; returns how many."""
    found = 0
    for column in range(len(starts) - 1):
        for i in range(starts[column] + 1, starts[column + 1]):  # insertion sort: a column has few
            row = rows[i]
            j = i - 1
            while j >= starts[column] and rows[j] > row:
                rows[j + 1] = rows[j]
                j -= 1
            rows[j + 1] = row
        for i in range(starts[column], starts[column + 1] - 1, 2):
            start, end = column * height + rows[i], column * height + rows[i + 1]
            if end == start:
                continue
            if found and out[found - 1, 1] == start:
                out[found - 1, 1] = end
            else:
                out[found, 0], out[found, 1] = start, end
                found += 1
    return found


@jit
def _polygon(x: Any, y: Any, height: int, width: int) -> tuple[Any, int]:
    """Runs of one closed polygon on the fine grid, and how many; -1 where it has too many border points."""
    starts = np.zeros(width + 1, np.int64)
    total = _count(x, width, starts)
    if total > MOST:
        return np.empty((0, 2), np.int32), _FULL
    for column in range(width):
        starts[column + 1] += starts[column]
    ends = starts.copy()
    rows = np.empty(total, np.int32)
    _cross(x, y, width, height, ends, rows)
    out = np.empty((total // 2 + 1, 2), np.int32)
    return out, _toggle(starts, rows, height, out)


@jit
def _join(runs: Any) -> Any:
    """The union of runs that may overlap, sorted; touching ones joined."""
    order = np.sort((runs[:, 0].astype(np.int64) << 32) | runs[:, 1])
    out = np.empty_like(runs)
    found = 0
    for key in order:
        start, end = key >> 32, key & 0xFFFFFFFF
        if found and start <= out[found - 1, 1]:
            out[found - 1, 1] = max(out[found - 1, 1], end)
        else:
            out[found, 0], out[found, 1] = start, end
            found += 1
    return out[:found]


@jit
def _polygons(xy: Any, starts: Any, height: int, width: int) -> tuple[Any, int]:
    """Runs of the union of polygons and 0, or the reason why there are none."""
    count = len(starts) - 1
    x, y = np.empty(len(xy) // 2 + count, np.int64), np.empty(len(xy) // 2 + count, np.int64)
    if not _fine_points(xy, starts, x, y):
        return np.empty((0, 2), np.int32), _BAD_CODE
    if count == 1:
        runs, found = _polygon(x, y, height, width)
        return runs[: max(found, 0)], min(found, 0)
    union = np.empty((0, 2), np.int32)
    for p in range(count):
        first, last = starts[p] + p, starts[p + 1] + p + 1
        runs, found = _polygon(x[first:last], y[first:last], height, width)
        if found < 0 or len(union) + found > MOST:
            return union, _FULL
        union = _join(np.concatenate((union, runs[:found])))
    return union, 0


@jit
def _expand(code: Any, counts: Any) -> int:
    """COCO's compressed string -> counts; returns how many, or the reason why it is none."""
    found, at = 0, 0
    while at < len(code):
        value, shift, more = 0, 0, True
        while more:
            if at == len(code) or code[at] < 48 or code[at] > 111 or shift > 30:
                return _BAD_CODE
            c = int(code[at]) - 48
            value |= (c & 31) << shift
            shift += 5
            more = c & 32 != 0
            at += 1
            if not more and c & 16:
                value |= -1 << shift
        if found > 2:
            value += counts[found - 2]
        if value < 0:
            return _NEGATIVE
        counts[found] = value
        found += 1
    return found


@jit
def _fill(counts: Any, pixels: int) -> tuple[Any, int, int]:
    """Counts of zeros and ones in turn -> (runs, 0 or the reason why there are none, pixels that the counts cover)."""
    out = np.empty((len(counts) // 2 + 1, 2), np.int32)
    at, found = 0, 0
    for i in range(len(counts)):
        if counts[i] < 0 or counts[i] > pixels - at:
            return out[:0], _NEGATIVE if counts[i] < 0 else _FULL, at
        if i % 2 and counts[i]:
            if found and out[found - 1, 1] == at:
                out[found - 1, 1] = at + counts[i]
            else:
                out[found, 0], out[found, 1] = at, at + counts[i]
                found += 1
        at += counts[i]
    return out[:found], 0 if at == pixels else _FULL, at


@jit
def _fill_text(code: Any, pixels: int) -> tuple[Any, int, int]:
    """`_fill` of COCO's compressed text."""
    counts = np.empty(len(code), np.int64)
    found = _expand(code, counts)
    if found < 0:
        return np.empty((0, 2), np.int32), found, 0
    runs, why, covered = _fill(counts[:found], pixels)
    return runs, why, covered


def polygon_runs(polygons: list[list[float]], height: int, width: int, where: str) -> Runs:
    """Runs int32 [n, 2] of the union of polygons [x0, y0, x1, y1, ...] in pixels.

    Raises:
        SampleError: no polygon, fewer than three points, a coordinate without its pair, not finite or far outside.
    """
    lengths = [len(polygon) for polygon in polygons]
    if not lengths or min(lengths) < 6 or any(length % 2 for length in lengths):
        raise SampleError(f"{where}: {_why_no_polygon(lengths)}")
    flat = polygons[0] if len(polygons) == 1 else [value for polygon in polygons for value in polygon]
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.array(lengths) // 2, out=starts[1:])
    runs, why = _polygons(np.array(flat, np.float64), starts, height, width)
    if why == _BAD_CODE:
        raise SampleError(f"{where}: polygon with a coordinate beyond {FARTHEST:.0f} pixels or not finite")
    if why == _FULL:
        raise SampleError(f"{where}: polygons with more than {MOST} border points")
    found: Runs = runs
    return found


def _why_no_polygon(lengths: list[int]) -> str:
    odd = [length for length in lengths if length % 2]
    if odd:
        return f"polygon with {odd[0]} numbers; expected x and y in pairs"
    if not lengths:
        return "no polygon; expected at least one"
    return f"polygon with {min(lengths) // 2} points; expected at least 3"


def rle_runs(counts: str | list[int], size: tuple[int, int], height: int, width: int, where: str) -> Runs:
    """Runs int32 [n, 2] of a run-length code, compressed (text) or not (numbers).

    Raises:
        SampleError: the code is of another size, does not fill it exactly, is negative, or is no such text.
    """
    if size != (height, width):
        raise SampleError(f"{where}: run-length code of {size[1]}x{size[0]} pixels; its image has {width}x{height}")
    pixels = height * width
    if isinstance(counts, str):
        runs, why, covered = _fill_text(np.frombuffer(counts.encode("utf-8", "replace"), np.uint8), pixels)
    else:
        runs, why, covered = _fill(_numbers(counts, where), pixels)
    if why:
        raise SampleError(f"{where}: {_why_no_code(why, covered, pixels)}")
    found: Runs = runs
    return found


def _why_no_code(why: int, covered: int, pixels: int) -> str:
    if why == _NEGATIVE:
        return "run-length code with a negative count"
    if why == _BAD_CODE:
        return "run-length code is no compressed text; expected COCO's"
    return f"run-length code does not fill its {pixels} pixels (off after {covered}); expected all of them, once"


def _numbers(counts: list[int], where: str) -> NDArray[np.int64]:
    try:
        return np.array(counts, np.int64)
    except OverflowError:
        raise SampleError(f"{where}: run-length code with a count beyond 64 bits") from None
