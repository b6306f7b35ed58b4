"""The Zarr v3 form of a shard set: one store per split and scale, ragged byte arrays with offsets.

    key/data, key/offsets            UTF-8 keys
    image/data, image/offsets        encoded images
    seg.png, inst.png, soft.npz, json likewise; a sample that lacks a member has an empty range

``data`` is uint8 [bytes], sharded (256 chunks of 4 to 256 KiB a shard), uncompressed: members are compressed already.
``offsets`` is uint64 [samples + 1]. Sample i of a member is ``data[offsets[i]:offsets[i + 1]]``; the bytes are the
same as in the tar form. Packed from finished tar shards, at most 64 MiB in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec import image_suffix
from shards.errors import FormatError
from shards.tar import IndexEntry, check_key, read_sample

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


class ZarrReader:
    """Random access to the samples of one store; opens it at first use, so it can be sent to other processes."""

    def __init__(self, store: Path, samples: int) -> None:
        self._store, self._samples = store, samples
        self._group: Any = None
        self._offsets: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None, "_offsets": {}}

    def keys(self) -> list[str]:
        """All keys in order; raises FormatError."""
        return [self._text(data) for data in self._all("key")]

    def members(self, i: int) -> dict[str, bytes]:
        """suffix -> bytes of sample i; raises FormatError."""
        self._open()
        found = {name: self._range(name, i) for name in self._offsets if name != "key"}
        members = {name: data for name, data in found.items() if data}
        if "image" in members:
            image = members.pop("image")
            members = {image_suffix(image, self._store): image, **members}
        return members

    def ahead(self, indices: Iterable[int] | npt.NDArray[np.int64]) -> None:
        """Nothing to fetch: stores are local."""

    def _open(self) -> None:
        if self._group is not None:
            return
        import zarr

        try:
            self._group = zarr.open_group(str(self._store), mode="r", zarr_format=3)
            names = sorted(name for name, _ in self._group.groups())
            self._offsets = {name: self._checked_offsets(name) for name in names}
        except FormatError:
            raise
        except Exception as error:  # zarr raises many types for damaged stores
            raise FormatError(self._store, f"cannot be opened as a Zarr v3 store ({_line(error)})") from error

    def _checked_offsets(self, name: str) -> Any:
        if name not in ("key", *MEMBERS):
            raise FormatError(self._store, f"holds an unknown member {name!r}")
        stored, data = self._group[f"{name}/offsets"], self._group[f"{name}/data"]
        if stored.shape != (self._samples + 1,) or stored.dtype != np.uint64 or data.dtype != np.uint8:
            raise FormatError(self._store, f"{name}: arrays of the wrong type or length")
        if max(*stored.chunks, *data.chunks) > MAX_CHUNK:  # a read would fetch, and allocate, whole chunks
            raise FormatError(self._store, f"{name}: chunks of more than {MAX_CHUNK} entries")
        offsets = stored[:]
        if offsets[0] != 0 or (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[-1] > data.shape[0]:
            raise FormatError(self._store, f"{name}: offsets do not rise or leave the data")
        return offsets

    def _range(self, name: str, i: int) -> bytes:
        start, end = int(self._offsets[name][i]), int(self._offsets[name][i + 1])
        if end - start > 1 << 31:
            raise FormatError(self._store, f"{name}: sample {i} has {end - start} bytes")
        try:
            return bytes(np.asarray(self._group[f"{name}/data"][start:end]).tobytes())
        except Exception as error:  # a damaged chunk shows as one of many types
            raise FormatError(self._store, f"{name}: sample {i} cannot be read ({_line(error)})") from error

    def _all(self, name: str) -> Iterator[bytes]:
        self._open()
        if name not in self._offsets:
            raise FormatError(self._store, f"holds no member {name!r}")
        return (self._range(name, i) for i in range(self._samples))

    def _text(self, data: bytes) -> str:
        try:
            return check_key(data.decode())
        except Exception as error:
            raise FormatError(self._store, "holds a key that is not one") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
