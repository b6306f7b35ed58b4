"""Encoded chunks -> partial shards and journal lines, in order."""

from __future__ import annotations

import time
from pathlib import Path

from prep.build.counts import Counts
from prep.build.encode import BadSample, EncodedSample
from prep.build.journal import Journal
from prep.build.plan import Chunk, Plan
from prep.build.sources import SourcesFile, building_name, encode_line
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
        self._sources: dict[str, SourcesFile] = {}
        self._started = time.monotonic() - state.seconds

    def write(self, chunk: Chunk, encoded: EncodedChunk) -> None:
        """Write one chunk; it counts once its journal line is written. Raises OSError (disk full)."""
        good = [part for source in encoded for part in source.parts if isinstance(part, EncodedSample)]
        bad = [part for source in encoded for part in source.parts if isinstance(part, BadSample)]
        streams = [self._stream(f"{chunk.split}/{scale.folder}") for scale in self._scales]
        for sample in good:
            for stream, blocks in zip(streams, sample.blocks, strict=True):
                stream.add(sample.key, blocks)
        counts, sources = self._count(chunk, encoded)
        if chunk.last:
            sources.sync()
            for stream in streams:
                stream.finish()
        line = chunk_line(
            chunk,
            closed=[record for stream in streams for record in stream.take_closed()],
            open_=[position for stream in streams if (position := stream.position())],
            counts=counts,
            sources=sources.record(),
            bad=bad,
            seconds=time.monotonic() - self._started,
        )
        self._journal.append(line)
        self.state.add(line)

    def _count(self, chunk: Chunk, encoded: EncodedChunk) -> tuple[Counts, SourcesFile]:
        """What the chunk's samples add up to; each has become a line of its split's list of sources."""
        total, lines = Counts(), []
        for source in encoded:
            counts = Counts.of((part for part in source.parts if isinstance(part, EncodedSample)), self._scales)
            lines.append(encode_line(source.digest, counts, self._scales))
            total.add(counts)
        file = self._sources_file(chunk.split)
        file.write(b"".join(lines))
        return total, file

    def close(self) -> None:
        """Let go of all files as they are."""
        for stream in self._streams.values():
            stream.abandon()
        for file in self._sources.values():
            file.close()
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

    def _sources_file(self, split: str) -> SourcesFile:
        if split not in self._sources:
            done = self.state.sources.get(split)
            self._sources[split] = SourcesFile(self._folder / building_name(split), done.bytes if done else 0)
        return self._sources[split]
