"""The build: plan, continue or start, encode in parallel, write in order, publish.

    outcome = build(load_reader("camvid"), Settings("camvid", root, ...), out, workers=4)

A build that is interrupted at any moment continues with the same call and ends in the same bytes. With `update=True` a
finished set is brought up to date with its source instead; see `prep.build.update`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prep.build import outdir
from prep.build.encode import BadSample, Job
from prep.build.journal import Journal, read_journal
from prep.build.plan import Plan, make_plan
from prep.build.previous import Previous
from prep.build.publish import check_samples, check_sizes, publish_build, read_quarantine
from prep.build.settings import Settings, describe_differences, library_versions
from prep.build.state import BuildState, last_consistent
from prep.build.unchanged import unchanged_chunks
from prep.build.update import SplitChange, clear_the_way, compare, is_same, open_previous, prepare, told_changes
from prep.build.worker import encode_chunks
from prep.build.writer import ChunkWriter
from prep.raw import Reader
from shards.codec import ImageFormat
from shards.errors import FormatError, SettingsError
from shards.manifest import MANIFEST, Manifest, load_manifest
from shards.terminal import Progress


@dataclass(frozen=True)
class Outcome:
    """How a build ended.

    Attributes:
        state: what was counted; None where the build was complete before.
        bad: quarantined samples, in sample order.
        resumed: samples' chunks that earlier runs had done.
        changes: of an update, {split: what it did}.
    """

    manifest: Manifest
    state: BuildState | None
    bad: list[BadSample]
    resumed: int = 0
    changes: Mapping[str, SplitChange] = field(default_factory=dict)


def build(
    reader: Reader,
    settings: Settings,
    out: Path,
    *,
    workers: int = 1,
    fresh: bool = False,
    update: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Build a shard set, or continue one.

    Args:
        fresh: remove the build that is there first.
        update: bring a finished set up to date with its source; the result is that of `fresh`.

    Raises:
        UserError: the root, the splits or the settings do not fit, or the folder is another build's.
        FormatError: the set that is to be updated is damaged.
        OSError: the disk is full; what is journaled stays and is continued.
    """
    if fresh and update:
        raise SettingsError("--fresh and --update found: expected one of them, to start over or to keep what can be")
    plan = make_checked_plan(reader, settings, out)
    with outdir.undisturbed(out):
        finished = None if fresh else _published(out)
        if finished and not update:
            _check_finished(finished, plan, out)
            return Outcome(finished, None, read_quarantine(finished, out))
        if fresh or not outdir.is_ours(out):
            outdir.check_no_foreign(out)
    with outdir.locked(out) as folder:
        if fresh:
            outdir.clear(out)
        elif _published(out) != finished:  # since we looked, before the lock was ours
            raise SettingsError(f"another seg-prep finished its build in {out} just now: run the same command again")
        previous = open_previous(plan, finished, out) if finished else None
        state, journal = _start_or_continue(plan, folder, out, previous, quiet)
        resumed = state.chunks
        with closing(ChunkWriter(plan, folder, journal, state, previous)) as writer:
            _run(plan, _job(plan, previous, folder), writer, workers, quiet)
            journal.sync()
        check_samples(plan, state, "--update" if previous else "--fresh")
        if previous:
            changes = compare(plan, state, previous, folder)
            if is_same(plan, state, previous):
                outdir.remove_held(folder)
                return Outcome(previous.manifest, None, state.bad, resumed, changes)
            prepare(plan, state, previous, folder, changes)
        changes = told_changes(folder)
        if changes:
            clear_the_way(state, folder, out)
        return Outcome(publish_build(plan, state, folder, out), state, state.bad, resumed, changes)


def _job(plan: Plan, previous: Previous | None, folder: Path) -> Job:
    settings = plan.settings
    return Job(
        plan.reader,
        settings.root,
        settings.scales,
        settings.filter,
        ImageFormat.parse(settings.image_format),
        settings.weak,
        settings.weak_crop,
        previous.known(folder / "known.npy") if previous else None,
    )


def make_checked_plan(reader: Reader, settings: Settings, out: Path | None) -> Plan:
    """The plan of a build, after all checks that need nothing written; UserError."""
    ImageFormat.parse(settings.image_format)
    plan = make_plan(reader, settings)
    if out is not None:
        outdir.check_place(out, settings.root)
    return plan


