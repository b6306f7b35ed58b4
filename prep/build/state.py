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
from prep.build.outdir import READY
from prep.build.plan import Chunk
from prep.build.sources import SOURCES, SourcesRecord, building_name
from shards.shardfile import ShardRecord, hash_prefix

Pairs = tuple[tuple[int, tuple[Path, ...]], ...]  # bytes, and the paths of which one must have them


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


def last_consistent(journal: Path, folder: Path, published: Path) -> tuple[BuildState, int]:
    """The furthest state that the files on disk bear out, and the journal's length in bytes up to it.

    After a kill this is the last whole line. After a power cut files may be shorter than the journal says: then
    earlier lines are tried, back to an empty build.

    Args:
        journal: the journal file, with a whole head.
        folder: where the partial shards lie.
        published: the output folder, where a build that was killed while it published has moved some.
    """
    lines = read_journal(journal)
    for count in range(len(lines), 1, -1):
        state = BuildState()
        try:
            for line, _ in lines[1:count]:
                state.add(line)
        except (KeyError, TypeError, ValueError, AttributeError):  # JSON, but not a line of ours
            continue
        if _holds(state, folder, published):
            return state, lines[count - 1][1]
    return BuildState(), lines[0][1]


def _holds(state: BuildState, folder: Path, published: Path) -> bool:
    return (
        all(_closed_holds(record, folder, published) for record in state.closed)
        and all(
            _prefix_is(folder / record.name, record.bytes, record.sha256)
            and _prefix_is(folder / record.index_name, record.index_bytes, record.index_sha256)
            for record in state.open.values()
            if record.kept is None
        )
        and all(
            any(
                _prefix_is(path, record.bytes, record.sha256)
                for path in (folder / building_name(split), published / split / SOURCES)
            )
            for split, record in state.sources.items()
        )
    )


def _closed_holds(record: ShardRecord, folder: Path, published: Path) -> bool:
    """Closed shards were synced before their journal line was written, so their size vouches for them.

    Those that are kept lie where the set before has them, or are on their way to their new names.
    """
    place = published / record.stream
    if record.kept is None:
        pairs: Pairs = ((record.bytes, (folder / record.name, place / record.name)),)
        pairs += ((record.index_bytes, (folder / record.index_name, place / record.index_name)),)
    else:
        old, ready = replace(record, shard=record.kept), folder / READY
        pairs = ((record.bytes, (place / old.name, ready / record.name, place / record.name)),)
        pairs += ((record.index_bytes, (place / old.index_name, ready / record.index_name, place / record.index_name)),)
    return all(size == 0 or size in map(_size, paths) for size, paths in pairs)


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
