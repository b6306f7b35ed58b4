"""Samples in tar shards: one pread each, by the sample index beside each shard.

Where the index has a checksum of each sample, what is read is compared with it, and no shard is ever hashed whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import FormatError
from shards.index import decode_entry, decode_index
from shards.local import REMEDY
from shards.manifest import File, ScaleSet
from shards.recent import Recent
from shards.store import Store
from shards.tar import TAR_END, IndexEntry, check_blocks, split_blocks

INDEX_BYTES = 16 << 20  # of indexes read last, kept as they lie on disk


class TarReader:
    """Access by number. An index is checked whole at first use; then four bytes a sample stay, at any number of them.

    So does the text of the indexes of a set that is not large; of others a sample's line is read when it is asked for.
    """

    def __init__(self, store: Store, part: ScaleSet) -> None:
        self._store, self.part = store, part
        self._ends = list(accumulate(s.samples for s in part.shards))
        self._lines: dict[int, array[int]] = {}  # of each checked index, where its lines begin, and its end
        self._ended: set[int] = set()  # shards whose end has been looked at
        self._texts: Recent[bytes] = Recent(INDEX_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}, "_ended": set()}

    def keys(self) -> list[str]:
        """All keys, in order; raises FormatError."""
        self._store.ahead([record.index for record in self.part.shards])
        return [e.key for s in range(len(self.part.shards)) for e in self.entries(s)]

    def members(self, i: int) -> dict[str, bytes]:
        """suffix -> bytes of sample i; raises FormatError."""
        try:
            return self._members(i)
        except FormatError:
            record = self.part.shards[bisect_right(self._ends, i)]
            mended = [self._store.mend(file) for file in (record.index, record)]
            if not any(mended):
                raise
            return self._members(i)

    def _members(self, i: int) -> dict[str, bytes]:
        shard = bisect_right(self._ends, i)
        record = self.part.shards[shard]
        entry = self._entry(shard, i - self._ends[shard] + record.samples)
        where = f"{self._store.name}/{record.path}"
        if entry.offset + entry.length + len(TAR_END) > record.bytes:  # said before anything of that length is read
            raise FormatError(where, f"is shorter than the index {record.index.path} says: another build's", entry.key)
        proves = entry.crc is not None
        try:
            data = self._store.range(record, entry.offset, entry.length, proves)
            if proves and self._store.checks and shard not in self._ended:
                self._check_end(shard, where)
        except FormatError as error:
            raise FormatError(error.path, error.reason, entry.key) from error
        except MemoryError as error:
            raise FormatError(where, f"{entry.length} bytes, more than memory can hold", entry.key) from error
        members = split_blocks(data, entry, where)
        if self._store.checks:
            check_blocks(data, entry, where)
        return members

    def where(self, i: int) -> str:
        """What messages call sample i: its shard and its key."""
        shard = bisect_right(self._ends, i)
        record = self.part.shards[shard]
        return (
            f"{self._store.name}/{record.path} sample {self._entry(shard, i - self._ends[shard] + record.samples).key}"
        )

    def files(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[tuple[int, File]]:
        """The shards of these samples and their indexes, each with the place in `indices` that needs it first."""
        seen: set[int] = set()
        for place, i in enumerate(indices):
            shard = bisect_right(self._ends, i)
            if shard not in seen:
                seen.add(shard)
                record = self.part.shards[shard]
                yield from ((place, record.index), (place, record))

    def entries(self, shard: int) -> list[IndexEntry]:
        """The index of one shard, checked whole; raises FormatError."""
        record = self.part.shards[shard]
        where = f"{self._store.name}/{record.index.path}"
        data = self._store.whole(record.index)
        found = decode_index(data, where)
        if len(found) != record.samples:
            raise FormatError(where, f"{len(found)} samples found; the manifest has {record.samples}")
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        if len(ends) != len(found):
            raise FormatError(where, "does not end with a line: truncated")
        self._texts.put(shard, data, len(data))
        self._lines[shard] = array("I", np.concatenate(([0], ends + 1)).astype(np.uint32).tobytes())
        return found

    def _entry(self, shard: int, number: int) -> IndexEntry:
        """One entry; the whole index is read and checked where that has not been done yet."""
        lines = self._lines.get(shard)
        if lines is None:
            return self.entries(shard)[number]
        record = self.part.shards[shard].index
        start, end, text = lines[number], lines[number + 1], self._texts.get(shard)
        line = self._store.range(record, start, end - start) if text is None else text[start:end]
        return decode_entry(line, f"{self._store.name}/{record.path}", number + 1)

    def _check_end(self, shard: int, where: str) -> None:
        """FormatError unless a shard ends as one does: no sample's checksum covers that."""
        record = self.part.shards[shard]
        if self._store.range(record, record.bytes - len(TAR_END), len(TAR_END), proven=True) != TAR_END:
            raise FormatError(where, f"does not end with two empty blocks: damaged; {REMEDY}")
        self._ended.add(shard)
