"""Soft labels as .npz: four small arrays that plain NumPy reads (the dataset card holds the recipe).

    base         uint8 | uint16 [h, w]  heaviest class of each cell; void is the type's largest value
    mixed        uint8 [b]              bits: plane 1 says which cells hold a second class, plane 2 which of those hold
                                        a third, and so on to a plane of zeros; most significant bit first
    further      uint8 | uint16 [2, t]  those classes and their weights, plane by plane; void as in base. The heaviest
                                        class has the rest of the denominator
    denominator  uint16 []              what a cell's weights sum to

The planes take the cells in this order: first those whose ``base`` differs from that of any of their four neighbours
(the map wraps round), then the others, each row by row. Mixed cells lie along borders, so the first part holds nearly
all the ones and the second nearly none, and both compress well. A ZIP file with fixed times and order: equal labels
give equal bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.classes import IGNORE
from shards.codec.image import MAX_PIXELS
from shards.codec.inflate import DamageError
from shards.codec.npz import read_npz
from shards.errors import FormatError
from shards.softlabel import U16, SoftLabel

DIMENSIONS = {"base": 2, "mixed": 1, "further": 2, "denominator": 0}
HEADER = 4096
Array = npt.NDArray[Any]


def encode_soft(soft: SoftLabel) -> bytes:
    """The .npz bytes of a soft label; ``decode_soft`` gives it back exactly."""
    flags = np.zeros(soft.base.size, np.bool_)
    flags[soft.cells] = True
    edge = border_cells(soft.base).ravel()
    live = np.concatenate([np.flatnonzero(edge[soft.cells]), np.flatnonzero(~edge[soft.cells])])
    bits, entries, counts = [flags[edge], flags[~edge]], [np.zeros(0, np.int64)], np.diff(soft.starts)
    rank = 1
    while len(live):
        entries.append(soft.starts[live] + rank)
        more = counts[live] > rank + 1
        bits.append(more)
        live, rank = live[more], rank + 1
    chosen = np.concatenate(entries)
    narrow = soft.largest_id < 255
    weights = soft.weights[chosen]
    small = narrow and int(weights.max(initial=0)) <= 255
    further = np.stack([_narrowed(soft.ids[chosen], narrow), weights])
    arrays: dict[str, Array] = {
        "base": _narrowed(soft.base, narrow).astype(np.uint8 if narrow else np.uint16),
        "mixed": np.packbits(np.concatenate(bits)),
        "further": further.astype(np.uint8 if small else np.uint16),
        "denominator": np.array(soft.denominator, np.uint16),
    }
    return _zip(arrays)


def decode_soft(data: bytes, where: str | Path = "<memory>") -> SoftLabel:
    """The soft label; raises FormatError where any part or invariant is broken."""
    arrays = read_npz(data, DIMENSIONS, _refused, where)
    _check_types(arrays, where)
    base, mixed, further = arrays["base"], arrays["mixed"], arrays["further"]
    flags = base.size + further.shape[1]  # one a cell, and one for each further class whether another follows
    if len(mixed) != -(-flags // 8):
        raise FormatError(where, f"{8 * len(mixed)} flags of mixed cells found; expected {flags}, rounded up to bytes")
    try:
        return _joined(base, mixed, further, int(arrays["denominator"]))
    except DamageError as error:
        raise FormatError(where, str(error)) from error


def _refused(sizes: Mapping[str, int]) -> str | None:
    """Why arrays that claim to have so many bytes are not read, headers of up to HEADER bytes among them."""
    if max(sizes.values()) > 2 * MAX_PIXELS + HEADER:
        return f"an array is larger than {MAX_PIXELS} cells may need"
    if sizes["mixed"] > (sizes["base"] + sizes["further"]) // 8 + HEADER:
        return "more flags of mixed cells than cells"
    return None


def _check_types(arrays: dict[str, Array], where: str | Path) -> None:
    """FormatError unless the arrays' types and shapes are those of a label."""
    for name, array in arrays.items():
        if array.dtype not in (np.dtype(np.uint8), np.dtype("<u2")) or array.ndim != DIMENSIONS[name]:
            raise FormatError(where, f"array {name} is {array.dtype} of {array.ndim} dimensions")
    base, further = arrays["base"], arrays["further"]
    bad_types = arrays["mixed"].dtype != np.uint8 or (base.dtype != np.uint8 and further.dtype == np.uint8)
    if bad_types or not 0 < base.size <= MAX_PIXELS or len(further) != 2 or not arrays["denominator"]:
        raise FormatError(where, "array types or shapes do not fit each other")


def _joined(stored: Array, mixed: Array, further: Array, denominator: int) -> SoftLabel:
    """The label out of its arrays; raises DamageError where they contradict each other."""
    from shards import kernels_soft

    wide = stored.dtype != np.uint8, further.dtype != np.uint8
    height, width = stored.shape
    wrong, base, *rest = kernels_soft.read(_bytes(stored.reshape(-1)), mixed, _bytes(further), wide, width, denominator)
    if wrong == kernels_soft.COUNT:
        raise DamageError(f"{further.shape[1]} further classes found; the cell flags want another number")
    if wrong == kernels_soft.POSITIVE:
        raise DamageError("weights of a cell are not positive or pass the denominator")
    if wrong == kernels_soft.ORDER:
        raise DamageError("the classes of a cell are not in order or repeat")
    return SoftLabel(base.reshape(height, width), denominator, *rest)


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    """The same memory, each row in bytes."""
    return np.ascontiguousarray(array).view(np.uint8)


def border_cells(base: U16) -> npt.NDArray[np.bool_]:
    """Cells [h, w] whose class differs from that of any of their four neighbours, the map wrapping round."""
    edge = np.zeros(base.shape, np.bool_)
    for axis in (0, 1):
        differs = np.roll(base, 1, axis) != base
        edge |= differs
        edge |= np.roll(differs, -1, axis)
    return edge


def _narrowed(ids: U16, narrow: bool) -> U16:
    """Ids with void at 255 where they are to be stored in 8 bits."""
    return np.where(ids == IGNORE, np.uint16(255), ids) if narrow else ids


def _zip(arrays: dict[str, Array]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same bytes on every platform
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=7)
    return out.getvalue()
