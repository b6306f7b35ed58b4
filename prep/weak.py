"""Image-level labels from pixel labels (`--weak`): which classes an image, or each window of it, shows.

    seg-prep ade20k --root /data/ADEChallengeData2016 --out data/wa150 --weak
    seg-prep ade20k --root /data/ADEChallengeData2016 --out data/wa150-crops --weak --weak-crop 512

Whole images are the setting that "image-level label" promises. LarvSeg's release takes its labels from the mask after
crop and resize, which says more of where a class is; `--weak-crop` stores that: windows that cover the image, each with
its own classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prep.raw import UInt16
from shards import IGNORE


@dataclass(frozen=True)
class Window:
    """A part of an image: rows `top` to `top + height`, columns `left` to `left + width`, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """To index an array [H, W, ...]."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def shown_classes(hard: UInt16) -> tuple[int, ...]:
    """The class indices of a hard label uint16 [H, W], ascending, void left out."""
    found = np.flatnonzero(np.bincount(hard.ravel(), minlength=IGNORE + 1)[:IGNORE])
    return tuple(int(index) for index in found)


def windows(height: int, width: int, crop: int) -> list[Window]:
    """As few windows of `crop` x `crop` pixels as cover an image, evenly spread; row by row.

    A side shorter than `crop` is covered by one window of its own length.
    """
    tops, leftmost = _starts(height, crop), _starts(width, crop)
    return [Window(top, left, min(crop, height), min(crop, width)) for top in tops for left in leftmost]


def _starts(length: int, crop: int) -> list[int]:
    """Where the windows along one side begin: the first at 0, the last flush with the end."""
    count = max(1, -(-length // crop))
    return [round(number * (length - crop) / (count - 1)) for number in range(count)] if count > 1 else [0]
