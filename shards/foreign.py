"""Zarr stores laid out in another way than ours, read through zarr-python over the files of a ``Store``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore

from shards.arrays import MAX_CHUNK
from shards.errors import FormatError, SegshardsError, first_line

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

    from shards.manifest import File
    from shards.store import Store


def open_foreign(
    store: Store, files: Mapping[str, File], where: str, name: str
) -> tuple[npt.NDArray[np.uint64], ForeignBytes]:
    """Offsets uint64 [samples + 1] and data of one member, in any layout that zarr-python reads.

    Args:
        store: holds the files.
        files: path below the Zarr store -> file.
        where: the Zarr store in messages.
        name: the member.

    Raises:
        FormatError: no such arrays, other types than ours, or chunks larger than MAX_CHUNK.
    """
    try:
        group = zarr.open_group(ManifestStore(store, files), mode="r", zarr_format=3)
        stored, data = group[f"{name}/offsets"], group[f"{name}/data"]
        if stored.ndim != 1 or data.ndim != 1 or stored.dtype != np.uint64 or data.dtype != np.uint8:
            raise FormatError(where, f"{name}: arrays of the wrong type or length")
        if max(*stored.chunks, *data.chunks) > MAX_CHUNK:  # a read would fetch, and allocate, whole chunks
            raise FormatError(where, f"{name}: chunks of more than {MAX_CHUNK} entries")
        if stored.shape[0] > MAX_CHUNK << 4:
            raise FormatError(where, f"{name}: arrays of the wrong type or length")
        return np.asarray(stored[:]), ForeignBytes(data, files, where, name)
    except SegshardsError:  # of the files, or of the way to them
        raise
    except Exception as error:  # zarr raises many types for damaged stores
        raise FormatError(where, f"cannot be opened as a Zarr v3 store ({first_line(error)})") from error


class ForeignBytes:
    """See ``shards.zarrset.Bytes``."""

    def __init__(self, data: Any, files: Mapping[str, File], where: str, name: str) -> None:
        self._data, self._where, self._name = data, where, name
        self._files = [file for path, file in files.items() if path.startswith(f"{name}/data/c/")]
        self.length = int(data.shape[0])
        self.held = sum(_held(file.bytes, int(data.chunks[0]), data.shards) for file in self._files)

    def read(self, start: int, end: int) -> bytes:
        """See ``Bytes.read``."""
        try:
            return np.asarray(self._data[start:end]).tobytes()
        except SegshardsError:  # of the files, or of the way to them
            raise
        except Exception as error:  # a damaged chunk shows as one of many types
            raise FormatError(self._where, f"{self._name}: cannot be read ({first_line(error)})") from error

    def files(self, starts: npt.NDArray[np.uint64], ends: npt.NDArray[np.uint64]) -> list[tuple[int, File]]:
        """See ``Bytes.files``: all of them, since their layout is not known here."""
        filled = np.flatnonzero(ends > starts)
        return [(int(filled[0]), file) for file in self._files] if len(filled) else []


class ManifestStore(ZarrStore):
    """The files of a Zarr store as zarr-python wants them; only those that the manifest names are there."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, store: Store, files: Mapping[str, File]) -> None:
        super().__init__(read_only=True)
        self._store, self._files = store, files

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of a file, None where there is no such file."""
        file = self._files.get(key)
        if file is None:
            return None
        start, length = _place(byte_range, file.bytes)
        whole = byte_range is None and key.endswith("zarr.json")
        return prototype.buffer.from_bytes(self._store.whole(file) if whole else self._store.range(file, start, length))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Bytes of several files."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether the manifest names the file."""
        return key in self._files

    async def list(self) -> AsyncIterator[str]:
        """All files."""
        for path in self._files:
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Files whose paths begin so."""
        for path in self._files:
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names in a folder."""
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in {path.removeprefix(below).partition("/")[0] for path in self._files if path.startswith(below)}:
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        """Never: shard sets are read-only."""
        raise NotImplementedError("shard sets are read-only")

    async def delete(self, key: str) -> None:
        """Never: shard sets are read-only."""
        raise NotImplementedError("shard sets are read-only")


def _held(stored: int, chunk: int, shard: tuple[int, ...] | None) -> int:
    """Bytes that a file of ``stored`` bytes can hold: a chunk, or as many as its index, 16 bytes each, has room for."""
    return chunk if shard is None else min(int(shard[0]), stored // 16 * chunk)


def _place(asked: ByteRequest | None, size: int) -> tuple[int, int]:
    """(offset, length) of a byte request in a file of ``size`` bytes."""
    if isinstance(asked, RangeByteRequest):
        return asked.start, max(0, min(asked.end, size) - asked.start)
    if isinstance(asked, OffsetByteRequest):
        return asked.offset, max(0, size - asked.offset)
    if isinstance(asked, SuffixByteRequest):
        return max(0, size - asked.suffix), min(size, asked.suffix)
    return 0, size
