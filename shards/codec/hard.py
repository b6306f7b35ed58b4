"""Hard labels and instance maps as PNG: lossless, readable by everything.

8 bits with void 255 where C <= 255, else 16 bits with void 65535; in memory always uint16 with void 65535.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.classes import IGNORE
from shards.codec.image import MAX_PIXELS, image_facts, opened
from shards.codec.inflate import DamageError
from shards.codec.png import png_header, read_grey
from shards.errors import FormatError, SettingsError

U16 = npt.NDArray[np.uint16]
VOID8 = 255
DEPTHS = {"L": 8, "I;16": 16}  # bits of Pillow's modes


def encode_hard(hard: U16, num_classes: int) -> bytes:
    """PNG of a hard label uint16 [H, W]; raises SettingsError where an id is neither void nor below num_classes."""
    top = int(np.where(hard == IGNORE, 0, hard).max(initial=0))
    if top >= num_classes:
        raise SettingsError(f"class id {top} found in a label; expected ids below {num_classes} or void 65535")
    if num_classes <= VOID8:
        return _png(np.where(hard == IGNORE, VOID8, hard).astype(np.uint8))
    return _png(hard)


def decode_hard(data: bytes, num_classes: int, where: str | Path = "<memory>") -> U16:
    """Hard label uint16 [H, W], void 65535; raises FormatError for other modes, damage and ids out of range."""
    wanted = "L" if num_classes <= VOID8 else "I;16"
    hard, top = _plain(data, wanted, where) or _by_pillow(data, wanted, where)
    if top >= num_classes:
        raise FormatError(where, f"class id {top} found; expected ids below {num_classes} or void")
    return hard


def encode_instances(instances: U16) -> bytes:
    """16-bit PNG of an instance map uint16 [H, W]: 0 no instance, 1..N the image's instances."""
    return _png(instances)


def decode_instances(data: bytes, where: str | Path = "<memory>") -> U16:
    """Instance map uint16 [H, W]; raises FormatError."""
    return (_plain(data, "I;16", where) or _by_pillow(data, "I;16", where))[0]


def _png(array: npt.NDArray[np.uint8] | U16) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(out, "PNG", compress_level=6)
    return out.getvalue()


def _plain(data: bytes, mode: str, where: str | Path) -> tuple[U16, int] | None:
    """Label and largest class, -1 for none, of a PNG as we write it; None where it is another."""
    header = png_header(data)
    if header is None or header.depth != DEPTHS[mode] or header.height * header.width > MAX_PIXELS:
        return None
    try:
        return read_grey(data, header)
    except DamageError as error:
        raise FormatError(where, f"damaged PNG ({error})") from error


def _by_pillow(data: bytes, mode: str, where: str | Path) -> tuple[U16, int]:
    """The same of any PNG of exactly this mode."""
    stored = _pixels(data, mode, where)
    hard = stored.astype(np.uint16)
    if mode == "L":
        hard[hard == VOID8] = IGNORE
    return hard, int(np.where(hard == IGNORE, 0, hard).max(initial=0))


def _pixels(data: bytes, mode: str, where: str | Path) -> npt.NDArray[np.uint8] | U16:
    """Decoded pixels [H, W] of a PNG of exactly this mode."""
    facts = image_facts(data, where)
    if facts.suffix != "png" or facts.mode != mode:
        raise FormatError(where, f"label stored as {facts.suffix} of mode {facts.mode}; expected png of mode {mode}")
    try:
        with opened(data, where) as image:
            return np.array(image)
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        raise FormatError(where, "damaged PNG") from error