def _published(out: Path) -> Manifest | None:
    """The manifest of a complete build; SettingsError where another command has made it."""
    if not ((out / MANIFEST).is_file() and outdir.is_ours(out)):
        return None
    manifest = load_manifest(out)
    if "dataset" not in manifest.settings:
        raise SettingsError(
            f"{out} holds a shard set that seg-prep did not build (seg-shards merge and subset make such): choose "
            "another --out, or put this build in its place with --fresh"
        )
    return manifest


def _check_finished(manifest: Manifest, plan: Plan, out: Path) -> None:
    """SettingsError where a complete build has other settings, FormatError where files of it are gone."""
    differences = describe_differences(manifest.settings, plan.identity)
    if differences:
        remedy = "bring it up to date with --update" if differences.startswith("the source's") else "go back to those"
        raise SettingsError(
            f"{out} holds a complete build that differs in {differences}: {remedy}, choose another --out, or start "
            "over with --fresh"
        )
    check_sizes(manifest, out)
    outdir.remove_build_folder(out)  # left behind where a kill came after the manifest


def _start_or_continue(
    plan: Plan, folder: Path, out: Path, previous: Previous | None, quiet: bool
) -> tuple[BuildState, Journal]:
    path = folder / outdir.JOURNAL
    head: dict[str, object] = {"settings": plan.identity, "libraries": library_versions(), "stamp": plan.stamp}
    lines = read_journal(path)
    if previous:
        return _start_or_continue_update(path, lines, head | {"update": previous.manifest.digest}, out)
    if not lines:
        outdir.check_no_foreign(out)
        outdir.clear(out)  # what a --fresh that was killed has left: a new build must not take it for its own
        return BuildState(), Journal.create(path, head)
    old = lines[0][0]
    _check_same(old.get("settings", {}), plan.identity, out, "an unfinished build")
    _check_same(old.get("libraries", {}), library_versions(), out, "an unfinished build by other library versions")
    state, length = last_consistent(path, folder, out)
    if "update" in old and (state.chunks < plan.chunk_count or not (folder / outdir.UPDATE).exists()):
        raise FormatError(path, "the update that it is of has lost files: start over with --fresh")
    if old.get("stamp") != plan.stamp and state.chunks < plan.chunk_count:
        most = unchanged_chunks(_job(plan, None, folder), plan, folder, state.chunks, quiet)
        state, length = last_consistent(path, folder, out, most)
    return state, Journal.reopen(path, length)


def _start_or_continue_update(
    path: Path, lines: list[tuple[dict[str, Any], int]], head: Mapping[str, object], out: Path
) -> tuple[BuildState, Journal]:
    """An update that began on the same set and the same source, unwritten since, goes on; of any other none is kept."""
    if lines and all(lines[0][0].get(name) == value for name, value in head.items()):
        state, length = last_consistent(path, path.parent, out)
        return state, Journal.reopen(path, length)
    outdir.clear_building(out)
    return BuildState(), Journal.create(path, head)


def _check_same(old: Mapping[str, object], new: Mapping[str, object], out: Path, what: str) -> None:
    differences = describe_differences(old, new)
    if differences:
        raise SettingsError(
            f"{out} holds {what} that differs in {differences}: go back to those, choose another --out, "
            "or start over with --fresh"
        )


def _run(plan: Plan, job: Job, writer: ChunkWriter, workers: int, quiet: bool) -> None:
    """Encode and write all chunks that are not done yet."""
    start = writer.state.chunks
    left = plan.chunk_count - start
    if not left:
        return
    done = _samples_before(plan, start)
    with (
        Progress(plan.samples, "samples", quiet, done) as progress,
        closing(encode_chunks(job, plan.chunks(start), left, min(workers, left))) as encoded,
    ):
        for chunk, samples in encoded:
            writer.write(chunk, samples)
            progress.advance(len(chunk.samples))


def _samples_before(plan: Plan, start: int) -> int:
    """Samples in the first `start` chunks: all are full, but for the last of each split."""
    done = 0
    for split in plan.splits:
        chunks = min(start, -(-split.samples // plan.chunk_size))
        done += min(chunks * plan.chunk_size, split.samples)
        start -= chunks
    return done
