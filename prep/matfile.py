"""One variable of a MATLAB 5 file (`.mat`), read without trusting the file: sizes first, then scipy.

    struct = load_variable(data, "GTcls", "voc 2008_000002: cls/2008_000002.mat")
    ids = as_ids(struct["Segmentation"][0, 0], "voc 2008_000002: cls/2008_000002.mat")

The format: "MAT-File Format", The MathWorks, chapter 1 (level 5): a header of 128 bytes, then elements of a tag of
8 bytes (type, byte count) and their data; an element of type 15 is another element packed with zlib, one of type 14
an array whose parts are elements again.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from shards.errors import SampleError

MAX_BYTES = 1 << 28  # of the file, and of what it unpacks to; label maps are a thousandth of it
_HEADER = 128
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _PACKED = 14, 15
_CONTAINERS = (1, 2, 3)  # cell, struct, object: scipy sets up an object array of the stated size
_DEPTH = 16  # arrays within arrays; scipy's own descent has no limit, and a deep one ends the process


def load_variable(data: bytes, variable: str, where: str) -> Any:
    """The value of `variable` as `scipy.io.loadmat` gives it: an array; a struct is an array [1, 1] of named fields.

    Args:
        data: the file's bytes.
        variable: its name; no other variable is converted.
        where: names the sample in errors.

    Raises:
        SampleError: not a MATLAB 5 file, version 7.3 (HDF5), damaged, too large once unpacked, or without `variable`.
    """
    _check_header(data, where)
    plain = data[:_HEADER] + b"".join(_elements(data, where))
    try:
        found = loadmat(io.BytesIO(plain), variable_names=[variable])
    except Exception as error:  # scipy raises many types on damaged files
        raise SampleError(f"{where}: damaged MATLAB file: {error}") from None
    if variable not in found:
        raise SampleError(f"{where}: MATLAB file without the variable {variable}")
    return found[variable]


def as_ids(value: Any, where: str) -> NDArray[np.uint16]:
    """A variable's value as ids uint16 [H, W]; whole numbers of any numeric type are taken.

    Raises:
        SampleError: not numbers, not two axes, empty, fractions, or beyond 0..65535.
    """
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "uif" or not value.size:
        kind, shape = getattr(value, "dtype", type(value).__name__), getattr(value, "shape", ())
        raise SampleError(f"{where}: label is {kind} of shape {shape}; expected ids of shape (height, width)")
    low, high = value.min(), value.max()
    if not (low >= 0 and high <= 65535):  # false for NaN
        raise SampleError(f"{where}: label holds values from {low} to {high}; expected ids of 0 to 65535")
    ids: NDArray[np.uint16] = value.astype(np.uint16)
    if value.dtype.kind == "f" and not np.array_equal(ids, value):
        raise SampleError(f"{where}: label holds fractions; expected whole ids")
    return ids


def _check_header(data: bytes, where: str) -> None:
    if len(data) > MAX_BYTES:
        raise SampleError(f"{where}: MATLAB file of {len(data)} bytes is more than the cap of {MAX_BYTES}")
    if not data:
        raise SampleError(f"{where}: empty file (0 bytes)")
    if data.startswith((_HDF5, b"MATLAB 7.3")):
        raise SampleError(
            f"{where}: MATLAB 7.3 file (HDF5); expected version 5 to 7: save it again with save(..., '-v7')"
        )
    if not data.startswith(b"MATLAB 5.0") or data[126:_HEADER] not in (b"IM", b"MI"):
        raise SampleError(f"{where}: not a MATLAB 5 file ({len(data)} bytes); its first bytes are {data[:12]!r}")


def _elements(data: bytes, where: str) -> Iterator[bytes]:
    """The file's elements, unpacked and checked; together no more than `MAX_BYTES`."""
    order = "<" if data[126:_HEADER] == b"IM" else ">"
    left = MAX_BYTES
    for kind, start, end in _tags(data, _HEADER, len(data), order, where, packed=True):
        element = _unpacked(data[start:end], left, where) if kind == _PACKED else data[start - 8 : end]
        left -= len(element)
        _check_arrays(element, 0, len(element), order, where, 0)
        yield element


def _tags(
    data: bytes, position: int, end: int, order: str, where: str, packed: bool = False
) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of the elements in data[position:end]; those of up to 4 bytes sit in their tags."""
    while position < end:
        if position + 8 > end:
            raise SampleError(f"{where}: truncated MATLAB file: a tag ends beyond byte {end}")
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start = position + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        stop = start + size
        if stop > end or (start == position + 4 and size > 4):
            raise SampleError(f"{where}: truncated MATLAB file: an element ends at byte {stop}, the data at {end}")
        yield kind, start, stop
        position = stop if packed else -(-stop // 8) * 8  # within arrays elements are padded


def _unpacked(packed: bytes, left: int, where: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        element = unpacker.decompress(packed, left + 1)
    except zlib.error as error:
        raise SampleError(f"{where}: damaged MATLAB file: {error}") from None
    if len(element) > left:
        raise SampleError(f"{where}: MATLAB file unpacks to more than the cap of {MAX_BYTES} bytes")
    if not unpacker.eof:
        raise SampleError(f"{where}: truncated MATLAB file: a packed element has no end")
    return element


def _check_arrays(data: bytes, start: int, end: int, order: str, where: str, depth: int) -> None:
    """Arrays within arrays, no deeper than `_DEPTH`, and none that states more elements than it has bytes."""
    if depth > _DEPTH:
        raise SampleError(f"{where}: MATLAB file with arrays nested more than {_DEPTH} deep")
    for kind, first, last in _tags(data, start, end, order, where):
        if kind == _MATRIX:
            _check_extent(data, first, last, order, where)
            _check_arrays(data, first, last, order, where, depth + 1)


def _check_extent(data: bytes, start: int, end: int, order: str, where: str) -> None:
    parts = _tags(data, start, end, order, where)
    flags, axes = next(parts, None), next(parts, None)
    if flags is None or axes is None or flags[2] - flags[1] < 4:
        return  # an empty array, or one that scipy refuses
    (kind,) = struct.unpack_from(f"{order}I", data, flags[1])
    extent = 1
    for (length,) in struct.iter_unpack(f"{order}I", data[axes[1] : axes[2] - (axes[2] - axes[1]) % 4]):
        extent *= length
    if kind & 0xFF in _CONTAINERS and extent > end - start:
        raise SampleError(f"{where}: damaged MATLAB file: {extent} elements stated in {end - start} bytes")
