"""The sample index beside each shard: one JSON line a sample, so that any sample opens with one pread.

    {"key": "0016E5_07959", "offset": 0, "members": {"jpg": 61234, "seg.png": 5120, "json": 143}, "crc32": 3203127}

The checksum is of the sample's tar blocks, headers and padding included: so a reader proves each sample as it reads it,
and need not hash the shard before the first. All lines of an index have one, or (sets of before) none has.
A file of its own, vouched for by checksum in the manifest: a manifest stays small at any number of samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

from shards.errors import FormatError, SettingsError
from shards.tar import MEMBER_SUFFIXES, IndexEntry, check_key

_DECODER = msgspec.json.Decoder(IndexEntry)
_SUFFIXES = frozenset(MEMBER_SUFFIXES)


def encode_entry(entry: IndexEntry) -> bytes:
    """One line."""
    row = {"key": entry.key, "offset": entry.offset, "members": entry.sizes}
    row |= {} if entry.crc is None else {"crc32": entry.crc}
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def encode_index(entries: Iterable[IndexEntry]) -> bytes:
    """All lines."""
    return b"".join(map(encode_entry, entries))


def decode_index(data: bytes, where: str | Path = "<memory>") -> list[IndexEntry]:
    """The entries; raises FormatError where a line is not one, offsets do not follow, a key comes twice,
    or some have a checksum and some have none."""
    entries, expected = [], 0
    for number, line in enumerate(data.splitlines(), 1):
        entry = decode_entry(line, where, number)
        if entry.offset != expected:
            raise FormatError(where, f"line {number}: offset {entry.offset}; expected {expected}")
        expected += entry.length
        entries.append(entry)
    if len({e.key for e in entries}) != len(entries):
        raise FormatError(where, "a key comes twice")
    if len({e.crc is None for e in entries}) > 1:
        raise FormatError(where, "some samples have a checksum and some have none")
    return entries


def decode_entry(line: bytes, where: str | Path, number: int) -> IndexEntry:
    """The entry in line ``number``, counted from 1; raises FormatError."""
    try:
        entry = _DECODER.decode(line)
        check_key(entry.key)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SettingsError) as error:
        raise FormatError(where, f"line {number} is not an index entry") from error
    if not _SUFFIXES.issuperset(entry.sizes):
        raise FormatError(where, f"line {number} is not an index entry: unknown members")
    return entry
