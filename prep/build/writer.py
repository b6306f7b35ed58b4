"""Encoded chunks -> partial shards and journal lines, in order."""

from __future__ import annotations

import time
from pathlib import Path

from prep.build.counts import Counts
from prep.build.encode import BadSample, EncodedSample, EncodedSource
from prep.build.journal import Journal
from prep.build.plan import Chunk, Plan
from prep.build.previous import Previous, key_hash
from prep.build.reuse import ReusingStream
from prep.build.sources import SourcesFile, building_name, encode_line
from prep.build.state import BuildState, chunk_line
from prep.build.worker import EncodedChunk


class ChunkWriter:
    """Appends chunks to the shards of all scales and keeps the journal and the build's state in step."""

    def __init__(
        self, plan: Plan, folder: Path, journal: Journal, state: BuildState, previous: Previous | None = None
    ) -> None:
        """Continue from `state`; `folder` is `<out>/.build/`, `previous` the set that is updated."""
        self._plan, self._folder, self._journal, self.state = plan, folder, journal, state
        self._previous = previous
        self._scales = plan.settings.scales
        self._streams: dict[str, ReusingStream] = {}
        self._sources: dict[str, SourcesFile] = {}
        self._started = time.monotonic() - state.seconds

    def write(self, chunk: Chunk, encoded: EncodedChunk) -> None:
        """Write one chunk; it counts once its journal line is written. Raises OSError (disk full)."""
        streams = [self._stream(f"{chunk.split}/{scale.folder}") for scale in self._scales]
        counts, lines, bad = Counts(), list[bytes](), list[BadSample]()
        for source in encoded:
            found, quarantined = self._write_source(chunk.split, streams, source)
            counts.add(found)
            bad += quarantined
            lines.append(encode_line(source.digest, found, self._scales))
        sources = self._sources_file(chunk.split)
        sources.write(b"".join(lines))
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
            new=self._new(chunk, encoded),
            seconds=time.monotonic() - self._started,
        )
        self._journal.append(line)
        self.state.add(line)
        if chunk.last:
            self._leave(chunk.split)

    def _write_source(
        self, split: str, streams: list[ReusingStream], source: EncodedSource
    ) -> tuple[Counts, list[BadSample]]:
        """Append what a source sample became; what is counted of it, and its entry in quarantine."""
        if self._previous is not None and source.kept is not None:
            before = self._previous.splits[split]
            line = source.kept - before.first
            for ordinal in before.ordinals(line):
                for stream in streams:
                    stream.keep(ordinal)
            return before.counts(line), before.quarantined(line)
        good = [part for part in source.parts if isinstance(part, EncodedSample)]
        for sample in good:
            for stream, blocks in zip(streams, sample.blocks, strict=True):
                stream.add(sample.key, blocks)
        return Counts.of(good, self._scales), [part for part in source.parts if isinstance(part, BadSample)]

    def _new(self, chunk: Chunk, encoded: EncodedChunk) -> list[int]:
        """Hashes of the keys that an update encoded."""
        if self._previous is None:
            return []
        pairs = zip(chunk.samples, encoded, strict=True)
        return [key_hash(sample.key) for sample, source in pairs if source.kept is None]

    def _leave(self, split: str) -> None:
        """Close a split's files: there may be more splits than files that a process may have open."""
        self._sources.pop(split).close()
        if self._previous is not None and split in self._previous.splits:
            self._previous.splits[split].close()

    def close(self) -> None:
        """Let go of all files as they are."""
        for stream in self._streams.values():
            stream.abandon()
        for file in self._sources.values():
            file.close()
        if self._previous is not None:
            self._previous.close()
        self._journal.close()

    def _stream(self, name: str) -> ReusingStream:
        if name not in self._streams:
            limit = self._plan.settings.shard_size
            if name in self.state.open:
                stream = ReusingStream.resume(self._folder, self.state.open[name], limit)
            else:
                closed = sum(record.stream == name for record in self.state.closed)
                stream = ReusingStream(self._folder, name, limit, closed)
            self._streams[name] = stream.after(self._previous.stream(name) if self._previous else None)
        return self._streams[name]

    def _sources_file(self, split: str) -> SourcesFile:
        if split not in self._sources:
            done = self.state.sources.get(split)
            self._sources[split] = SourcesFile(self._folder / building_name(split), done.bytes if done else 0)
        return self._sources[split]
