"""Label files that hold ids: 8-bit grey, 16-bit grey or palette PNGs -> ids [H, W]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prep.decode import load_pixels, open_header, png_depth
from shards.errors import SampleError

_GREY = ("1", "L", "I;16", "I;16B", "I", "P")


def decode_indices(data: bytes, where: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """An indexed PNG's ids, uint8 or uint16 [H, W]; of a palette PNG the indices, not the colours.

    Raises:
        SampleError: empty, not a PNG, truncated, too large, or in colour where ids are expected.
    """
    image = open_header(data, where)
    if image.format != "PNG":
        raise SampleError(f"{where}: label is a {image.format} file; expected a PNG, whose ids are exact")
    if image.mode not in _GREY:
        raise SampleError(
            f"{where}: label is a colour image (mode {image.mode}); expected one id a pixel (L, P or 16-bit)"
        )
    load_pixels(image, where)
    depth = png_depth(data)
    if image.mode in ("I;16", "I;16B", "I"):
        return np.asarray(image).astype(np.uint16)
    ids = np.array(image, dtype=np.uint8)
    if image.mode == "1":
        return ids
    # Pillow stretches 2- and 4-bit grey to 0..255; ids must come back as they were written.
    return ids // np.uint8(255 // (2**depth - 1)) if image.mode == "L" and depth < 8 else ids
