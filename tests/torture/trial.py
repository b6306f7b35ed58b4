"""One trial: a build is killed once or several times, looked at after each kill, finished, and compared."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prep.build.journal import read_journal
from shards.errors import SegshardsError
from shards.verify import verify
from tests.prep.builds import tree
from tests.torture.builder import Job, killed_away, length_of, run
from tests.torture.moments import Kind, Moment

KINDS: tuple[Kind, ...] = ("clock", "call", "disk")
PHASES = ("before the journal", "encoding", "publishing", "set in place", "finished before")
MOST_KILLS = 4  # in a trial


@dataclass(frozen=True)
class Arena:
    """What all trials of a job share.

    Args:
        job: what is built.
        start: a finished set that is there before the build (an update), or None.
        expected: the bytes that an undisturbed build publishes.
        chunks: lines of its journal, the head aside.
        lengths: how long it takes, in seconds and in calls of each kind.
        elsewhere: calls that change the disk in other threads than the main one (zarr's).
        scratch: an empty folder.
    """

    job: Job
    start: Path | None
    expected: dict[str, bytes]
    chunks: int
    lengths: dict[Kind, float]
    elsewhere: int
    scratch: Path


@dataclass
class Result:
    """What trials have shown.

    Attributes:
        trials: how many.
        kills: {(kind of moment, phase that the kill hit): how often}.
        away: kills in other threads than the main one.
        failures: what went wrong, a line a trial.
    """

    trials: int = 0
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    away: int = 0
    failures: list[str] = field(default_factory=list)


def make_arena(job: Job, scratch: Path, chunks: int, expected: Path, start: Path | None) -> Arena:
    """Measure an undisturbed build, so that moments can be drawn from the whole of it."""
    scratch.mkdir(parents=True)
    lengths: dict[Kind, float] = {}
    elsewhere = 0
    for kind in KINDS:
        out = scratch / "measured"
        _fresh(out, start)
        lengths[kind], elsewhere = length_of(job, out, scratch / "log", kind)
        shutil.rmtree(out)
    return Arena(job, start, tree(expected), chunks, lengths, elsewhere, scratch)


def trial(arena: Arena, seed: int, result: Result) -> None:
    """Run trial number `seed`; it is the same whenever it is run, but for kills by the clock."""
    draw = np.random.default_rng([seed, 7])
    out, log = arena.scratch / f"trial-{seed}", arena.scratch / "log"
    _fresh(out, arena.start)
    problem = ""
    for _ in range(int(draw.integers(1, MOST_KILLS + 1))):
        moment = _draw_moment(arena, draw)
        code = run(arena.job, out, log, moment)
        result.kills[moment.kind, phase(out, arena.chunks) if code == -9 else PHASES[4]] += 1
        result.away += killed_away(log)
        problem = problem or _seen_by_a_reader(out)
        if code not in (0, -9):
            problem = problem or f"exit {code}: {_last_line(log)}"
    if code := run(arena.job, out, log):
        problem = problem or f"going on: exit {code}: {_last_line(log)}"
    problem = problem or _difference(tree(out), arena.expected)
    if (out / ".build").exists():
        problem = problem or "the build folder is still there"
    result.trials += 1
    if problem:
        result.failures.append(f"trial {seed}: {problem}")
    shutil.rmtree(out)


def phase(out: Path, chunks: int) -> str:
    """How far a killed build had got, by what lies on the disk."""
    journal = read_journal(out / ".build" / "journal.jsonl")
    if len(journal) > chunks:
        return PHASES[3] if (out / "manifest.json").exists() else PHASES[2]
    if journal:
        return PHASES[1]
    return PHASES[3] if (out / "manifest.json").exists() and (out / ".build").exists() else PHASES[0]


def _fresh(out: Path, start: Path | None) -> None:
    if start is not None:
        shutil.copytree(start, out)


def _draw_moment(arena: Arena, draw: np.random.Generator) -> Moment:
    kind = KINDS[int(draw.integers(len(KINDS)))]
    length = arena.lengths[kind]
    at = float(draw.uniform(0, length)) if kind == "clock" else float(draw.integers(1, int(length) + 1))
    return Moment(kind, at, after=bool(draw.integers(2)))


def _seen_by_a_reader(out: Path) -> str:
    """A set with a manifest must be whole, whatever was killed: "" or what is wrong with it."""
    if not (out / "manifest.json").exists():
        return ""
    try:
        return next(iter(verify(out)), "")
    except SegshardsError as error:
        return f"a reader meets: {error}"


def _difference(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"{len(names)} files differ, such as {names[0]}" if names else ""


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1][:300]
