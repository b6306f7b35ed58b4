"""The Zarr v3 form of a shard set: one store per split and scale, ragged byte arrays with offsets.

    key/data, key/offsets            UTF-8 keys
    image/data, image/offsets        encoded images
    seg.png, inst.png, soft.npz, json likewise; a sample that lacks a member has an empty range

``data`` is uint8 [bytes], sharded (256 chunks of 4 to 256 KiB a shard), uncompressed: members are compressed already.
``offsets`` is uint64 [samples + 1]. Sample i of a member is ``data[offsets[i]:offsets[i + 1]]``; the bytes are the
same as in the tar form. Packed from finished tar shards, at most 64 MiB in memory at a time; ``shards.zarrset`` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.tar import IndexEntry, read_sample

CHUNKS = 256  # inner chunks of one Zarr shard
MAX_CHUNK = 1 << 24  # entries of a chunk that is read
IMAGES = ("jpg", "png", "webp")
MEMBERS = ("image", "seg.png", "inst.png", "soft.npz", "json")
Tar = tuple[Path, Sequence[IndexEntry]]


def pack(tars: Sequence[Tar], store: Path) -> None:
    """Write a Zarr store from tar shards (path, index entries), in their order; equal input gives equal bytes.

    Args:
        tars: finished shards of one split and scale.
        store: the store's folder; must not exist.
    """
    import zarr  # here: it takes longer to import than all the rest, and tar sets never need it

    group = zarr.create_group(str(store), zarr_format=3)
    entries = [entry for _, part in tars for entry in part]
    _write(group, "key", [len(e.key.encode()) for e in entries], (e.key.encode() for e in entries))
    for member in MEMBERS:
        sizes = [sum(size for suffix, size in e.sizes.items() if _member(suffix) == member) for e in entries]
        if any(sizes):
            _write(group, member, sizes, _contents(tars, member))


def _member(suffix: str) -> str:
    return "image" if suffix in IMAGES else suffix


def _contents(tars: Sequence[Tar], member: str) -> Iterator[bytes]:
    """The bytes of one member of every sample, empty where a sample lacks it."""
    for path, entries in tars:
        for entry in entries:
            found = {_member(suffix): data for suffix, data in read_sample(path, entry).items()}
            yield found.get(member, b"")


def _write(group: Any, name: str, sizes: Sequence[int], contents: Iterable[bytes]) -> None:
    """One ragged array; ``data`` is written shard by shard."""
    offsets = np.zeros(len(sizes) + 1, np.uint64)
    np.cumsum(np.asarray(sizes, np.uint64), out=offsets[1:])
    total = max(int(offsets[-1]), 1)
    plain: dict[str, Any] = {"compressors": None, "filters": None, "fill_value": 0}
    chunk = (min(len(offsets), 65_536),)
    array = group.create_array(f"{name}/offsets", shape=offsets.shape, chunks=chunk, dtype="uint64", **plain)
    array[:] = offsets
    piece = _chunk_bytes(total)
    shard = piece * CHUNKS
    data = group.create_array(f"{name}/data", shape=(total,), chunks=(piece,), shards=(shard,), dtype="uint8", **plain)
    at, buffer = 0, bytearray()
    for content in contents:
        buffer += content
        while len(buffer) >= shard:  # whole shards only: a part of one would be read again and rewritten
            data[at : at + shard] = np.frombuffer(bytes(buffer[:shard]), np.uint8)
            at += shard
            del buffer[:shard]
    if buffer:
        data[at : at + len(buffer)] = np.frombuffer(bytes(buffer), np.uint8)


def _chunk_bytes(total: int) -> int:
    """4 KiB for small arrays up to 256 KiB for large ones: a read fetches whole chunks."""
    return min(max(1 << 12, 1 << (total // CHUNKS).bit_length()), 1 << 18)
