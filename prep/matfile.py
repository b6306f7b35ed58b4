"""One variable of a MATLAB 5 file (`.mat`): numbers, text, cells, and fields of structs; nothing else is decoded.

    ids = as_ids(load_variable(data, "GTcls.Segmentation", where), where)

The format: "MAT-File Format", The MathWorks, chapter 1 (level 5). A header of 128 bytes, then elements of a tag of 8
bytes (type, byte count) and their data; an element of type 15 is another one packed with zlib, one of type 14 an array
whose parts (flags, dimensions, name, values) are elements again. scipy reads such files too, but a damaged one can end
its process, and with it a worker of the build: here every size is checked before it is used.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import SampleError

MAX_BYTES = 1 << 28  # of the file, and of what it unpacks to; label maps are a thousandth of it
_HEADER = 128
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _PACKED = 14, 15
_CELL, _STRUCT, _TEXT = 1, 2, 4
_COMPLEX = 0x800  # flag
_DEPTH = 16  # arrays within arrays
_AXES = 32
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STORED |= {16: "u1", 17: "u2"}  # UTF-8, UTF-16
_NUMBERS = range(6, 16)  # double, single, int8 ... uint64


def load_variable(data: bytes, variable: str, where: str) -> Any:
    """The value of a variable: numbers as an array of MATLAB's shape, text as str, a cell array as a list.

    Numbers come in the type that they are stored in, which MATLAB chooses by their range: doubles may be uint8 there.

    Args:
        data: the file's bytes.
        variable: its name; `GTcls.Segmentation` is a field of a struct. Nothing else is converted.
        where: names the sample in errors.

    Raises:
        SampleError: not a MATLAB 5 file, version 7.3 (HDF5), damaged, too large once unpacked, without `variable`, or
            with a value of another kind (sparse, complex, an object).
    """
    _check_header(data, where)
    name, *fields = variable.split(".")
    order = "<" if data[126:_HEADER] == b"IM" else ">"
    left = MAX_BYTES
    for kind, start, end in _Elements(data, order, where).tags(_HEADER, len(data), padded=False):
        if kind == _PACKED:
            plain = _unpacked(data[start:end], left, where)
            left -= len(plain)
            inside = _Elements(plain, order, where)
            kind, start, end = next(inside.tags(0, len(plain)), (0, 0, 0))
        else:
            inside = _Elements(data, order, where)
        array = inside.array(start, end) if kind == _MATRIX else None
        if array and array.name == name:
            return inside.field(array, fields)
    raise SampleError(f"{where}: MATLAB file without the variable {name}")


def as_ids(value: Any, where: str) -> NDArray[np.uint16]:
    """A variable's value as ids uint16 [H, W]; whole numbers of any type are taken.

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


@dataclass(frozen=True)
class _Array:
    """The head of an array element; `parts` are the elements behind it, not read yet."""

    kind: int
    flags: int
    shape: tuple[int, ...]
    name: str
    parts: Iterator[tuple[int, int, int]]


