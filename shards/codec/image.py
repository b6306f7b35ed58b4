"""Images: JPEG through libjpeg-turbo, plain PNG through our own reader, the rest through Pillow.

Strict about truncation, capped in size. What most images are is decoded without Pillow, which looks at every other one.
"""

from __future__ import annotations

import io
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.codec.png import png_header, read_rgb
from shards.errors import FormatError, SettingsError, first_line

U8 = npt.NDArray[np.uint8]
MAX_PIXELS = 1 << 28  # 268 megapixels: larger ones are taken for decompression bombs
_PILLOW = threading.Lock()
LONGEST = {"jpeg": 65_500, "webp": 16_383}  # pixels a side that libjpeg-turbo and libwebp can write
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
FRAMES = (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2")  # of JPEG: sequential and progressive
QUIET = (b"\xff\xc4", b"\xff\xdd", b"\xff\xfe")  # Huffman tables, restart interval, comment
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class ImageFacts:
    """What an image's header says.

    Args:
        suffix: ``jpg``, ``png`` or ``webp``; other formats by their lower-case name.
        height, width: in pixels, as stored (before any EXIF rotation).
        mode: Pillow's name, e.g. ``RGB``, ``L``, ``I;16``.
        rotated: whether EXIF asks for a turn or mirroring.
    """

    suffix: str
    height: int
    width: int
    mode: str
    rotated: bool


@dataclass(frozen=True)
class ImageFormat:
    """How images are written: ``keep`` the source's own format, or ``jpeg`` (with a quality), ``png``, ``webp``."""

    kind: Literal["keep", "jpeg", "png", "webp"]
    quality: int = 95

    @classmethod
    def parse(cls, text: str) -> ImageFormat:
        """Read ``keep``, ``jpeg:90``, ``png`` or ``webp``; raises SettingsError."""
        found = re.fullmatch(r"(keep|png|webp)|jpeg(?::([0-9]{1,3}))?", text.strip())
        if found is None or not 1 <= int(found[2] or 95) <= 100:
            raise SettingsError(f"image format {text!r} found; expected keep, jpeg:1 to jpeg:100, png or webp")
        if found[1]:
            return cls(found[1])  # type: ignore[arg-type]  # the pattern allows no other words
        return cls("jpeg", int(found[2] or 95))

    def __str__(self) -> str:
        return f"jpeg:{self.quality}" if self.kind == "jpeg" else self.kind

    def for_source(self, suffix: str) -> ImageFormat:
        """What ``keep`` means for a source of this suffix: jpg -> jpeg:95, everything else -> png."""
        if self.kind != "keep":
            return self
        return ImageFormat("jpeg") if suffix == "jpg" else ImageFormat("png")


def image_facts(data: bytes, where: str | Path = "<memory>") -> ImageFacts:
    """Read the header only; raises FormatError for non-images and for more than MAX_PIXELS."""
    with opened(data, where) as image:
        width, height = image.size
        rotated = _orientation(image) not in (0, 1)
        suffix = SUFFIXES.get(image.format or "", (image.format or "unknown").lower())
        return ImageFacts(suffix, height, width, image.mode, rotated)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it cannot be read; decodes no pixels (Pillow's getexif would)."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):
        return 1


def image_suffix(data: bytes, where: str | Path = "<memory>") -> str:
    """``jpg``, ``png`` or ``webp``; raises FormatError for anything else."""
    for magic, suffix in ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png")):
        if data.startswith(magic):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise FormatError(where, "not a JPEG, PNG or WebP image")


def decode_image(data: bytes, where: str | Path = "<memory>") -> U8:
    """Decode to RGB uint8 [H, W, 3], pixels as stored (EXIF rotation is not applied).

    Raises:
        FormatError: not an image, truncated, over MAX_PIXELS, or of more than 8 bits a channel.
    """
    try:
        plain = _plain(data)
        if plain is not None:
            return plain
        facts = image_facts(data, where)
        if facts.mode not in EIGHT_BIT:
            raise FormatError(where, f"image of mode {facts.mode}; expected 8 bits a channel")
        if facts.suffix == "jpg" and facts.mode in ("RGB", "L"):
            return _by_turbo(data, (facts.height, facts.width))
        with opened(data, where) as image:
            return np.array(image.convert("RGB"), np.uint8)
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        raise FormatError(where, f"damaged image ({first_line(error)})") from error


def _plain(data: bytes) -> U8 | None:
    """The pixels of the JPEGs and PNGs that most images are; None for all others. Raises ValueError for damage."""
    header = png_header(data)
    if header is not None:
        return read_rgb(data, header) if header.height * header.width <= MAX_PIXELS else None
    size = jpeg_size(data)
    return _by_turbo(data, size) if size is not None and size[0] * size[1] <= MAX_PIXELS else None


def _by_turbo(data: bytes, size: tuple[int, int]) -> U8:
    """A JPEG by libjpeg-turbo, which fills in grey what is not there: each 8 x 8 block has one bit at least."""
    if size[0] * size[1] > 64 * 8 * len(data):
        raise ValueError(f"{len(data)} bytes for {size[1]}x{size[0]} pixels")
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True), np.uint8)


