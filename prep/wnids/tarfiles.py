"""The members of a tar as places in it: headers are walked one after the other, nothing is extracted or remembered.

    for member in members(Path("n01440764.tar")): ...             # FilePart(path, offset, length, name)
    for inner in members(FilePart(Path("fall11_whole.tar"), offset, length, "n01440764.tar")): ...

USTAR, GNU (long names, base-256 sizes) and pax headers are read. A walk costs one small read a member.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prep.raw import FilePart, Place
from shards.errors import LayoutError

BLOCK = 512
_LONGEST = 1 << 20  # bytes of a long name or a pax header
_LONGEST_SIZE = 20  # digits
_GZIP = b"\x1f\x8b"
_REGULAR, _FOLDER, _WITHOUT_DATA = b"0\x007", b"5", b"123456"
_LONG_NAME, _PAX = b"L", b"x"
_EXTENDED = b"LKxg"  # long name, long link, pax, pax for all members: they say something of what follows them


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        place: its bytes; the name is its path in the archive, after the name of the archive's own place.
        path: its path in the archive.
        problem: why it is not a file with bytes of its own (a link, say), or None.
    """

    place: FilePart
    path: str
    problem: str | None = None


@dataclass(frozen=True)
class _Header:
    name: str
    size: int
    kind: bytes


def members(tar: Place) -> Iterator[Member]:
    """Everything but folders in a tar, or in a tar that is part of a file, in the order in which it lies.

    Raises:
        LayoutError: no tar, compressed, damaged or truncated; names the tar and what to do.
    """
    path, start = (tar, 0) if isinstance(tar, Path) else (tar.path, tar.offset)
    name = "" if isinstance(tar, Path) else tar.name
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise LayoutError(f"{path} cannot be read ({error.strerror}): expected a tar; see to its permissions") from None
    try:
        size = os.fstat(file).st_size
        end = size if isinstance(tar, Path) else start + tar.length
        yield from _Walk(file, path, name, min(end, size)).members(start)
    finally:
        os.close(file)


class _Walk:
    """One walk over the headers of an open file from some offset to `end`."""

    def __init__(self, file: int, path: Path, name: str, end: int) -> None:
        self._file, self._path, self._name, self._end = file, path, name, end

    def members(self, offset: int) -> Iterator[Member]:
        prefix = f"{self._name}/" if self._name else ""
        given: dict[str, str] = {}  # what extended headers say of the next member
        while (block := self._block(offset)) is not None:
            header = self._parse(block, offset)
            offset += BLOCK
            extended = header.kind in _EXTENDED
            name = given.get("path") or header.name
            size = header.size if extended else self._size(given, header, offset)
            if offset + size > self._end:
                raise self._broken(f"ends within {name}: truncated")
            if extended:
                given |= self._extended(header, offset)
            else:
                given = {}
                if header.kind != _FOLDER and not name.endswith("/"):
                    place = FilePart(self._path, offset, size, prefix + name)
                    yield Member(place, name, None if header.kind in _REGULAR else _describe(header.kind))
            offset += -(-size // BLOCK) * BLOCK

    def _block(self, offset: int) -> bytes | None:
        """The header at an offset; None at the mark that ends the archive."""
        if offset + BLOCK > self._end:
            raise self._broken(f"ends at byte {self._end} without an end mark: truncated")
        block = os.pread(self._file, BLOCK, offset)
        return None if not block.strip(b"\0") else block

    def _parse(self, block: bytes, offset: int) -> _Header:
        try:
            if sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156]):
                raise ValueError
            name = _text(block[:100])
            if block[257:263] == b"ustar\0" and block[345]:
                name = f"{_text(block[345:500])}/{name}"
            return _Header(name, _number(block[124:136]), block[156:157])
        except ValueError:
            if block.startswith(_GZIP):
                raise self._broken("is gzip-compressed", "unpack it with gunzip first") from None
            raise self._broken(f"has a damaged header at byte {offset}") from None

    def _extended(self, header: _Header, offset: int) -> dict[str, str]:
        """What a long-name or pax header says of the member after it: "path" and "size"."""
        if header.kind not in (_LONG_NAME, _PAX):
            return {}
        if header.size > _LONGEST:
            raise self._broken(f"has a damaged header at byte {offset - BLOCK}")
        data = os.pread(self._file, header.size, offset)
        if header.kind == _LONG_NAME:
            return {"path": _text(data)}
        try:
            return dict(_pax_records(data))
        except ValueError:
            raise self._broken(f"has a damaged header at byte {offset - BLOCK}") from None

    def _size(self, given: dict[str, str], header: _Header, offset: int) -> int:
        text = given.get("size")
        if text is None:
            return 0 if header.kind in _WITHOUT_DATA else header.size
        if not text.isdecimal() or len(text) > _LONGEST_SIZE:
            raise self._broken(f"has a damaged header before byte {offset}")
        return int(text)

    def _broken(self, what: str, remedy: str = "download or copy it again") -> LayoutError:
        name = f"{self._name} in {self._path}" if self._name else str(self._path)
        return LayoutError(f"{name} {what}: expected a whole tar; {remedy}")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _number(field: bytes) -> int:
    """An octal field, or GNU's base-256 form of large numbers. Raises ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if not text.isdigit():
        if text:
            raise ValueError
        return 0
    return int(text, 8)


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """Records "LENGTH KEY=VALUE\\n" of a pax header. Raises ValueError."""
    while data:
        digits = data.partition(b" ")[0]
        length = int(digits)
        record = data[len(digits) + 1 : length]
        if not len(digits) < length <= len(data) or not record.endswith(b"\n"):
            raise ValueError
        key, _, value = record[:-1].partition(b"=")
        if key in (b"path", b"size"):
            yield key.decode(), value.decode(errors="replace")
        data = data[length:]


def _describe(kind: bytes) -> str:
    names = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}
    return f"{names.get(kind, 'no regular file')} in a tar; expected an image"
