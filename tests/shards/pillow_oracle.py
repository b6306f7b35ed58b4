"""The slow, obvious decoders: whole files through Pillow, and what has to come of them."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from shards import FormatError


def picture(data: bytes) -> np.ndarray:
    """RGB uint8 [H, W, 3], or FormatError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise FormatError("oracle", "mode")
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            return np.array(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        raise FormatError("oracle", "damaged") from error


def grey(data: bytes) -> np.ndarray:
    """uint8 or uint16 [H, W], or FormatError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "I;16"):
                raise FormatError("oracle", "mode")
            return np.array(image)
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        raise FormatError("oracle", "damaged") from error


def outcome(decode: object, data: bytes) -> object:
    """What a decoder makes of bytes, comparable: pixels as (shape, bytes), or "FormatError"."""
    try:
        pixels = decode(data)  # type: ignore[operator]
    except FormatError:
        return "FormatError"
    return pixels.shape, pixels.astype(np.uint16).tobytes()
