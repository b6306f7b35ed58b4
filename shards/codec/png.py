"""A reader of plain PNG: grey of 8 or 16 bits and RGB of 8, not interlaced. What is unusual is left to Pillow.

Every checksum is checked, which Pillow does not do for pixels: one wrong bit is an error and never a picture.
Pixels equal Pillow's (tests/shards/test_png.py). The filters are undone by kernels, GIL released.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec.inflate import DamageError, crc32, inflate

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
# Chunks that change no pixel, and at which Pillow cannot fail, with the lengths that they have.
IDLE = {b"pHYs": 9, b"gAMA": 4, b"sRGB": 1, b"cHRM": 32, b"tIME": 7}
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class PngHeader:
    """The first chunk: sizes in pixels, ``depth`` bits a channel, ``colour`` type, whether interlaced or odd."""

    height: int
    width: int
    depth: int
    colour: int
    odd: bool


def png_header(data: bytes) -> PngHeader | None:
    """The header of a PNG; None where this is none."""
    if len(data) < 33 or data[:8] != MAGIC or data[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", data[16:29])
    return PngHeader(height, width, depth, colour, rest != [0, 0, 0] or not width or not height)


def check_png(data: bytes) -> list[memoryview] | None:
    """Check the chunks of a PNG; the parts of its pixels where it is plain, else None.

    Raises:
        DamageError: a wrong checksum, or the file ends within a chunk or before its last one.
    """
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    first, count = (kinds.index(b"IDAT"), kinds.count(b"IDAT")) if b"IDAT" in kinds else (0, 0)
    around = [*chunks[1:first], *chunks[first + count : -1]]
    if not count or any(IDLE.get(kind) != len(content) for kind, content in around):  # a further IDAT, say
        return None
    return [content for _, content in chunks[first : first + count]]


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk up to the last one, IEND; raises DamageError."""
    view, at, end = memoryview(data), len(MAGIC), len(data)
    kind = b""
    while kind != b"IEND":
        if at + 12 > end:
            raise DamageError("the file ends early")
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > end:
            raise DamageError(f"the file ends within a chunk {kind!r}")
        checked = view[at + 4 : at + 8 + length]
        if crc32(checked) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise DamageError(f"wrong checksum of a chunk {kind!r}")
        yield kind, checked[4:]
        at += 12 + length


def read_grey(data: bytes, header: PngHeader) -> tuple[U16, int] | None:
    """Grey pixels uint16 [H, W], 8-bit void 255 as 65535, and the largest value besides void, -1 for none.

    None where the file is not plain. Raises DamageError.
    """
    filtered = _filtered(data, header, GREY, header.depth // 8)
    if filtered is None:
        return None
    from shards import kernels_png

    out = np.empty((header.height, header.width), np.uint16)
    kernel = kernels_png.grey8 if header.depth == 8 else kernels_png.grey16
    return out, _checked(kernel(filtered, out))


def read_rgb(data: bytes, header: PngHeader) -> U8 | None:
    """RGB pixels uint8 [H, W, 3] of 8 bits a channel; None where the file is not plain. Raises DamageError."""
    filtered = _filtered(data, header, RGB, 3 if header.depth == 8 else 0)
    if filtered is None:
        return None
    from shards import kernels_png

    out = np.empty((header.height, header.width * 3), np.uint8)
    _checked(kernels_png.colour8(filtered, out))
    return out.reshape(header.height, header.width, 3)


def _filtered(data: bytes, header: PngHeader, colour: int, bytes_a_pixel: int) -> U8 | None:
    """The inflated rows, each behind the byte of its filter; None where the file is not plain. Raises DamageError."""
    parts = check_png(data)
    if parts is None or header.odd or header.colour != colour or not bytes_a_pixel:
        return None
    rows = inflate(b"".join(parts) if len(parts) > 1 else parts[0], header.height * (1 + header.width * bytes_a_pixel))
    return None if rows is None else np.frombuffer(rows, np.uint8)


def _checked(found: Any) -> int:
    if found == -2:
        raise DamageError("a row with an unknown filter")
    return int(found)
