"""Compiled kernels that undo PNG's filters (PNG specification, section 9), GIL released.

Filtered pixels are, row by row, a byte that names the row's filter, then the row's bytes. A row is undone in the place
of the one above it, which its filter refers to: where Up or Paeth add nothing, nothing has to be written. Rows of
labels are mostly that, so their Paeth looks at eight bytes at a time.

Import this inside functions: it brings numba with it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from shards.kernels import jit

LITTLE = sys.byteorder == "little"  # PNG is big
NONE, SUB, UP, AVERAGE, PAETH = range(5)


@jit
def _copy(source: Any, target: Any) -> None:
    """Copy all of one row to the beginning of another; ten times as fast as assigning a slice, or from an offset."""
    for x in range(len(source)):
        target[x] = source[x]


@jit
def grey8(filtered: Any, out: Any) -> int:
    """8-bit grey [H * (1 + W)] -> uint16 [H, W], 255 as 65535; the largest other value, -1 for none, -2: damaged."""
    height, width = out.shape
    line, row = np.zeros(-(-width // 8) * 8, np.uint8), np.zeros(width, np.uint8)
    words = line.view(np.uint64)
    most = np.uint8(0)
    for y in range(height):
        start = y * (width + 1)
        _copy(filtered[start + 1 : start + 1 + width], line)
        if not _undo(filtered[start], line, words, row, 1):
            return -2
        for x in range(width):
            most = max(most, np.uint8(row[x] + np.uint8(1)))  # void wraps round to 0
            out[y, x] = 65535 if row[x] == 255 else row[x]
    return int(most) - 1


@jit
def grey16(filtered: Any, out: Any) -> int:
    """16-bit grey [H * (1 + 2 W)] -> uint16 [H, W]; the largest value besides 65535, -1 for none, -2: damaged."""
    height, width = out.shape
    line, row = np.zeros(-(-width // 4) * 8, np.uint8), np.zeros(2 * width, np.uint8)
    words, pixels = line.view(np.uint64), row.view(np.uint16)
    most = np.uint16(0)
    for y in range(height):
        start = y * (2 * width + 1)
        _copy(filtered[start + 1 : start + 1 + 2 * width], line)
        if not _undo(filtered[start], line, words, row, 2):
            return -2
        for x in range(width):
            value = np.uint16(pixels[x] >> 8 | pixels[x] << 8) if LITTLE else pixels[x]
            most = max(most, np.uint16(value + np.uint16(1)))
            out[y, x] = value
    return int(most) - 1


@jit
def colour8(filtered: Any, out: Any) -> int:
    """8-bit RGB [H * (1 + 3 W)] -> uint8 [H, 3 W]; 0, or -2: damaged."""
    height, width = out.shape
    row = np.zeros(width, np.uint8)
    for y in range(height):
        start = y * (width + 1)
        kind, line = filtered[start], filtered[start + 1 : start + 1 + width]
        if kind == PAETH:
            _paeth_colour(line, row)
        elif not _undo_simple(kind, line, row, 3):
            return -2
        _copy(row, out[y])
    return 0


@jit
def _undo(kind: int, line: Any, words: Any, row: Any, bpp: int) -> bool:
    """Undo one row of grey, ``line`` its filtered bytes, ``words`` the same eight at a time; False: no such filter."""
    if kind == PAETH:
        _paeth_grey(line, words, row, bpp)
        return True
    return bool(_undo_simple(kind, line, row, bpp))


@jit
def _undo_simple(kind: int, line: Any, row: Any, bpp: int) -> bool:
    """Undo all filters but Paeth in ``row``: the row above goes in, this one comes out. False: no such filter."""
    width = len(row)
    if kind == NONE:
        _copy(line[:width], row)
    elif kind == SUB:
        for x in range(width):
            row[x] = line[x] + (row[x - bpp] if x >= bpp else 0)
    elif kind == UP:
        for x in range(width):
            row[x] += line[x]
    elif kind == AVERAGE:
        for x in range(width):
            left = np.int32(row[x - bpp]) if x >= bpp else np.int32(0)
            row[x] = line[x] + ((left + np.int32(row[x])) >> 1)
    else:
        return False
    return True


@jit
def _nearest(a: Any, b: Any, c: Any) -> Any:
    """Of left, above and upper left the one nearest to a + b - c, in this order among equals.

    Let low <= high be a and b. Where c lies between them, a + b - c is as far from high as c is from low, and the other
    way round: high is nearest if high - c >= 2 (c - low), low if c - low >= 2 (high - c), else c. Outside, c > high
    meets the second and c < low the first, which are then right as well. Written with 3 c - a - b they need no branch.
    """
    low, high, turn = min(a, b), max(a, b), 3 * c - a - b
    inner = low if turn >= high else c
    return high if turn <= low else inner


@jit
def _paeth_grey(line: Any, words: Any, row: Any, bpp: int) -> None:
    """Undo Paeth for pixels of one or two bytes.

    Where the left pixel equals the upper left one, the pixel above is the prediction; as long as the filtered bytes are
    zero from there on, that holds for the next pixel too, and the row stays as it is.
    """
    width, back = len(row), bpp - 1
    left, upper = np.zeros(2, np.int32), np.zeros(2, np.int32)
    skipped, same = False, True
    for w in range(len(words)):
        if same and words[w] == 0:
            skipped = True
            continue
        first = 8 * w
        if skipped:
            for i in range(bpp):
                left[i] = upper[i] = row[first - bpp + i]
            skipped = False
        for x in range(first, min(first + 8, width)):
            i = x & back
            above = np.int32(row[x])
            left[i] = (np.int32(line[x]) + _nearest(left[i], above, upper[i])) & 255
            upper[i] = above
            row[x] = left[i]
        same = left[0] == upper[0] and left[1] == upper[1]


@jit
def _paeth_colour(line: Any, row: Any) -> None:
    """Undo Paeth for pixels of three bytes: three chains that the processor follows side by side."""
    zero, mask = np.int32(0), np.int32(255)
    a0, a1, a2, c0, c1, c2 = zero, zero, zero, zero, zero, zero
    for x in range(0, len(row), 3):
        b0, b1, b2 = np.int32(row[x]), np.int32(row[x + 1]), np.int32(row[x + 2])
        a0 = (np.int32(line[x]) + _nearest(a0, b0, c0)) & mask
        a1 = (np.int32(line[x + 1]) + _nearest(a1, b1, c1)) & mask
        a2 = (np.int32(line[x + 2]) + _nearest(a2, b2, c2)) & mask
        row[x], row[x + 1], row[x + 2] = a0, a1, a2
        c0, c1, c2 = b0, b1, b2
