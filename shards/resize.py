"""The image side of a paired resize: library resizers whose weights equal the label side's.

box: OpenCV INTER_AREA at integer factors; bilinear: OpenCV INTER_LINEAR (no antialiasing, half-pixel centres);
triangle: Pillow BILINEAR (antialiased). tests/shards/test_resize.py pushes one-hot planes through each and compares.
The libraries load when they are first used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shards.errors import SettingsError
from shards.scale import Scale, check_filter

U8 = npt.NDArray[np.uint8]


def resize_image(image: U8, scale: str | Scale, filter: str = "box") -> U8:
    """Resize an image with the filter that ``soften`` uses for its label.

    Args:
        image: uint8 [H, W, 3].
        scale: target over source size; box needs 1/k.
        filter: ``box``, ``bilinear`` or ``triangle``.

    Returns:
        uint8 [h, w, 3] of ``Scale.size(H, W, filter)``, each value within 1 of the exact mean (8-bit arithmetic of
        the libraries).
    """
    scale = Scale.parse(scale)
    _check(image)
    size = scale.size(image.shape[0], image.shape[1], filter)
    if filter == "box":
        return _area(image, scale.box_factor())
    return resize_image_to(image, size, filter)


def resize_image_to(image: U8, size: tuple[int, int], filter: str = "triangle") -> U8:
    """Resize an image uint8 [H, W, 3] to ``size`` (h, w); bilinear or triangle."""
    if check_filter(filter) == "box":
        raise SettingsError("filter box found with a free target size; expected bilinear or triangle")
    _check(image)
    h, w = size
    if (h, w) == image.shape[:2]:
        return image
    if filter == "bilinear":
        import cv2

        return np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR), np.uint8)


def _check(image: U8) -> None:
    """SettingsError for anything but uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise SettingsError(f"image of {image.dtype} {image.shape} found; expected uint8 [H, W, 3]")


def _area(image: U8, k: int) -> U8:
    """Mean of k x k pixels; partial cells at the right and bottom take the mean of what they have."""
    if k == 1:
        return image
    import cv2

    height, width = image.shape[:2]
    h, w = -(-height // k), -(-width // k)
    if height % k == 0 and width % k == 0:
        return np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    out = np.empty((h, w, image.shape[2]), np.uint8)
    for rows, cells_y in _spans(height, k):
        for columns, cells_x in _spans(width, k):
            target = (cells_x.stop - cells_x.start, cells_y.stop - cells_y.start)
            out[cells_y, cells_x] = cv2.resize(image[rows, columns], target, interpolation=cv2.INTER_AREA)
    return out


def _spans(size: int, k: int) -> list[tuple[slice, slice]]:
    """(pixels, cells) of the part that k divides and of the partial cell that is left."""
    whole = size // k
    spans = [(slice(0, whole * k), slice(0, whole)), (slice(whole * k, size), slice(whole, whole + 1))]
    return [(pixels, cells) for pixels, cells in spans if pixels.start < pixels.stop]
