"""Samples in a Zarr v3 store, read by number; ``shards.arrays`` says how they lie there.

Arrays whose metadata is exactly what we write are read by ranges, as tar shards are: one read a member. Any other
valid layout goes through zarr-python. Either way files are those that the manifest names, reached through a ``Store``.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from shards.arrays import MAX_CHUNK, MEMBERS
from shards.codec import image_suffix
from shards.errors import FormatError, SegshardsError
from shards.recent import Recent
from shards.store import Store
from shards.tar import MAX_MEMBER, check_key

if TYPE_CHECKING:
    from shards.manifest import File, ScaleSet

ZEROS = 1 << 20  # bytes that a member may have beyond what its files hold: chunks of zeros are not written
BLOCK = 4096  # samples whose files are worked out at once
INDEX_BYTES = 4 << 20  # of shard indexes used last
ABSENT = (1 << 64) - 1  # in a shard's index: a chunk of zeros, not written
U64 = npt.NDArray[np.uint64]


class Bytes(Protocol):
    """A long array of bytes.

    Args:
        length: of it.
        held: how many its files can hold; all others are zeros.
    """

    length: int
    held: int

    def read(self, start: int, end: int) -> bytes:
        """Its bytes from start to end; raises FormatError."""

    def files(self, starts: U64, ends: U64) -> list[tuple[int, File]]:
        """The files that hold the ranges from starts [n] to ends [n], each with the first range that it is for."""


class ZarrReader:
    """Access by number; the store is opened at first use, so it can be sent to other processes."""

    def __init__(self, store: Store, part: ScaleSet, samples: int) -> None:
        self._store, self._samples = store, samples
        self._below = f"{part.store}/"
        self._files = {file.path.removeprefix(self._below): file for file in part.files}
        self.name = f"{store.name}/{part.store}"
        self._arrays: dict[str, tuple[U64, Bytes]] = {}  # member -> offsets [samples + 1], data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def keys(self) -> list[str]:
        """All keys in order; raises FormatError."""
        offsets, data = self._opened()["key"]
        text, ends = self._read("key", data, 0, int(offsets[-1])), offsets.tolist()
        return [self._key(text[start:end]) for start, end in pairwise(ends)]

    def members(self, i: int) -> dict[str, bytes]:
        """suffix -> bytes of sample i; raises FormatError."""
        found = {name: self._member(name, i) for name in self._opened() if name != "key"}
        members = {name: data for name, data in found.items() if data}
        if "image" in members:
            image = members.pop("image")
            members = {self._suffix(image, i): image, **members}
        return members

    def _suffix(self, image: bytes, i: int) -> str:
        try:
            return image_suffix(image, self.name)
        except FormatError as error:
            raise FormatError(self.where(i), error.reason, "image") from error

    def where(self, i: int) -> str:
        """What messages call sample i: its store and its key."""
        return f"{self.name} sample {self._key(self._member('key', i))}"

    def files(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[tuple[int, File]]:
        """The files of these samples, each with the place in `indices` that needs it first.

        They are worked out as they are taken; the first call waits for the few small ones.
        """
        seen: set[str] = set()
        with suppress(SegshardsError):  # whoever reads the samples hears of it
            for first in range(0, len(indices), BLOCK):
                block = np.asarray(indices[first : first + BLOCK], np.int64)
                found = [
                    pair
                    for offsets, data in self._opened().values()
                    for pair in data.files(offsets[block], offsets[block + 1])
                ]
                for place, file in sorted(found, key=itemgetter(0)):
                    if file.path not in seen:
                        seen.add(file.path)
                        yield first + place, file

    def _opened(self) -> dict[str, tuple[U64, Bytes]]:
        if not self._arrays:
            found = {path.partition("/")[0] for path in self._files if "/" in path}
            names = sorted(
                found, key=lambda name: (name != "key", name)
            )  # its offsets prove how many samples there are
            unknown = sorted(set(names) - {"key", *MEMBERS})
            if unknown:
                raise FormatError(self.name, f"holds an unknown member {unknown[0]!r}")
            if "key" not in names or "zarr.json" not in self._files:
                missing = "member 'key'" if "key" not in names else "zarr.json"
                raise FormatError(self.name, f"is no Zarr v3 store of samples: the manifest names no {missing} in it")
            self._store.ahead([f for path, f in self._files.items() if "/data/c/" not in path])
            self._store.whole(self._files["zarr.json"])
            self._arrays = {name: self._array(name) for name in names}
        return self._arrays

    def _array(self, name: str) -> tuple[U64, Bytes]:
        """Offsets and data of a member; raises FormatError."""
        stored = self._plain_offsets(name)
        data: Bytes | None = self._plain_data(name)
        if stored is None or data is None:
            from shards.foreign import open_foreign  # here: zarr takes longer to import than all the rest

            stored, data = open_foreign(self._store, self._files, self.name, name)
        if len(stored) != self._samples + 1:
            raise FormatError(self.name, f"{name}: arrays of the wrong type or length")
        if stored[0] != 0 or (stored[1:] < stored[:-1]).any() or stored[-1] > data.length:
            raise FormatError(self.name, f"{name}: offsets do not rise or leave the data")
        return stored, data

    def _plain_offsets(self, name: str) -> U64 | None:
        """The offsets of a member where they are stored as we do, else None."""
        found = self._metadata(f"{name}/offsets", _OFFSETS)
        if found is None:
            return None
        (length,), (chunk,) = found
        if length != self._samples + 1 or not 0 < chunk <= MAX_CHUNK:
            raise FormatError(self.name, f"{name}: arrays of the wrong type or length")
        parts: list[U64] = []
        for number in range(-(-length // chunk)):
            file = self._files.get(f"{name}/offsets/c/{number}")
            if file is None and name == "key" and (number, chunk) != (0, 1):  # no key is empty: no such chunk is zeros
                raise FormatError(self.name, f"key: the manifest names no chunk {number} of its offsets")
            data = bytes(8 * chunk) if file is None else self._store.whole(file)
            if len(data) != 8 * chunk:
                path = self.name if file is None else f"{self._store.name}/{file.path}"
                raise FormatError(path, "holds no whole chunk", name)
            parts.append(np.frombuffer(data, "<u8"))
        return np.concatenate(parts)[:length]

    def _plain_data(self, name: str) -> PlainBytes | None:
        """The data of a member where it is stored as we do, else None."""
        found = self._metadata(f"{name}/data", _DATA)
        if found is None or _crc32c() is None:
            return None
        (length,), (shard,), (chunk,) = found
        if not 0 < chunk <= MAX_CHUNK:
            raise FormatError(self.name, f"{name}: chunks of more than {MAX_CHUNK} entries")
        if not 0 < shard <= MAX_CHUNK * chunk or shard % chunk:
            raise FormatError(self.name, f"{name}: chunks that do not fill a shard")
        return PlainBytes(self._store, self._files, f"{name}/data", length, shard, chunk)

    def _metadata(self, array: str, expected: Any) -> tuple[list[int], ...] | None:
        """The numbers in an array's metadata where all the rest is as expected, else None; raises FormatError."""
        file = self._files.get(f"{array}/zarr.json")
        if file is None:
            raise FormatError(self.name, f"cannot be opened as a Zarr v3 store (no {array})")
        try:
            found: list[list[int]] = []
            same = _match(msgspec.json.decode(self._store.whole(file)), expected, found)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{self._store.name}/{file.path}", "is not Zarr v3 metadata") from error
        return tuple(found) if same else None

    def _member(self, name: str, i: int) -> bytes:
        offsets, data = self._opened()[name]
        start, end = int(offsets[i]), int(offsets[i + 1])
        if end - start > MAX_MEMBER:
            raise FormatError(self.name, f"{name}: sample {i} has {end - start} bytes")
        try:
            return self._read(name, data, start, end)
        except FormatError as error:
            raise FormatError(error.path, error.reason, f"{name} of {self._named(i, name)}") from error

    def _read(self, name: str, data: Bytes, start: int, end: int) -> bytes:
        """A range, unless it is one that no files can hold: before anything of that size is allocated."""
        if end - start > data.held + ZEROS:
            raise FormatError(self.name, f"{name}: {end - start} bytes asked for, and its files hold {data.held}")
        return data.read(start, end)

    def _named(self, i: int, failed: str) -> str:
        """Sample i by its key, or by its number where the keys cannot be read either."""
        with suppress(FormatError):
            if failed != "key":
                return self._key(self._member("key", i))
        return f"sample {i}"

    def _key(self, data: bytes) -> str:
        try:
            return check_key(data.decode())
        except (UnicodeDecodeError, SegshardsError) as error:
            raise FormatError(self.name, "holds a key that is not one") from error


