"""How far a build has got, as its journal tells it; the pipeline continues from here."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prep.build.counts import Counts
from prep.build.encode import BadSample
from prep.build.journal import read_journal
from prep.build.outdir import MOVED, READY
from prep.build.plan import Chunk
from prep.build.sources import SOURCES, SourcesRecord, building_name
from shards.shardfile import ShardRecord, hash_prefix


@dataclass
class BuildState:
    """The sum of the journal's lines.

    Attributes:
        chunks: chunks that are done.
        open: {"<split>/<scale folder>": position in its partial shard}.
        closed: finished shards, in the order in which they were closed.
        counts: {split: what was counted}.
        sources: {split: how far its list of source samples has got}.
        bad: quarantined samples, in sample order.
        new: of an update, {split: hashes of the keys of samples that the set before does not have}.
        seconds: time taken, over all runs.
    """

    chunks: int = 0
    open: dict[str, ShardRecord] = field(default_factory=dict)
    closed: list[ShardRecord] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    sources: dict[str, SourcesRecord] = field(default_factory=dict)
    bad: list[BadSample] = field(default_factory=list)
    new: dict[str, array[int]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in one journal line, as `chunk_line` makes it."""
        self.chunks = int(line["chunk"]) + 1
        self.closed += [ShardRecord.from_dict(value) for value in line["closed"]]
        self.open = {value["stream"]: ShardRecord.from_dict(value) for value in line["open"]}
        self.counts.setdefault(line["split"], Counts()).add(Counts.from_dict(line["counts"]))
        self.sources[line["split"]] = SourcesRecord(**line["sources"])
        self.bad += [BadSample(**value) for value in line["bad"]]
        self.new.setdefault(line["split"], array("Q")).extend(line.get("new", ()))
        self.seconds = float(line["seconds"])


def chunk_line(
    chunk: Chunk,
    *,
    closed: Sequence[ShardRecord],
    open_: Sequence[ShardRecord],
    counts: Counts,
    sources: SourcesRecord,
    bad: Sequence[BadSample],
    new: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    """The journal line of a chunk whose bytes are written."""
    return {
        "chunk": chunk.index,
        "split": chunk.split,
        "closed": [record.to_dict() for record in closed],
        "open": [record.to_dict() for record in open_],
        "counts": counts.to_dict(),
        "sources": dict(vars(sources)),
        "bad": [sample.to_dict() for sample in bad],
        **({"new": list(new)} if new else {}),
        "seconds": round(seconds, 3),
    }


def last_consistent(journal: Path, folder: Path, published: Path, most: int | None = None) -> tuple[BuildState, int]:
    """The furthest state that the files on disk bear out, and the journal's length in bytes up to it.

    After a kill this is the last whole line. After a power cut files may be shorter than the journal says: then
    earlier lines are tried, back to an empty build.

    Args:
        journal: the journal file, with a whole head.
        folder: where the partial shards lie.
        published: the output folder, where a build that was killed while it published has moved some. What lies there
            while a set is updated is the old set's, and bears out nothing but what is kept of it.
        most: chunks that may count as done, where the source has changed since; None is all.
    """
    lines = read_journal(journal)
    files = _Files(folder, published, "update" in lines[0][0] and not (folder / MOVED).exists())
    for count in range(len(lines) if most is None else min(len(lines), most + 1), 1, -1):
        state = BuildState()
        try:
            for line, _ in lines[1:count]:
                state.add(line)
        except (KeyError, TypeError, ValueError, AttributeError):  # JSON, but not a line of ours
            continue
        if files.bear_out(state):
            return state, lines[count - 1][1]
    return BuildState(), lines[0][1]


@dataclass(frozen=True)
class _Files:
    """What lies on disk of a build.

    Attributes:
        folder, published: see `last_consistent`.
        old: whether what is published is still the set before.
    """

    folder: Path
    published: Path
    old: bool

    def bear_out(self, state: BuildState) -> bool:
        """Whether everything is there that a state says is written."""
        return (
            all(self._has_closed(record) for record in state.closed)
            and all(
                _prefix_is(self.folder / record.name, record.bytes, record.sha256)
                and _prefix_is(self.folder / record.index_name, record.index_bytes, record.index_sha256)
                for record in state.open.values()
                if record.kept is None
            )
            and all(
                any(_prefix_is(path, record.bytes, record.sha256) for path in self._sources(split))
                for split, record in state.sources.items()
            )
        )

    def _sources(self, split: str) -> list[Path]:
        """Where a split's list of source samples may be."""
        return [self.folder / building_name(split)] + ([] if self.old else [self.published / split / SOURCES])

    def _has_closed(self, record: ShardRecord) -> bool:
        """Closed shards were synced before their journal line was written, so their size vouches for them."""
        sizes = {record.name: record.bytes, record.index_name: record.index_bytes}
        return all(size == 0 or size in map(_size, self._places(record, name)) for name, size in sizes.items())

    def _places(self, record: ShardRecord, name: str) -> list[Path]:
        """Where a file of a closed shard may be: those that are kept are where the set before has them, or moved."""
        place = self.published / record.stream
        moved = [] if self.old else [place / name]
        if record.kept is None:
            return [self.folder / name, *moved]
        old = replace(record, shard=record.kept)
        return [place / (old.name if name == record.name else old.index_name), self.folder / READY / name, *moved]


def _prefix_is(path: Path, length: int, sha256: str) -> bool:
    if _size(path) < length:
        return False
    with open(path, "rb") as file:
        return str(hash_prefix(file, length).hexdigest()) == sha256


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
