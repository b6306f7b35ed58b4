"""Writing shards: one stream a split and scale, cut into tar files by encoded bytes alone.

    stream = ShardStream(folder, "val/1-4", limit=256_000_000)
    stream.add(key, Blocks(sample_blocks(key, members), {suffix: len(data) for suffix, data in members.items()}))
    stream.finish()
    records = stream.take_closed()  # name, bytes and sha256 of each shard and of its index

Files grow in one folder and are hashed as they are written. A stream's position can be written to a journal after any
sample and taken up again from there.

Where a shard ends is decided by its contents (`starts_shard`), so that boundaries come back into step after a sample
that was added, changed or removed: all but a few shards stay what they were.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Self

from shards.codec.inflate import crc32
from shards.errors import naming
from shards.index import encode_entry
from shards.tar import TAR_END, IndexEntry

_READ = 1 << 20
CUT = "by content"  # the rule of `starts_shard`: a build only continues under the rule that it began with
CHECKSUMS = "crc32"  # of each sample, in the index; likewise: no set may have it of some samples only
UNCUT = 1 << 62  # bytes; a limit for streams that end shards where they are told to
_EIGHTHS = 8  # a shard that is half full ends after limit / 8 more bytes, in the mean


def starts_shard(key: str, size: int, length: int, limit: int) -> bool:
    """Whether a sample starts a new shard: a pure function of the sample and of how long the shard before it is.

    It does where the shard would pass the limit, end of archive included. From half the limit on it also does where
    sha256(key), as a fraction of 1, lies below size / (limit / 8); below 1/2 where samples are that large. So shards
    end at some of a few samples, chosen by their own keys and sizes, wherever the shard began: two sequences that
    differ in one sample mark the same samples, and soon cut at the same one (content-defined chunking: Muthitacharoen,
    Chen and Mazieres, "A low-bandwidth network file system", SOSP 2001, with whole samples in place of bytes). Shards
    hold 5/8 of the limit in the mean; one in e^4 = 55 reaches the limit.

    Args:
        key: of the sample.
        size: bytes of its blocks.
        length: bytes in the shard so far, at least one sample.
        limit: most bytes of a shard; a single sample may be larger.
    """
    if length + size + len(TAR_END) > limit:
        return True
    if 2 * length < limit:
        return False
    drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])  # of 2^64
    return drawn * limit < min(size * _EIGHTHS, limit // 2) << 64


@dataclass(frozen=True)
class Blocks:
    """A sample as tar blocks, and the bytes of each of its members in order; see `shards.tar.sample_blocks`."""

    data: bytes
    sizes: dict[str, int]


@dataclass(frozen=True)
class ShardRecord:
    """A shard file: closed for good, or (as a position) as far as it has got.

    Attributes:
        stream: "<split>/<scale folder>".
        shard: number of the file in its stream.
        bytes, sha256: of the file up to here.
        samples: how many it holds.
        index_bytes, index_sha256: of the sample index beside it.
        kept: number of the shard of an earlier set that this is, byte for byte, so that nothing is written.
    """

    stream: str
    shard: int
    bytes: int
    sha256: str
    samples: int
    index_bytes: int
    index_sha256: str
    kept: int | None = None

    @property
    def name(self) -> str:
        """File name, such as "val-1-4-00000.tar"."""
        return f"{self.stream.replace('/', '-')}-{self.shard:05d}.tar"

    @property
    def index_name(self) -> str:
        """Name of the sample index, such as "val-1-4-00000.index.jsonl"."""
        return self.name.removesuffix(".tar") + ".index.jsonl"

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ShardRecord:
        return cls(**value)


class HashingFile:
    """A file that hashes what goes through it; unbuffered, so that a full disk shows at the write that meets it."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open `path` after its first `length` bytes; what follows them is cut off."""
        self._file = FileIO(path, "r+" if length else "w+")
        self.digest = hash_prefix(self._file, length)
        self.length = length
        self._file.truncate(length)
        self._file.seek(length)

    def write(self, data: bytes) -> None:
        """Append. Raises OSError."""
        write_all(self._file, data)
        self.digest.update(data)
        self.length += len(data)

    def sync(self) -> None:
        """Make it durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of it as it is."""
        self._file.close()


class ShardStream:
    """The shards of one split at one scale, written one after the other."""

    def __init__(self, folder: Path, stream: str, limit: int, start: int = 0) -> None:
        """Args: folder of the partial files; "<split>/<scale folder>"; bytes of a shard; number of the first one."""
        self._folder, self._stream, self._limit, self._shard = folder, stream, limit, start
        self._files: tuple[HashingFile, HashingFile] | None = None  # the tar and its index
        self._samples = 0
        self._closed: list[ShardRecord] = []

    @classmethod
    def resume(cls, folder: Path, position: ShardRecord, limit: int) -> Self:
        """Continue a partial shard; what the files hold beyond the position is cut off."""
        stream = cls(folder, position.stream, limit, position.shard)
        stream._samples = position.samples
        stream._files = (
            HashingFile(folder / position.name, position.bytes),
            HashingFile(folder / position.index_name, position.index_bytes),
        )
        return stream

    def add(self, key: str, blocks: Blocks) -> None:
        """Append a sample, to a new shard where `starts_shard` says so."""
        if self._files and starts_shard(key, len(blocks.data), self._files[0].length, self._limit):
            self.finish()
        if self._files is None:
            empty = self._record(0, "", 0, "")
            self._files = HashingFile(self._folder / empty.name), HashingFile(self._folder / empty.index_name)
        tar, index = self._files
        index.write(encode_entry(IndexEntry(key, tar.length, blocks.sizes, crc32(blocks.data))))
        tar.write(blocks.data)
        self._samples += 1

    def finish(self) -> None:
        """Close the current shard, if there is one: end of archive, fsync."""
        if self._files is None:
            return
        self._files[0].write(TAR_END)
        for file in self._files:
            file.sync()
        self._closed.append(self._position(*self._files))
        self.abandon()
        self._shard, self._samples = self._shard + 1, 0

    def abandon(self) -> None:
        """Let go of the files as they are."""
        for file in self._files or ():
            file.close()
        self._files = None

    def position(self) -> ShardRecord | None:
        """Where the open shard has got to; None between shards."""
        return self._position(*self._files) if self._files else None

    def take_closed(self) -> list[ShardRecord]:
        """The shards that were closed since this was last asked."""
        closed, self._closed = self._closed, []
        return closed

    def _position(self, tar: HashingFile, index: HashingFile) -> ShardRecord:
        return self._record(tar.length, tar.digest.hexdigest(), index.length, index.digest.hexdigest())

    def _record(self, size: int, digest: str, index_size: int, index_digest: str) -> ShardRecord:
        return ShardRecord(self._stream, self._shard, size, digest, self._samples, index_size, index_digest)


def write_all(file: FileIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take less at a time than it is given. OSError names the file."""
    view = memoryview(data)
    with naming(str(file.name)):
        while view:
            view = view[file.write(view) or 0 :]


def hash_prefix(file: BinaryIO | RawIOBase, length: int) -> Any:
    """sha256 object over a file's first `length` bytes; of fewer where the file is shorter."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (data := file.read(min(_READ, length))):
        digest.update(data)
        length -= len(data)
    return digest
