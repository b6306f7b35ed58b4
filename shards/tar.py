"""Deterministic USTAR shards: written as plain bytes, opened at any sample with one pread.

A sample is one run of 512-byte blocks: for each member a header and its data, padded. Times, owners and modes are
fixed, so equal samples give equal bytes, and a shard is the concatenation of its samples and ``TAR_END``. Any tar
program and the webdataset library read it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import FormatError, SettingsError

BLOCK = 512
TAR_END = bytes(2 * BLOCK)
MAX_MEMBER = 1 << 31  # bytes; larger members are refused
MEMBER_SUFFIXES = ("jpg", "png", "webp", "seg.png", "inst.png", "soft.npz", "json")
_KEY = re.compile(r"[^\x00-\x1f\x7f./\\:*?\"<>|]+(/[^\x00-\x1f\x7f./\\:*?\"<>|]+)*")


@dataclass(frozen=True)
class IndexEntry:
    """Where a sample lies in its shard.

    Args:
        key: the sample's key.
        offset: byte of its first header, a multiple of 512.
        sizes: suffix -> bytes of each member, in the order in which they lie.
    """

    key: str
    offset: int
    sizes: dict[str, int]

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
        if data[at : at + BLOCK] != _header(name, size):
            raise FormatError(where, "header differs from the index: damaged, or another build's index", name)
        members[suffix] = data[at + BLOCK : at + BLOCK + size]
        at += BLOCK + padded(size)
    return members


def read_sample(path: Path, entry: IndexEntry) -> dict[str, bytes]:
    """Open one sample with one pread; raises FormatError."""
    return split_blocks(read_range(path, entry.offset, entry.length), entry, path)


def read_range(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a file from ``offset`` on, fewer where it ends before; raises FormatError."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise FormatError(path, f"cannot be opened ({error.strerror}); build or copy it again") from error
    try:
        return os.pread(file, length, offset)
    finally:
        os.close(file)


def scan(path: Path) -> Iterator[IndexEntry]:
    """Walk a shard's headers from the start, sample by sample; raises FormatError at anything we do not write."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        offset, start, key, sizes = 0, 0, "", dict[str, int]()
        while (header := file.read(BLOCK)) != bytes(BLOCK):
            name, length = _parse(header, path, offset)
            stem, _, suffix = name.partition(".")
            if key and (stem != key or suffix in sizes):
                yield IndexEntry(key, start, sizes)
                start, sizes = offset, {}
            key, sizes = stem, {**sizes, suffix: length}
            offset += BLOCK + padded(length)
            if offset > size:
                raise FormatError(path, "ends within a member: truncated", name)
            file.seek(offset)
        if key:
            yield IndexEntry(key, start, sizes)
        if size != offset + len(TAR_END) or file.read() != bytes(BLOCK):
            raise FormatError(path, "does not end with two empty blocks: truncated or added to")


def _header(name: str, size: int) -> bytes:
    """A USTAR header with fixed mode 0644, owner 0 and time 0."""
    prefix, base = _split_name(name)
    if size >= MAX_MEMBER:
        raise SettingsError(f"member {name} of {size} bytes found; expected fewer than {MAX_MEMBER}")
    fields = b"".join(
        (
            base.ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,
            b"%011o\0" % size + b"%011o\0" % 0,
            b" " * 8 + b"0" + bytes(100) + b"ustar\x0000" + bytes(64),
            b"0000000\0" * 2,
            prefix.ljust(155, b"\0") + bytes(12),
        )
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


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


def _parse(header: bytes, path: Path, offset: int) -> tuple[str, int]:
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
