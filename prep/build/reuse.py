"""The shards of an update: a run of samples that is a whole shard of the set before is kept as it is.

    stream.keep(17)           # stored sample 17 of the set before, unchanged
    stream.add(key, blocks)   # a new one

While the samples are those of an old shard, from its first on, nothing is written. If the shard ends where the old one
did, the old file is the new shard (`ShardRecord.kept`), perhaps under another number; if not, what was passed over is
copied and the shard is written like any other. Where shards end is a pure function of the samples, so the result is
what writing all of them would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prep.build.previous import PreviousStream
from shards.shardfile import Blocks, ShardRecord, ShardStream, starts_shard


@dataclass
class _Run:
    """The first samples of an old shard, as yet unwritten."""

    group: int
    samples: int
    bytes: int


class ReusingStream(ShardStream):
    """A stream that is given the set before."""

    def __init__(self, folder: Path, stream: str, limit: int, start: int = 0) -> None:
        super().__init__(folder, stream, limit, start)
        self._run: _Run | None = None
        self._old: PreviousStream | None = None

    @classmethod
    def resume(cls, folder: Path, position: ShardRecord, limit: int) -> Self:
        if position.kept is None:
            return super().resume(folder, position, limit)
        stream = cls(folder, position.stream, limit, position.shard)
        stream._run = _Run(position.kept, position.samples, position.bytes)
        return stream

    def after(self, old: PreviousStream | None) -> Self:
        """This stream, as that of an update of `old`; None where the set before has no such split."""
        self._old = old
        return self

    @property
    def old(self) -> PreviousStream:
        """The set before."""
        if self._old is None:
            raise RuntimeError("a sample is kept in a split that is new")
        return self._old

    def add(self, key: str, blocks: Blocks) -> None:
        if self._run and starts_shard(key, len(blocks.data), self._run.bytes, self._limit):
            self.finish()
        self._write_run()
        super().add(key, blocks)

    def keep(self, ordinal: int) -> None:
        """Append stored sample `ordinal` of the set before."""
        group, number, entry = self.old.place(ordinal)
        length = self._run.bytes if self._run else self._files[0].length if self._files else 0
        if length and starts_shard(entry.key, entry.length, length, self._limit):
            self.finish()
        if self._run and (self._run.group, self._run.samples) == (group, number):
            self._run.samples += 1
            self._run.bytes += entry.length
        elif self._run is None and self._files is None and number == 0:
            self._run = _Run(group, 1, entry.length)
        else:
            self._write_run()
            super().add(entry.key, self.old.blocks(ordinal))

    def finish(self) -> None:
        run = self._run
        if run and run.samples == self.old.part.groups[run.group]:
            self._keep_shard(run)
        else:
            self._write_run()
            super().finish()

    def position(self) -> ShardRecord | None:
        if self._run is None:
            return super().position()
        return ShardRecord(self._stream, self._shard, self._run.bytes, "", self._run.samples, 0, "", self._run.group)

    def _keep_shard(self, run: _Run) -> None:
        """The old shard is the next one of this stream."""
        shard = self.old.shard(run.group)
        known = (shard.bytes, shard.sha256) if shard else (0, "")
        index = (shard.index.bytes, shard.index.sha256) if shard else (0, "")
        self._closed.append(ShardRecord(self._stream, self._shard, *known, run.samples, *index, run.group))
        self._run, self._shard = None, self._shard + 1

    def _write_run(self) -> None:
        """Copy the samples that were passed over so far."""
        run, self._run = self._run, None
        if run is None:
            return
        first = sum(self.old.part.groups[: run.group])
        for ordinal in range(first, first + run.samples):
            super().add(self.old.place(ordinal).entry.key, self.old.blocks(ordinal))
