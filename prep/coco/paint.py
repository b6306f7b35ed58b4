"""Painting: runs of many annotations -> one map of owners -> class indices, and who claimed whose pixels.

The first annotation in the order keeps a pixel; every later claim to it is counted against its owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prep.coco.runs import Runs
from prep.raw import UInt16
from shards.kernels import jit

MOST = 65_000  # annotations of an image; owners are 16-bit numbers
_TILE = 32


@dataclass(frozen=True)
class Painted:
    """An image painted.

    Attributes:
        hard: uint16 [H, W].
        kept: int64 [n], pixels that each annotation kept, in the order in which the annotations were given.
        contested: int64 [m, 3], (owner, later claimant, pixels), by position among the annotations given.
    """

    hard: UInt16
    kept: NDArray[np.int64]
    contested: NDArray[np.int64]


@jit
def _claim(owners: Any, runs: Any, starts: Any, order: Any, kept: Any) -> Any:
    """Paint annotations by `order` into `owners` [W * H] (0 = nobody, else position + 1); returns what is contested."""
    contested = np.empty((64, 3), np.int64)
    found = 0
    lost = np.zeros(len(kept) + 1, np.int64)
    for position in order:
        me = position + 1
        touched = False
        for r in range(starts[position], starts[position + 1]):
            for p in range(runs[r, 0], runs[r, 1]):
                if owners[p] == 0:
                    owners[p] = me
                    kept[position] += 1
                else:
                    lost[owners[p]] += 1
                    touched = True
        if not touched:
            continue
        for other in range(1, len(lost)):
            if lost[other]:
                if found == len(contested):
                    contested = np.concatenate((contested, np.empty_like(contested)))
                contested[found, 0], contested[found, 1], contested[found, 2] = other - 1, position, lost[other]
                lost[other] = 0
                found += 1
    return contested[:found]


@jit
def _turn(owners: Any, classes: Any, hard: Any) -> None:
    """Owners counted down columns -> classes [H, W], in tiles that fit the cache."""
    height, width = hard.shape
    for y0 in range(0, height, _TILE):
        for x0 in range(0, width, _TILE):
            for y in range(y0, min(y0 + _TILE, height)):
                for x in range(x0, min(x0 + _TILE, width)):
                    hard[y, x] = classes[owners[x * height + y]]


def paint(
    runs: Sequence[Runs], order: NDArray[np.int64], classes: Sequence[int], size: tuple[int, int], void: int
) -> Painted:
    """Paint annotations over each other.

    Args:
        runs: of each annotation, disjoint within it.
        order: int64, positions of the annotations that are painted; the first keeps what it claims.
        classes: the value of each annotation.
        size: height and width.
        void: the value of pixels that nobody claims.
    """
    starts = np.zeros(len(runs) + 1, np.int64)
    np.cumsum([len(part) for part in runs], out=starts[1:])
    flat = np.concatenate(runs) if len(runs) else np.empty((0, 2), np.int32)
    owners, kept = np.zeros(size[0] * size[1], np.uint16), np.zeros(len(runs), np.int64)
    contested = _claim(owners, flat, starts, order, kept)
    hard = np.empty(size, np.uint16)
    _turn(owners, np.array([void, *classes], np.uint16), hard)
    return Painted(hard, kept, contested)