@dataclass(frozen=True)
class _Elements:
    """Elements in `data`, in byte order "<" or ">"."""

    data: bytes
    order: str
    where: str

    def damaged(self, why: str) -> SampleError:
        return SampleError(f"{self.where}: truncated or damaged MATLAB file: {why}")

    def tags(self, start: int, end: int, padded: bool = True) -> Iterator[tuple[int, int, int]]:
        """(type, start, end) of the data of each element in data[start:end]; up to 4 bytes may sit in the tag."""
        while start < end:
            if start + 8 > end:
                raise self.damaged(f"a tag at byte {start} ends beyond byte {end}")
            kind, size = struct.unpack_from(f"{self.order}II", self.data, start)
            first, room = start + 8, end - start - 8
            if kind >> 16:
                kind, size, first, room = kind & 0xFFFF, kind >> 16, start + 4, 4
            if size > room:
                raise self.damaged(f"an element at byte {start} states {size} bytes, {room} are left")
            yield kind, first, first + size
            start = max(first + size, start + 8)
            start += -start % 8 if padded else 0

    def array(self, start: int, end: int) -> _Array:
        """The head of the array in data[start:end]."""
        parts = self.tags(start, end)
        if start == end:
            return _Array(6, 0, (0, 0), "", parts)  # MATLAB writes empty arrays so
        flags = self._whole(parts, "array flags")[0]
        shape = tuple(self._whole(parts, "a shape"))
        if not 2 <= len(shape) <= _AXES or min(shape) < 0:
            raise self.damaged(f"an array of shape {str(shape)[:80]}")
        name = self._letters(parts).decode("utf-8", "replace")
        return _Array(flags & 0xFF, flags, shape, name, parts)

    def field(self, array: _Array, path: list[str], depth: int = 0) -> Any:
        """The value of an array, or of the field that `path` leads to through structs."""
        if not path:
            return self._value(array, depth)
        if array.kind != _STRUCT or math.prod(array.shape) != 1:
            raise SampleError(f"{self.where}: {array.name or 'value'} is no struct; expected the field {path[0]}")
        width = self._whole(array.parts, "the length of field names")[0]
        names = self._letters(array.parts)
        if width < 1:
            raise self.damaged(f"field names of {width} bytes")
        fields = [names[at : at + width].split(b"\0")[0] for at in range(0, len(names), width)]
        for field, (kind, start, end) in zip(fields, array.parts, strict=False):
            if field == path[0].encode() and kind == _MATRIX:
                return self.field(self.array(start, end), path[1:], depth + 1)
        shown = ", ".join(field.decode("utf-8", "replace") for field in fields)[:80]
        raise SampleError(f"{self.where}: {array.name} has the fields {shown or 'none'}; expected {path[0]}")

    def _value(self, array: _Array, depth: int) -> Any:
        if array.kind == _CELL:
            if depth >= _DEPTH:
                raise SampleError(f"{self.where}: MATLAB file with arrays nested more than {_DEPTH} deep")
            cells = [self.array(start, end) for kind, start, end in array.parts if kind == _MATRIX]
            if len(cells) != math.prod(array.shape):
                raise self.damaged(f"{len(cells)} cells in an array of shape {array.shape}")
            return [self._value(cell, depth + 1) for cell in cells]
        if array.kind == _TEXT:
            codes = self._whole(array.parts, "text") if math.prod(array.shape) else []
            if any(not 0 <= code <= sys.maxunicode for code in codes):
                raise self.damaged("text with a code that is no character")
            return "".join(map(chr, codes)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if array.kind not in _NUMBERS or array.flags & _COMPLEX:
            raise SampleError(f"{self.where}: MATLAB array of class {array.kind}; expected plain numbers")
        values = self._numbers(array.parts)
        if len(values) != math.prod(array.shape):
            raise self.damaged(f"{len(values)} values in an array of shape {array.shape}")
        return np.ascontiguousarray(values.reshape(array.shape, order="F")).astype(values.dtype.newbyteorder("="))

    def _whole(self, parts: Iterator[tuple[int, int, int]], what: str) -> list[int]:
        """The next element's whole numbers, at least one."""
        values = self._numbers(parts)
        if values.dtype.kind not in "iu" or not len(values):
            raise self.damaged(f"{len(values)} values of type {values.dtype} for {what}")
        return [int(value) for value in values]

    def _letters(self, parts: Iterator[tuple[int, int, int]]) -> bytes:
        """The next element's bytes."""
        values = self._numbers(parts)
        if values.dtype.itemsize != 1:
            raise self.damaged(f"a name of type {values.dtype}")
        return values.tobytes()

    def _numbers(self, parts: Iterator[tuple[int, int, int]]) -> NDArray[Any]:
        """The next element's numbers [N], in the type that they are stored in."""
        kind, start, end = next(parts, (0, 0, 0))
        if kind not in _STORED:
            raise self.damaged(f"an element of type {kind} where numbers are expected")
        dtype = np.dtype(self.order + _STORED[kind])
        if (end - start) % dtype.itemsize:
            raise self.damaged(f"{end - start} bytes of numbers of {dtype.itemsize}")
        return np.frombuffer(self.data, dtype, (end - start) // dtype.itemsize, start)
