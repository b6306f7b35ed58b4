"""One variable of a MATLAB 5 file (`.mat`), read without trusting the file: sizes first, then scipy.

    struct = load_variable(data, "GTcls", "voc 2008_000002: cls/2008_000002.mat")
    ids = struct["Segmentation"][0, 0]

The format: "MAT-File Format", The MathWorks, chapter 1 (level 5): a header of 128 bytes, then elements of a tag of
8 bytes (type, byte count) and their data; an element of type 15 is another element packed with zlib.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from scipy.io import loadmat

from shards.errors import SampleError

MAX_BYTES = 1 << 28  # of the file, and of what it unpacks to: a label map of 10,000 x 10,000 doubles is 800 MB, none is
_HEADER = 128
_HDF5 = b"\x89HDF\r\n\x1a\n"
_PACKED = 15


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
    """The file's elements, unpacked; together no more than `MAX_BYTES`."""
    order = "<" if data[126:_HEADER] == b"IM" else ">"
    position, left = _HEADER, MAX_BYTES
    while position < len(data):
        if position + 8 > len(data):
            raise SampleError(f"{where}: truncated MATLAB file: a tag ends beyond its {len(data)} bytes")
        kind, size = struct.unpack_from(f"{order}II", data, position)
        end = position + 8 + size
        if end > len(data):
            raise SampleError(f"{where}: truncated MATLAB file: {len(data)} bytes, expected at least {end}")
        element = _unpacked(data[position + 8 : end], left, where) if kind == _PACKED else data[position:end]
        left -= len(element)
        yield element
        position = end


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
