"""Label maps for the benchmarks: procedural streets, and procedural rooms of 150 classes."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from prep.scenes import write as scenes
from prep.taxonomy import load_remap
from shards import IGNORE

U16 = npt.NDArray[np.uint16]


def street(number: int, size: tuple[int, int] = (1024, 2048)) -> U16:
    """The 19-class label of a procedural street, uint16 [H, W]."""
    ids = scenes.scene(0, "train", number, size)[1]
    return load_remap("cityscapes-34_to_19", "cityscapes").apply(ids, "bench")


def regions(number: int, classes: int, size: tuple[int, int], count: int) -> U16:
    """`count` regions with wavy borders, uint16 [H, W]: the nearest of random seeds after a smooth warp.

    An image shows about half as many classes as it has regions, out of `classes`; a strip at the bottom is void.
    """
    rng = np.random.default_rng([7, number])
    h, w = size
    grid = [cv2.resize(rng.normal(0, 0.06 * h, (9, 9)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)]
    grid.append(cv2.resize(rng.normal(0, 0.06 * h, (9, 9)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC))
    y, x = np.mgrid[:h, :w].astype(np.float32)
    y, x = y + grid[0], x + grid[1]
    reach = rng.lognormal(0, 0.5, count)  # some regions are large
    seeds = rng.uniform((0, 0), (h, w), (count, 2))
    names = rng.choice(classes, min(classes, max(2, count // 2)), replace=False)
    best, owner = np.full(size, np.inf, np.float32), np.zeros(size, np.int64)
    for i, (a, b) in enumerate(seeds):
        distance = ((y - np.float32(a)) ** 2 + (x - np.float32(b)) ** 2) / np.float32(reach[i])
        nearer = distance < best
        best[nearer], owner[nearer] = distance[nearer], i
    hard = names[rng.integers(0, len(names), count)][owner].astype(np.uint16)
    hard[h - h // 50 :, : w // 3] = IGNORE
    return hard
