"""Hard labels and instance maps as PNG: lossless, readable by everything.

8 bits with void 255 where C <= 255, else 16 bits with void 65535; in memory always uint16 with void 65535.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.codec.image import image_facts, opened
from shards.errors import FormatError, SettingsError
from shards.kernels import IGNORE

U16 = npt.NDArray[np.uint16]
VOID8 = 255


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
    stored = _pixels(data, wanted, where)
    hard = stored.astype(np.uint16)
    if wanted == "L":
        hard[hard == VOID8] = IGNORE
    top = int(np.where(hard == IGNORE, 0, hard).max(initial=0))
    if top >= num_classes:
        raise FormatError(where, f"class id {top} found; expected ids below {num_classes} or void")
    return hard


def encode_instances(instances: U16) -> bytes:
    """16-bit PNG of an instance map uint16 [H, W]: 0 no instance, 1..N the image's instances."""
    return _png(instances)


def decode_instances(data: bytes, where: str | Path = "<memory>") -> U16:
    """Instance map uint16 [H, W]; raises FormatError."""
    return _pixels(data, "I;16", where).astype(np.uint16)


def _png(array: npt.NDArray[np.uint8] | U16) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(out, "PNG", compress_level=6)
    return out.getvalue()


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
