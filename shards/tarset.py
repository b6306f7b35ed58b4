"""Samples in tar shards: one pread each, by the sample index beside each shard."""

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
from shards.manifest import File, ScaleSet
from shards.recent import Recent
from shards.store import Store
from shards.tar import IndexEntry, split_blocks

INDEX_BYTES = 16 << 20  # of indexes used last, kept as they lie on disk


class TarReader:
    """Access by number. An index is checked whole at first use; then four bytes a sample stay, at any number of them.

    The text of the indexes used last is kept as well: reading is mostly local to a few shards.
    """

    def __init__(self, store: Store, part: ScaleSet) -> None:
        self._store, self.part = store, part
        self._ends = list(accumulate(s.samples for s in part.shards))
        self._lines: dict[int, array[int]] = {}  # of each checked index, where its lines begin, and its end
        self._texts: Recent[bytes] = Recent(INDEX_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}}

    def keys(self) -> list[str]:
        """All keys, in order; raises FormatError."""
        self._store.ahead([record.index for record in self.part.shards])
        return [e.key for s in range(len(self.part.shards)) for e in self.entries(s)]

    def members(self, i: int) -> dict[str, bytes]:
        """suffix -> bytes of sample i; raises FormatError."""
        shard = bisect_right(self._ends, i)
        record = self.part.shards[shard]
        entry = self._entry(shard, i - self._ends[shard] + record.samples)
        try:
            data = self._store.range(record, entry.offset, entry.length)
        except FormatError as error:
            raise FormatError(error.path, error.reason, entry.key) from error
        return split_blocks(data, entry, f"{self._store.name}/{record.path}")

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
        text = self._texts.get(shard)
        if text is None:
            text = self._store.range(record, 0, lines[-1])
            self._texts.put(shard, text, len(text))
        return decode_entry(text[lines[number] : lines[number + 1]], f"{self._store.name}/{record.path}", number + 1)
