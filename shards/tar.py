"""Deterministic USTAR shards: written as plain bytes, opened at any sample with one pread.

A sample is one run of 512-byte blocks: for each member a header and its data, padded. Times, owners and modes are
fixed, so equal samples give equal bytes, and a shard is the concatenation of its samples and ``TAR_END``. Any tar
program and the webdataset library read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from shards.codec.inflate import crc32
from shards.errors import FormatError, SettingsError
from shards.local import REMEDY, open_file

BLOCK = 512
TAR_END = bytes(2 * BLOCK)
_MODES = b"0000644\0" + b"0000000\0" * 2  # mode, owner, group
_TIME = b"\0" + b"%011o\0" % 0
_MAGIC = b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
_FIXED_SUM = sum(_MODES + _TIME + _MAGIC + b" " * 7)  # a checksum counts itself as eight spaces; _MAGIC has one
MAX_MEMBER = 1 << 31  # bytes; larger members are refused
MEMBER_SUFFIXES = ("jpg", "png", "webp", "seg.png", "inst.png", "soft.npz", "json")
_READ = 1 << 20
_KEY = re.compile(r"[^\x00-\x1f\x7f./\\:*?\"<>|]+(/[^\x00-\x1f\x7f./\\:*?\"<>|]+)*")


class IndexEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"sizes": "members", "crc": "crc32"}):
    """Where a sample lies in its shard.

    Args:
        key: the sample's key.
        offset: byte of its first header, a multiple of 512.
        sizes: suffix -> bytes of each member, in the order in which they lie; "members" in the index.
        crc: CRC-32 of its blocks, headers and padding included; "crc32" in the index. None: nobody wrote it down.
    """

    key: str
    offset: Annotated[int, msgspec.Meta(ge=0, multiple_of=BLOCK)]
    sizes: dict[str, Annotated[int, msgspec.Meta(ge=0, lt=MAX_MEMBER)]]
    crc: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None

    @property
    def length(self) -> int:
        """Bytes from the first header to the end of the last member's padding."""
        return sum(BLOCK + padded(size) for size in self.sizes.values())


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def check_key(key: str) -> str:
    """Return a key that a shard can hold: no dot, no control or path-breaking character; raises SettingsError."""
    if not _KEY.fullmatch(key) or len(key.encode()) > 200:
        raise SettingsError(f"key {key!r} found; expected at most 200 bytes without dots, colons or control characters")
    return key


def sample_blocks(key: str, members: dict[str, bytes]) -> bytes:
    """The tar blocks of one sample.

    Args:
        key: see ``check_key``.
        members: suffix -> bytes, written in this order; suffixes among MEMBER_SUFFIXES.

    Returns:
        Headers and padded data; ``IndexEntry(key, offset, {suffix: len(data)})`` describes them.
    """
    parts: list[bytes] = []
    for suffix, data in members.items():
        if suffix not in MEMBER_SUFFIXES:
            raise SettingsError(f"member suffix {suffix!r} found; expected one of {', '.join(MEMBER_SUFFIXES)}")
        parts += (_header(f"{check_key(key)}.{suffix}", len(data)), data, bytes(padded(len(data)) - len(data)))
    return b"".join(parts)


def split_blocks(data: bytes, entry: IndexEntry, where: str | Path) -> dict[str, bytes]:
    """A sample's members from its blocks; every header must be exactly what we write, else FormatError."""
    if len(data) != entry.length:
        raise FormatError(where, f"ends {entry.length - len(data)} bytes early: truncated", entry.key)
    members, at = {}, 0
    for suffix, size in entry.sizes.items():
        name = f"{entry.key}.{suffix}"
        try:
            same = data.startswith(_header(name, size), at)
        except SettingsError:  # a key that no header can hold
            same = False
        if not same:
            raise FormatError(where, "header differs from the index: damaged, or another build's index", name)
        at += BLOCK
        members[suffix] = data[at : at + size]
        at += padded(size)
    return members


