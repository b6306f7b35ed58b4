"""Procedural pictures of up to 1,320 classes, long-tailed, with thin and small objects, in the layout of `folder`.

    write_many_classes(tmp_path / "many", classes=1284, images={"train": 2000, "val": 200})

A class is two colours in stripes, the first half as wide as the second, of one direction and width: no single pixel
tells it, its neighbours do. Which classes a picture shows follows Zipf's law. Regions fill the picture; boxes, discs
and bars three pixels wide lie on top; one pixel in a hundred is void. Equal arguments give equal files.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.fakes import save

VOID = 65535
_COLOURS, _PERIODS, _ANGLES = 11, (5, 8, 12), 4
MOST = _COLOURS * (_COLOURS - 1) * len(_PERIODS) * _ANGLES
_ZIPF_SHIFT = 20  # flattens the head: the most frequent class is 20 times as frequent as the 400th


def write_many_classes(
    root: Path,
    classes: int = 1284,
    images: Mapping[str, int] | None = None,
    size: tuple[int, int] = (96, 96),
    seed: int = 0,
) -> Path:
    """classes.txt, images/<split>/*.png and labels/<split>/*.png (16 bits); returns `root`."""
    if not 2 <= classes <= MOST:
        raise ValueError(f"{classes} classes; expected 2 to {MOST}")
    (root).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"stripes {number:04d}\n" for number in range(classes)))
    for split, count in (images or {"train": 2000, "val": 200}).items():
        for number in range(count):
            rng = np.random.default_rng([seed, number, *split.encode()])
            label = draw_label(rng, classes, size)
            save(draw_picture(rng, label), root / "images" / split / f"{number:05d}.png")
            dtype = np.uint16 if classes > 255 else np.uint8
            void = np.where(rng.random(size) < 0.01, VOID if dtype == np.uint16 else 255, label)
            save(void.astype(dtype), root / "labels" / split / f"{number:05d}.png")
    return root


def frequencies(classes: int) -> NDArray[np.float64]:
    """How often each class is drawn, float64 [classes], in an order that has nothing to do with appearance."""
    ranks = np.random.default_rng(classes).permutation(classes)
    weights = 1.0 / (ranks + _ZIPF_SHIFT)
    return weights / weights.sum()


def draw_label(rng: np.random.Generator, classes: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """A label int64 [H, W]: three regions and ten objects."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    chosen = rng.choice(classes, 13, p=frequencies(classes))
    centres = rng.random((3, 2)) * size
    nearest = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1)
    label = chosen[:3][nearest]
    for number, index in enumerate(chosen[3:]):
        at_y, at_x = rng.random(2) * size
        extent = rng.uniform(5, 16)
        if number % 3 == 0:
            inside = (np.abs(y - at_y) < extent) & (np.abs(x - at_x) < extent * rng.uniform(0.5, 1.5))
        elif number % 3 == 1:
            inside = (y - at_y) ** 2 + (x - at_x) ** 2 < (extent * 0.8) ** 2
        else:
            angle = rng.uniform(0, np.pi)
            across = (y - at_y) * np.cos(angle) - (x - at_x) * np.sin(angle)
            inside = np.abs(across) < 1.5
        label = np.where(inside, index, label)
    return label


def draw_picture(rng: np.random.Generator, label: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The picture uint8 [H, W, 3] of a label, with noise."""
    y, x = np.mgrid[0 : label.shape[0], 0 : label.shape[1]]
    first, second, period, angle = appearance(label)
    along = np.cos(angle) * x + np.sin(angle) * y
    which = (along + rng.integers(0, 100)) % period < period / 3  # so that swapped colours are another class
    colours = _palette()
    picture = np.where(which[..., None], colours[first], colours[second])
    return np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


def appearance(
    label: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Of class indices: two colour indices, the stripes' period in pixels and their angle in radians."""
    pair, rest = label % (_COLOURS * (_COLOURS - 1)), label // (_COLOURS * (_COLOURS - 1))
    first = pair // (_COLOURS - 1)
    second = (first + 1 + pair % (_COLOURS - 1)) % _COLOURS
    period = np.array(_PERIODS)[rest % len(_PERIODS)]
    return first, second, period, (rest // len(_PERIODS)) * np.pi / _ANGLES


def _palette() -> NDArray[np.float64]:
    """Ten hues of three lightnesses, and white; float64 [colours, 3] in 0..255."""
    hues = [colorsys.hls_to_rgb(i / 10, (0.3, 0.5, 0.7)[i % 3], 0.9) for i in range(_COLOURS - 1)]
    return np.array([*hues, (1.0, 1.0, 1.0)]) * 255
