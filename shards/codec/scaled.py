"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size, by libjpeg-turbo's scaled inverse DCT: for pixels wanted smaller.

A block of 8 x 8 coefficients becomes 4 x 4, 2 x 2 or one pixel without the others being made. That is no filter of
ours: images differ a little from full ones resized (`python -m tests.bench.scaled`), so nothing here is used unless
asked for (`data.scaled_decode`). Nothing is drawn from the label, which stays exact.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg

from shards.codec.image import MAX_PIXELS, U8, decode_image, jpeg_size
from shards.errors import FormatError

FACTORS = (8, 4, 2)


def factor_for(stored: tuple[int, int], least: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 by which (height, width) can be divided, rounding up, to no less than `least`; else 1."""
    fits = (f for f in FACTORS if all(-(-have // f) >= want for have, want in zip(stored, least, strict=True)))
    return next(fits, 1)


def decode_image_scaled(data: bytes, least: tuple[int, int], where: str | Path = "<memory>") -> U8:
    """Decode to RGB at the smallest scale of 1, 1/2, 1/4, 1/8 that is no smaller than wanted.

    Args:
        data: an image; one that is no plain JPEG is decoded whole.
        least: (height, width) that the result has at least, where the image has.
        where: what errors call it.

    Returns:
        uint8 [h, w, 3]; pixel i of a scale 1/f stands for the source's f i to f (i + 1) - 1, the last one for fewer.

    Raises:
        FormatError: as `decode_image`.
    """
    stored = jpeg_size(data)
    factor = factor_for(stored, least) if stored is not None and stored[0] * stored[1] <= MAX_PIXELS else 1
    if stored is None or factor == 1:
        return decode_image(data, where)
    height, width = (-(-side // factor) for side in stored)
    try:
        pixels = simplejpeg.decode_jpeg(
            data, colorspace="RGB", min_height=height, min_width=width, min_factor=factor, strict=True
        )
    except ValueError as error:
        raise FormatError(where, f"damaged image ({str(error).splitlines()[0]})") from error
    return np.asarray(pixels, np.uint8)