def image_size(data: bytes, where: str | Path = "<memory>") -> tuple[int, int]:
    """(height, width) as the header says; raises FormatError."""
    header = png_header(data)
    size = (header.height, header.width) if header is not None else jpeg_size(data)
    if size is None:
        facts = image_facts(data, where)
        size = facts.height, facts.width
    return size


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a plain JPEG: 8 bits, grey or colour, no EXIF or other extras; None for all others."""
    if data[:2] != b"\xff\xd8":
        return None
    at, size = 2, None
    while True:
        mark, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4])
        content = data[at + 4 : at + 2 + length]
        if length != len(content) + 2 or not _quiet(mark, content, size is not None):
            return None
        if mark == b"\xff\xda":
            return size
        if mark in FRAMES:
            size = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
        at += 2 + length


def _quiet(mark: bytes, content: bytes, framed: bool) -> bool:
    """Whether Pillow would go over this segment of a JPEG with nothing to say, a frame being known or not."""
    if mark in FRAMES:
        fits = len(content) >= 6 and content[5] in (1, 3) and len(content) == 6 + 3 * content[5]
        return fits and not framed and content[0] == 8 and any(content[1:3]) and any(content[3:5])
    if mark == b"\xff\xdb":  # tables of 8 bits
        return len(content) % 65 == 0 and all(content[start] < 4 for start in range(0, len(content), 65))
    if mark == b"\xff\xe0":
        return content[:5] == b"JFIF\0" and len(content) == 14
    return mark in QUIET or (mark == b"\xff\xda" and framed)


def encode_image(rgb: U8, format: ImageFormat) -> bytes:
    """Encode RGB uint8 [H, W, 3]; JPEG with full-resolution chroma (4:4:4), WebP lossless.

    Raises SettingsError for format ``keep``, and where an image is larger than the format or MAX_PIXELS allow.
    """
    rgb = np.ascontiguousarray(rgb)
    longest = LONGEST.get(format.kind, MAX_PIXELS)
    if max(rgb.shape[:2]) > longest or rgb.shape[0] * rgb.shape[1] > MAX_PIXELS:
        raise SettingsError(
            f"image of {rgb.shape[1]}x{rgb.shape[0]} found; {format.kind} holds at most {longest} pixels a side and "
            f"{MAX_PIXELS} in all: take --image-format png or smaller scales"
        )
    if format.kind == "jpeg":
        return bytes(simplejpeg.encode_jpeg(rgb, quality=format.quality, colorspace="RGB", colorsubsampling="444"))
    if format.kind == "keep":
        raise SettingsError("image format keep found where pixels are encoded; expected jpeg:Q, png or webp")
    out = io.BytesIO()
    options = {"compress_level": 6} if format.kind == "png" else {"lossless": True, "method": 4}
    Image.fromarray(rgb).save(out, format.kind.upper(), **options)
    return out.getvalue()


@contextmanager
def no_pillow_cap() -> Iterator[None]:
    """Open images under our own cap: Pillow's warns at a third of it and refuses at two thirds. Safe in threads."""
    with _PILLOW:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def opened(data: bytes, where: str | Path) -> Image.Image:
    """The image behind its header, or FormatError; no pixels are decoded."""
    if not data:
        raise FormatError(where, "empty file; expected an image")
    try:
        with no_pillow_cap():
            image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise FormatError(where, "not an image that can be read") from error
    if image.width * image.height > MAX_PIXELS:
        raise FormatError(where, f"image of {image.width}x{image.height}, over the cap of {MAX_PIXELS} pixels")
    return image
