"""Source files -> pixels, safely: the header is checked before anything is allocated, and nothing partial passes.

A source image is decoded once. It is `plain` where its decoded pixels are used as they are (8-bit RGB, no EXIF
rotation, no alpha): only then may its bytes be stored unchanged.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.codec.image import MAX_PIXELS, SUFFIXES, no_pillow_cap
from shards.codec.inflate import DamageError
from shards.codec.png import check_png
from shards.errors import SampleError

_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class SourceImage:
    """A decoded source image.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
        suffix: "jpg", "png", "webp", or "" for any other format.
        plain: the stored bytes decode to exactly these pixels in every decoder.
    """

    pixels: NDArray[np.uint8]
    suffix: str
    plain: bool


def open_header(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Parse an image file's header; pixels are not decoded yet. SampleError: empty, not an image, too large."""
    if not data:
        raise SampleError(f"{where}: empty file (0 bytes)")
    try:
        with no_pillow_cap():  # ours is below
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise SampleError(f"{where}: not an image file ({len(data)} bytes)") from None
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # Pillow's parsers raise many types on damaged files
        raise SampleError(f"{where}: unreadable image header: {error}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise SampleError(f"{where}: {width}x{height} pixels are more than the cap of {max_pixels}; not decoded")
    return image


def load_pixels(image: Image.Image, where: str) -> None:
    """Decode an opened image completely; SampleError where the file is truncated or damaged."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise SampleError(f"{where}: truncated or damaged image: {error}") from None


def png_depth(data: bytes) -> int:
    """Bits a sample of a PNG file, from its IHDR chunk (Pillow hides 16-bit RGB behind mode RGB)."""
    return data[24]


def decode_source(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> SourceImage:
    """An image file's bytes -> RGB pixels, EXIF rotation applied.

    Raises:
        SampleError: empty, not an image, truncated, damaged, or more pixels than `max_pixels`.
    """
    image = open_header(data, where, max_pixels)
    if image.mode == "F":  # no range is agreed on for these
        raise SampleError(f"{where}: image of floating-point pixels; expected integers of 8 or 16 bits")
    kind = image.format or ""
    suffix = SUFFIXES.get(kind, "")
    if kind == "JPEG":
        plain = image.mode == "RGB" and _orientation(image) == 1
        if plain:
            return SourceImage(_decode_jpeg(data, where), suffix, True)
    if kind == "PNG":
        _check_sums(data, where)
    load_pixels(image, where)
    plain = bool(suffix) and image.mode == "RGB" and _orientation(image) == 1 and "transparency" not in image.info
    if kind == "PNG":
        plain = plain and png_depth(data) == 8
    return SourceImage(_to_rgb(image, where), suffix, plain and not getattr(image, "is_animated", False))


def _check_sums(data: bytes, where: str) -> None:
    """SampleError where a PNG's checksums are wrong: Pillow does not look at those of pixels, readers of shards do."""
    try:
        check_png(data)
    except DamageError as error:
        raise SampleError(f"{where}: truncated or damaged image: {error}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1  # unreadable EXIF says nothing about rotation


def _decode_jpeg(data: bytes, where: str) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise SampleError(f"{where}: truncated or damaged JPEG: {error}") from None
    return pixels


def _to_rgb(image: Image.Image, where: str) -> NDArray[np.uint8]:
    try:
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "I;16", "I;16B", "I;16L"):
            return _grey_to_rgb(image)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # conversion may decode further frames
        raise SampleError(f"{where}: truncated or damaged image: {error}") from None


def _grey_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey -> RGB by the high byte; Pillow's own conversion would clip at 255."""
    grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
