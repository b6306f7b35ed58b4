"""Integer filter weights along one axis: what each output cell takes from which source pixels.

Both axes of a separable filter come from here, so label and image share one definition. Weights are integers over
one denominator an axis: the exact one where it is small (bilinear at 1/2^n: 2), else 2^16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FINE = 1 << 16  # the denominator where no small exact one exists


@dataclass(frozen=True)
class AxisWeights:
    """Taps of one axis.

    Args:
        first: int32 [m], index of the first source pixel of each output cell.
        count: int32 [m], how many pixels in a row it takes.
        weights: int64 [m, t], their weights, 0 beyond ``count``; each row sums to ``denominator``.
        denominator: what each row sums to.
    """

    first: npt.NDArray[np.int32]
    count: npt.NDArray[np.int32]
    weights: npt.NDArray[np.int64]
    denominator: int


@lru_cache(maxsize=64)
def axis_weights(source: int, target: int, filter: str) -> AxisWeights:
    """Weights for resizing ``source`` pixels to ``target`` cells.

    ``bilinear``: torch ``interpolate(mode="bilinear", align_corners=False)``; ``triangle``: the same with
    ``antialias=True``. Half-pixel centres, borders as torch treats them.
    """
    if source == target:
        ones = np.ones((target, 1), np.int64)
        return AxisWeights(np.arange(target, dtype=np.int32), np.ones(target, np.int32), ones, 1)
    if filter == "bilinear":
        return _bilinear(source, target)
    return _triangle(source, target)


def _bilinear(source: int, target: int) -> AxisWeights:
    """Two taps a cell at src = (i + 1/2) * source / target - 1/2, worked out in integers over 2 * target."""
    whole = 2 * target
    position = np.maximum((2 * np.arange(target, dtype=np.int64) + 1) * source - target, 0)
    low = np.minimum(position // whole, source - 1)
    share = np.where(low + 1 < source, position - low * whole, 0)  # at the last pixel there is no second tap
    shrink = math.gcd(whole, *map(int, share))
    denominator, share = whole // shrink, share // shrink
    if denominator > 255:
        denominator, share = FINE, _mirrored((share * FINE + denominator // 2) // denominator, share, FINE)
    weights = np.stack([denominator - share, share], axis=1)
    count = np.where(share > 0, 2, 1).astype(np.int32)
    return AxisWeights(low.astype(np.int32), count, weights, denominator)


def _mirrored(rounded: npt.NDArray[np.int64], exact: npt.NDArray[np.int64], whole: int) -> npt.NDArray[np.int64]:
    """Give the second half the mirror image of the first, so that flipping commutes with resizing."""
    half = len(rounded) // 2
    out = rounded.copy()
    for i in range(half):
        j = len(out) - 1 - i
        out[j] = whole - out[i] if exact[j] > 0 and exact[i] > 0 else out[j]
    return out


def _triangle(source: int, target: int) -> AxisWeights:
    """The antialiased triangle: support max(scale, 1) source pixels to each side, weights normalised."""
    scale = source / target
    support = max(scale, 1.0)
    rows = [_triangle_row(i, scale, support, source) for i in range((target + 1) // 2)]
    rows += [(source - first - len(w), w[::-1]) for first, w in reversed(rows[: target // 2])]
    widest = max(len(w) for _, w in rows)
    weights = np.zeros((target, widest), np.int64)
    for i, (_, w) in enumerate(rows):
        weights[i, : len(w)] = w
    first = np.array([f for f, _ in rows], np.int32)
    count = np.array([len(w) for _, w in rows], np.int32)
    return AxisWeights(first, count, weights, FINE)


def _triangle_row(i: int, scale: float, support: float, source: int) -> tuple[int, npt.NDArray[np.int64]]:
    """First tap and integer weights (sum FINE) of output cell i."""
    centre = (i + 0.5) * scale
    first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), source)
    raw = np.maximum(0.0, 1.0 - np.abs((np.arange(first, last) - centre + 0.5) / support))
    weights = np.rint(raw / raw.sum() * FINE).astype(np.int64)
    surplus = FINE - int(weights.sum())
    mirror_symmetric = len(weights) % 2 == 0 and np.array_equal(weights, weights[::-1])
    if mirror_symmetric:  # the middle cell of an odd size: keep it its own mirror image
        weights[len(weights) // 2 - 1] += surplus // 2
        weights[len(weights) // 2] += surplus // 2
    else:
        weights[len(weights) // 2 if np.array_equal(weights, weights[::-1]) else int(weights.argmax())] += surplus
    return first, weights
