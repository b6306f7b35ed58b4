"""Augmentation of an image and its sparse soft label together: flip, aligned crop, colour jitter.

Geometry works on the training grid, where image and label have the same size, so nothing is resampled here: the
choice of a scale is the stream's (`train.stream`). Padding is void in the label, never a class, and the model's mean
colour in the image. All randomness comes from the generator that is passed in, in a fixed order.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

import shards
from train.config import Augment, Jitter

U8 = npt.NDArray[np.uint8]
GREY = (124, 116, 104)  # ImageNet's mean colour, 0..255


def augment(
    image: U8,
    soft: shards.SoftLabel,
    config: Augment,
    rng: np.random.Generator,
    fill: tuple[int, int, int] = GREY,
) -> tuple[U8, shards.SoftLabel]:
    """Flip, crop and jitter one sample.

    Args:
        image: uint8 [h, w, 3].
        soft: its label of h x w cells.
        config: the recipe's section.
        rng: this sample's own generator.
        fill: the colour of padding.

    Returns:
        The image and the label, of `config.crop` cells where that is set.
    """
    if config.flip and rng.random() < 0.5:
        image, soft = np.asarray(cv2.flip(image, 1), np.uint8), soft.flip()
    if config.crop is not None:
        image, soft = crop(image, soft, config.crop, rng, fill)
    return jitter(np.ascontiguousarray(image), config.jitter, rng), soft


def crop(
    image: U8,
    soft: shards.SoftLabel,
    size: tuple[int, int],
    rng: np.random.Generator,
    fill: tuple[int, int, int] = GREY,
) -> tuple[U8, shards.SoftLabel]:
    """A window of `size` (height, width) cells at a random place; a smaller sample is grown at the bottom and right."""
    image, soft = pad(image, soft, size, fill)
    height, width = size
    y = int(rng.integers(0, image.shape[0] - height + 1))
    x = int(rng.integers(0, image.shape[1] - width + 1))
    return image[y : y + height, x : x + width], soft.crop(y, x, height, width)


def pad(
    image: U8, soft: shards.SoftLabel, size: tuple[int, int], fill: tuple[int, int, int] = GREY
) -> tuple[U8, shards.SoftLabel]:
    """Grow a sample to at least `size` (height, width): `fill` in the image, void in the label."""
    h, w = image.shape[:2]
    height, width = max(h, size[0]), max(w, size[1])
    if (h, w) == (height, width):
        return image, soft
    grown = np.empty((height, width, 3), np.uint8)
    grown[:] = fill
    grown[:h, :w] = image
    return grown, soft.pad(height, width)


def jitter(image: U8, config: Jitter, rng: np.random.Generator) -> U8:
    """Change brightness, contrast, saturation and hue of uint8 [h, w, 3], in this order (as torchvision defines them).

    A factor is uniform in [1 - x, 1 + x]; hue is shifted by a share of the colour circle uniform in [-x, x].
    """
    if config.brightness:
        image = _blend(image, np.zeros_like(image), _factor(config.brightness, rng))
    if config.contrast:
        mean = int(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() + 0.5)
        image = _blend(image, np.full_like(image, mean), _factor(config.contrast, rng))
    if config.saturation:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = _blend(image, np.asarray(grey, np.uint8), _factor(config.saturation, rng))
    if config.hue:
        image = _turn(image, float(rng.uniform(-config.hue, config.hue)))
    return image


def _factor(amount: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(1.0 - amount, 1.0 + amount))


def _blend(image: U8, other: U8, factor: float) -> U8:
    """factor * image + (1 - factor) * other, rounded and kept within 0..255."""
    return np.asarray(cv2.addWeighted(image, factor, other, 1.0 - factor, 0.0), np.uint8)


def _turn(image: U8, turns: float) -> U8:
    """Every hue moved by `turns` of the colour circle (OpenCV keeps hue at 256 steps a turn in HSV_FULL)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] = hsv[..., 0] + np.uint8(round(turns * 256) % 256)  # uint8 wraps round, as a circle should
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)