class PlainBytes:
    """A uint8 array of uncompressed chunks, gathered in shards with an index at their end."""

    def __init__(self, store: Store, files: Mapping[str, File], path: str, length: int, shard: int, chunk: int) -> None:
        self._store, self._files, self._path = store, files, path
        self.length, self._shard, self._chunk = length, shard, chunk
        self._indexes: Recent[U64] = Recent(INDEX_BYTES)
        own = {name.removeprefix(f"{path}/c/"): file for name, file in files.items() if name.startswith(f"{path}/c/")}
        self._there = sorted(
            int(name) for name in own if name.isdecimal() and len(name) < 20
        )  # numbers of the files that are there
        self.held = sum(file.bytes for file in own.values())

    def read(self, start: int, end: int) -> bytes:
        """See ``Bytes.read``."""
        parts = []
        while start < end:
            number, low = divmod(start, self._shard)
            high = min(self._shard, low + end - start)
            file = self._files.get(f"{self._path}/c/{number}")
            parts.append(self._of_shard(file, low, high) if file else bytes(high - low))
            start += high - low
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def files(self, starts: U64, ends: U64) -> list[tuple[int, File]]:
        """See ``Bytes.files``."""
        places = np.flatnonzero(ends > starts)
        shard = np.uint64(self._shard)
        pairs = np.stack([starts[places] // shard, (ends[places] - np.uint64(1)) // shard], 1)  # [n, (first, last)]
        numbers, at = np.unique(pairs, return_index=True)
        found = dict(zip(numbers.tolist(), places[at // 2].tolist(), strict=True))  # number of a file -> place
        for row in np.flatnonzero(pairs[:, 1] - pairs[:, 0] > 1):  # ranges over three files and more
            for number in self._there[bisect(self._there, pairs[row, 0]) : bisect(self._there, pairs[row, 1])]:
                found[number] = min(found.get(number, int(places[row])), int(places[row]))
        named = ((place, self._files.get(f"{self._path}/c/{number}")) for number, place in found.items())
        return [(place, file) for place, file in named if file is not None]

    def _of_shard(self, file: File, low: int, high: int) -> bytes:
        """Bytes of one shard: at once where its chunks lie one after the other, as they do unless some are zeros."""
        chunk, index = self._chunk, self._index(file)
        first, last = low // chunk, (high - 1) // chunk
        at, to = int(index[first]), int(index[last])
        if ABSENT not in (at, to) and to - at == (last - first) * chunk and self._in_order(index[first : last + 1]):
            return self._exactly(file, at + low - first * chunk, high - low)
        parts = []
        while low < high:
            number, begin = divmod(low, chunk)
            length = min(chunk - begin, high - low)
            at = int(index[number])
            parts.append(bytes(length) if at == ABSENT else self._exactly(file, at + begin, length))
            low += length
        return b"".join(parts)

    def _in_order(self, places: U64) -> bool:
        return len(places) < 3 or bool((np.diff(places) == self._chunk).all())

    def _exactly(self, file: File, offset: int, length: int) -> bytes:
        data = self._store.range(file, offset, length)
        if len(data) != length:
            raise FormatError(f"{self._store.name}/{file.path}", "ends early: truncated")
        return data

    def _index(self, file: File) -> U64:
        """Where each chunk of a shard begins, uint64 [chunks]; ABSENT where it is not written."""
        index = self._indexes.get(file.path)
        if index is not None:
            return index
        count = self._shard // self._chunk
        size, where = 16 * count + 4, f"{self._store.name}/{file.path}"
        if file.bytes < size:
            raise FormatError(where, "too short for its index")
        data = self._exactly(file, file.bytes - size, size)
        pairs = np.frombuffer(data, "<u8", 2 * count).reshape(count, 2)  # [chunks, (begin, bytes)]
        written = pairs[:, 0] != ABSENT
        inside = (pairs[:, 0] <= file.bytes - size) & (pairs[:, 0] + np.uint64(self._chunk) <= file.bytes - size)
        checksum = _crc32c()
        if checksum is None or checksum(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise FormatError(where, "checksum of its index differs: damaged")
        if not (inside & (pairs[:, 1] == self._chunk))[written].all():
            raise FormatError(where, "its index does not fit the chunks")
        index = pairs[:, 0].astype(np.uint64)
        self._indexes.put(file.path, index, index.nbytes)
        return index


def _crc32c() -> Callable[[bytes], int] | None:
    """The checksum that Zarr's shard indexes carry; zarr-python brings it, in the versions known so far."""
    try:
        from google_crc32c import value
    except ImportError:
        return None
    checksum: Callable[[bytes], int] = value
    return checksum


def _match(found: Any, expected: Any, numbers: list[list[int]]) -> bool:
    """Whether JSON is as expected; where NUMBER is expected, one whole number in a list, which is collected."""
    if expected is NUMBER:
        fits = isinstance(found, list) and len(found) == 1 and type(found[0]) is int and 0 <= found[0] < 1 << 62
        if fits:
            numbers.append(found)
        return fits
    if isinstance(expected, dict):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(_match(found[name], value, numbers) for name, value in expected.items())
    if isinstance(expected, list):
        same = isinstance(found, list) and len(found) == len(expected)
        return same and all(_match(one, other, numbers) for one, other in zip(found, expected, strict=True))
    return bool(found == expected and type(found) is type(expected))


def _expected(kind: str, codecs: list[Any]) -> dict[str, Any]:
    """The metadata of a plain array of one dimension, its length and its chunks left open, in this order."""
    return {
        "shape": NUMBER,
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": NUMBER}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


NUMBER = object()
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_SHARDS = {
    "chunk_shape": NUMBER,
    "codecs": [{"name": "bytes"}],
    "index_codecs": [_LITTLE, {"name": "crc32c"}],
    "index_location": "end",
}
_OFFSETS = _expected("uint64", [_LITTLE])
_DATA = _expected("uint8", [{"name": "sharding_indexed", "configuration": _SHARDS}])