def check_blocks(data: bytes, entry: IndexEntry, where: str | Path) -> None:
    """FormatError unless a sample's blocks have the checksum that the index gives, where it gives one."""
    if entry.crc is not None and crc32(data) != entry.crc:
        raise FormatError(where, f"checksum of the sample differs from the index: damaged; {REMEDY}", entry.key)


def read_sample(path: Path, entry: IndexEntry) -> dict[str, bytes]:
    """Open one sample with one pread; raises FormatError."""
    return split_blocks(open_file(path).read(entry.offset, entry.length), entry, path)


def scan(path: Path, name: str | None = None, sums: bool = False) -> Iterator[IndexEntry]:
    """Walk a shard's headers from the start, sample by sample; raises FormatError at anything we do not write.

    Args:
        path: the shard.
        name: what it is called in messages; None: its path.
        sums: read everything, and say each sample's checksum.
    """
    where = name or str(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        offset, start, key, sizes, crc = 0, 0, "", dict[str, int](), 0
        while (header := file.read(BLOCK)) != bytes(BLOCK):
            member, length = _parse(header, where, offset)
            stem, _, suffix = member.partition(".")
            if key and (stem != key or suffix in sizes):
                yield IndexEntry(key, start, sizes, crc if sums else None)
                start, sizes, crc = offset, {}, 0
            key, sizes = stem, {**sizes, suffix: length}
            offset += BLOCK + padded(length)
            if offset > size:
                raise FormatError(where, "ends within a member: truncated", member)
            if sums:
                crc = _sum_on(file, padded(length), crc32(header, crc))
            file.seek(offset)
        if key:
            yield IndexEntry(key, start, sizes, crc if sums else None)
        if size != offset + len(TAR_END) or file.read() != bytes(BLOCK):
            raise FormatError(where, "does not end with two empty blocks: truncated or added to")


def _sum_on(file: BinaryIO, length: int, crc: int) -> int:
    """A checksum carried on over the next bytes of a file."""
    while length > 0 and (data := file.read(min(_READ, length))):
        crc, length = crc32(data, crc), length - len(data)
    return crc


def _header(name: str, size: int) -> bytes:
    """A USTAR header with fixed mode 0644, owner 0 and time 0."""
    if size >= MAX_MEMBER:
        raise SettingsError(f"member {name} of {size} bytes found; expected fewer than {MAX_MEMBER}")
    prefix, base = _split_name(name)
    digits = b"%011o" % size
    total = _FIXED_SUM + sum(base) + sum(digits) + sum(prefix)
    return b"%b%b%b%b%06o%b%b" % (
        base.ljust(100, b"\0"),
        _MODES,
        digits,
        _TIME,
        total,
        _MAGIC,
        prefix.ljust(167, b"\0"),
    )


def _split_name(name: str) -> tuple[bytes, bytes]:
    """(prefix, name) of a USTAR header; names over 100 bytes split at a slash."""
    raw = name.encode()
    if len(raw) <= 100:
        return b"", raw
    at = raw.find(b"/", len(raw) - 101)
    if at < 1 or at > 155:
        raise SettingsError(
            f"member name {name!r} of {len(raw)} bytes does not fit a tar header; shorten the file name"
        )
    return raw[:at], raw[at + 1 :]


def _parse(header: bytes, path: str, offset: int) -> tuple[str, int]:
    """(name, size) of a header, which must equal the one we would write; raises FormatError."""
    if len(header) < BLOCK:
        raise FormatError(path, f"ends at byte {offset} without an end mark: truncated")
    try:
        base, prefix = header[:100].rstrip(b"\0").decode(), header[345:500].rstrip(b"\0").decode()
        name, size = f"{prefix}/{base}" if prefix else base, int(header[124:135], 8)
        good = header == _header(name, size)
    except (ValueError, SettingsError):
        good, name, size = False, "", 0
    if not good:
        raise FormatError(path, f"damaged header at byte {offset}")
    return name, size
