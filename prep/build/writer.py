"""Encoded chunks -> partial shards and journal lines, in order."""

from __future__ import annotations

import time
from pathlib import Path

from prep.build.counts import Counts
from prep.build.encode import BadSample, EncodedSample
from prep.build.journal import Journal
from prep.build.plan import Chunk, Plan
from prep.build.state import BuildState, chunk_line
from prep.build.worker import EncodedChunk
from shards.shardfile import ShardStream


class ChunkWriter:
    """Appends chunks to the shards of all scales and keeps the journal and the build's state in step."""

    def __init__(self, plan: Plan, folder: Path, journal: Journal, state: BuildState) -> None:
        """Continue from `state`; `folder` is `<out>/.build/`."""
        self._plan, self._folder, self._journal, self.state = plan, folder, journal, state
        self._scales = plan.settings.scales
        self._streams: dict[str, ShardStream] = {}
        self._started = time.monotonic() - state.seconds

    def write(self, chunk: Chunk, encoded: EncodedChunk) -> None:
        """Write one chunk; it counts once its journal line is written. Raises OSError (disk full)."""
        good = [sample for sample in encoded if isinstance(sample, EncodedSample)]
        bad = [sample for sample in encoded if isinstance(sample, BadSample)]
        streams = [self._stream(f"{chunk.split}/{scale.folder}") for scale in self._scales]
        for sample in good:
            for stream, blocks in zip(streams, sample.blocks, strict=True):
                stream.add(sample.key, blocks)
        if chunk.last:
            for stream in streams:
                stream.finish()
        line = chunk_line(
            chunk,
            closed=[record for stream in streams for record in stream.take_closed()],
            open_=[position for stream in streams if (position := stream.position())],
            counts=Counts.of(good, self._scales),
            bad=bad,
            seconds=time.monotonic() - self._started,
        )
        self._journal.append(line)
        self.state.add(line)

    def close(self) -> None:
        """Let go of all files as they are."""
        for stream in self._streams.values():
            stream.abandon()
        self._journal.close()

    def _stream(self, name: str) -> ShardStream:
        if name not in self._streams:
            limit = self._plan.settings.shard_size
            if name in self.state.open:
                self._streams[name] = ShardStream.resume(self._folder, self.state.open[name], limit)
            else:
                closed = sum(record.stream == name for record in self.state.closed)
                self._streams[name] = ShardStream(self._folder, name, limit, closed)
        return self._streams[name]
