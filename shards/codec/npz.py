"""Arrays out of a .npz file of known names, capped in size, checksums checked; pickled objects are refused.

Files as ``shards.codec.soft`` writes them are read directly, which takes a tenth of the time; all others by zipfile.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec.inflate import RAW, DamageError, crc32, inflate
from shards.errors import FormatError

Array = npt.NDArray[Any]
Check = Callable[[Mapping[str, int]], str | None]
LOCAL, CENTRAL, END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
HEADER = re.compile(  # what NumPy writes for small integers, behind its own length in two bytes
    rb"\x93NUMPY\x01\x00(..)\{'descr': '(\|u1|<u2)', 'fortran_order': False, "
    rb"'shape': \(([0-9]{0,10}),?(?: ([0-9]{1,10}))?\), \} *\n",
    re.DOTALL,
)


def read_npz(data: bytes, names: Iterable[str], check: Check, where: str | Path) -> dict[str, Array]:
    """The arrays of exactly these names, in this order.

    Args:
        data: the file.
        names: of the arrays.
        check: called with the bytes that each claims to have before any of them is read; None, or why they are refused.
        where: what errors call the file.

    Raises:
        FormatError: other names, refused sizes, damage, objects.
    """
    try:
        members = _plain(data, tuple(names), check) or _by_zipfile(data, tuple(names), check, where)
        return {name: _array(member) for name, member in members.items()}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, KeyError) as error:
        raise FormatError(where, f"damaged .npz ({str(error).splitlines()[0] if str(error) else 'short'})") from error
    except RuntimeError as error:  # zipfile: encrypted member
        raise FormatError(where, f"damaged .npz ({error})") from error


def _plain(data: bytes, names: tuple[str, ...], check: Check) -> dict[str, bytes] | None:
    """The files of an archive without any extras: deflated, in this order, one after the other; None for all others."""
    end = len(data) - END.size
    if end < 0:
        return None
    magic, _, _, _, count, size, at, comment = END.unpack_from(data, end)
    if magic != b"PK\5\6" or count != len(names) or comment or at + size != end:
        return None
    entries, start = {}, 0
    for name in names:
        if at + CENTRAL.size > end:
            return None
        entry, file = CENTRAL.unpack_from(data, at), f"{name}.npy".encode()
        at += CENTRAL.size + len(file)
        if entry[0] != b"PK\1\2" or entry[16] != start or data[at - len(file) : at] != file:
            return None
        entries[name] = entry
        start += LOCAL.size + len(file) + entry[8]
    if at != end or start != end - size or check({name: entry[9] for name, entry in entries.items()}):
        return None
    members = {name: _member(data, entry, f"{name}.npy".encode()) for name, entry in entries.items()}
    found = {name: member for name, member in members.items() if member is not None}
    return found if len(found) == len(names) else None


def _member(data: bytes, entry: tuple[Any, ...], file: bytes) -> bytes | None:
    """One file, given its entry in the central directory; None where anything is unusual or wrong."""
    _, _, needed, flags, method, time, date, crc, packed, size, name, extra, comment, *_, start = entry
    begin = start + LOCAL.size + len(file)
    head = (b"PK\3\4", needed, flags, method, time, date, crc, packed, size, name, extra)
    if begin + packed > len(data) or LOCAL.unpack_from(data, start) != head or data[begin - len(file) : begin] != file:
        return None
    if flags or method != zipfile.ZIP_DEFLATED or name != len(file) or extra or comment:
        return None
    try:
        member = inflate(memoryview(data)[begin : begin + packed], size, RAW)
    except DamageError:
        return None
    return member if member is not None and crc32(member) == crc else None


def _by_zipfile(data: bytes, names: tuple[str, ...], check: Check, where: str | Path) -> dict[str, bytes]:
    """The same of any archive; raises FormatError, and what zipfile raises."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = {i.filename: i for i in archive.infolist()}
        if sorted(infos) != sorted(f"{n}.npy" for n in names) or len(archive.infolist()) != len(names):
            raise FormatError(where, f"holds {sorted(infos)}; expected the arrays {', '.join(names)}")
        sizes = {name: infos[f"{name}.npy"].file_size for name in names}
        refused = check(sizes)
        if refused:
            raise FormatError(where, refused)
        return {name: _read(archive, f"{name}.npy", size) for name, size in sizes.items()}


def _read(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """A file of at most ``size`` bytes; without a bound zipfile would inflate whatever there is before it looks."""
    with archive.open(name) as member:
        return member.read(size)


def _array(member: bytes) -> Array:
    """Parse one .npy whose data length must be what its header says; ValueError otherwise."""
    header = HEADER.match(member)
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        return _any_array(member)
    shape = tuple(int(side) for side in header.groups()[2:] if side)
    return np.frombuffer(member, "u1" if header[2] == b"|u1" else "<u2", offset=header.end()).reshape(shape)


def _any_array(member: bytes) -> Array:
    """The same with NumPy's own parser of headers."""
    file = io.BytesIO(member)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=1024)
    length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if fortran or dtype.hasobject or length != len(member) - file.tell():
        raise ValueError("array header does not fit its data")
    return np.frombuffer(member, dtype, offset=file.tell()).reshape(shape)
