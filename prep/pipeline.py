"""The build: plan, continue or start, encode in parallel, write in order, publish.

    outcome = build(load_reader("camvid"), Settings("camvid", root, ...), out, workers=4)

A build that is interrupted at any moment continues with the same call and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from prep.build import outdir
from prep.build.encode import BadSample, Job
from prep.build.journal import Journal, read_journal
from prep.build.plan import Plan, make_plan
from prep.build.publish import check_sizes, publish_build, read_quarantine
from prep.build.settings import Settings, describe_differences, library_versions
from prep.build.state import BuildState, last_consistent
from prep.build.worker import encode_chunks
from prep.build.writer import ChunkWriter
from prep.raw import Reader
from shards.codec import ImageFormat
from shards.errors import SettingsError
from shards.manifest import MANIFEST, Manifest, load_manifest
from shards.terminal import Progress


@dataclass(frozen=True)
class Outcome:
    """How a build ended.

    Attributes:
        state: what was counted; None where the build was complete before.
        bad: quarantined samples, in sample order.
        resumed: samples' chunks that earlier runs had done.
    """

    manifest: Manifest
    state: BuildState | None
    bad: list[BadSample]
    resumed: int = 0


def build(
    reader: Reader, settings: Settings, out: Path, *, workers: int = 1, fresh: bool = False, quiet: bool = False
) -> Outcome:
    """Build a shard set, or continue one.

    Raises:
        UserError: the root, the splits or the settings do not fit, or the folder is another build's.
        OSError: the disk is full; what is journaled stays and is continued.
    """
    plan = make_checked_plan(reader, settings, out)
    if not fresh and (found := _finished(plan, out)):
        return Outcome(found, None, read_quarantine(found, out))
    if fresh or not outdir.is_ours(out):
        outdir.check_no_foreign(out)
    job = Job(
        reader,
        settings.root,
        settings.scales,
        settings.filter,
        ImageFormat.parse(settings.image_format),
        settings.weak,
        settings.weak_crop,
    )
    with outdir.locked(out) as folder:
        if fresh:
            outdir.clear(out)
        elif (out / MANIFEST).exists():  # since we looked, before the lock was ours
            raise SettingsError(f"another seg-prep finished its build in {out} just now: run the same command again")
        state, journal = _start_or_continue(plan, folder, out)
        resumed = state.chunks
        with closing(ChunkWriter(plan, folder, journal, state)) as writer:
            _run(plan, job, writer, workers, quiet)
            journal.sync()
        return Outcome(publish_build(plan, state, folder, out), state, state.bad, resumed)


def make_checked_plan(reader: Reader, settings: Settings, out: Path | None) -> Plan:
    """The plan of a build, after all checks that need nothing written; UserError."""
    ImageFormat.parse(settings.image_format)
    plan = make_plan(reader, settings)
    if out is not None:
        outdir.check_place(out, settings.root)
    return plan


def _finished(plan: Plan, out: Path) -> Manifest | None:
    """The manifest of a complete build with the same settings; SettingsError where they differ or files are gone."""
    if not (out / MANIFEST).is_file() or not outdir.is_ours(out):
        return None
    manifest = load_manifest(out)
    _check_same(manifest.settings, plan.identity, out, "a complete build")
    check_sizes(manifest, out)
    outdir.remove_build_folder(out)  # left behind where a kill came after the manifest
    return manifest


def _start_or_continue(plan: Plan, folder: Path, out: Path) -> tuple[BuildState, Journal]:
    path = folder / outdir.JOURNAL
    head: dict[str, Mapping[str, object]] = {"settings": plan.identity, "libraries": library_versions()}
    lines = read_journal(path)
    if not lines:
        outdir.check_no_foreign(out)
        outdir.clear(out)  # what a --fresh that was killed has left: a new build must not take it for its own
        return BuildState(), Journal.create(path, head)
    _check_same(lines[0][0].get("settings", {}), plan.identity, out, "an unfinished build")
    _check_same(
        lines[0][0].get("libraries", {}), head["libraries"], out, "an unfinished build by other library versions"
    )
    state, length = last_consistent(path, folder, out)
    return state, Journal.reopen(path, length)


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
