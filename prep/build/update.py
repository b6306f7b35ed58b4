"""Bringing a published set up to date with its source: what must hold, what has changed, and putting it in place.

    seg-prep camvid --root /data/CamVid --out data/camvid --update

An update is a build whose encoder is told which source samples the set holds already, by their digests. New shards grow
in `<out>/.build/` while the set stays as it is and can be read. Then, in this order, each step one that can be done
again after a kill: the manifest goes; shards that are kept move to `.build/ready/` under their new names; what is left
of the old set goes; a mark says so; and the set is published as any other. So no manifest ever names files that are
not there, and the disk holds the old set and the rewritten shards at most (a zarr store is packed beside the old one).

A set that was published for long is not trusted blindly. Files are checked for their sizes; whatever is copied out of
one, for its checksum first. A file that is kept whole is not read: its checksum in the new manifest is the old one, so
`seg-shards verify` finds what has happened to it since. A reader that is open meanwhile must open the set again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prep.build import outdir
from prep.build.known import read_digests
from prep.build.outdir import MOVED, READY, UPDATE
from prep.build.plan import Plan
from prep.build.previous import Previous, key_hash
from prep.build.publish import check_sizes, pack_store, read_quarantine
from prep.build.settings import describe_differences, digest_of, library_versions
from prep.build.sources import SOURCES, building_name
from prep.build.state import BuildState
from prep.raw import Reader
from shards.errors import FormatError, SettingsError
from shards.manifest import MANIFEST, Manifest, publish_bytes, sync_folder
from shards.published import store_name
from shards.shardfile import UNCUT, ShardRecord, ShardStream


@dataclass(frozen=True)
class SplitChange:
    """What an update did to a split: source samples, and its files (shards, or zarr stores) over all scales."""

    unchanged: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    rewritten: int = 0


def open_previous(plan: Plan, manifest: Manifest, out: Path) -> Previous:
    """The published set, as far as the plan may build on it.

    Raises:
        SettingsError: other settings, other libraries, foreign files, or a set that says nothing of its sources.
        FormatError: files that are gone or damaged.
    """
    _check_settings(plan, manifest, out)
    if not {f"{split}/{SOURCES}" for split in manifest.splits} <= {file.path for file in manifest.files}:
        raise SettingsError(
            f"{out} was built without {SOURCES}, which says what its samples were made of: expected a set that has it; "
            "build it once with --fresh"
        )
    differences = describe_differences(_libraries(out), library_versions())
    if differences:
        raise SettingsError(
            f"{out} was built by other library versions, which differ in {differences}: an update would mix them; go "
            "back to those, or build with --fresh"
        )
    check_sizes(manifest, out)
    outdir.check_no_foreign(out)
    return Previous(out, manifest, read_quarantine(manifest, out))


def _check_settings(plan: Plan, manifest: Manifest, out: Path) -> None:
    """SettingsError where more than the source differs; a split that has come or gone is the source's."""
    old, new = dict(manifest.settings), dict(plan.identity)
    source = {"source_listing"} | (set() if plan.settings.splits else {"splits"})
    for name in source:
        old.pop(name, None)
        new.pop(name, None)
    differences = describe_differences(old, new)
    if differences:
        raise SettingsError(
            f"{out} holds a complete build that differs in {differences}: --update expects the same settings; go back "
            "to those, choose another --out, or start over with --fresh"
        )


def _libraries(out: Path) -> Mapping[str, Any]:
    """What stats.json says that the set was built by; {} where it does not."""
    try:
        found = json.loads((out / "stats.json").read_bytes())["libraries"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def compare(plan: Plan, state: BuildState, previous: Previous, folder: Path) -> dict[str, SplitChange]:
    """What has changed, of each split that there is or was."""
    samples = {split.name: split.samples for split in plan.splits}
    names = [*samples, *(name for name in previous.splits if name not in samples)]
    return {name: _compare_split(plan, state, previous, folder, name, samples.get(name, 0)) for name in names}


def _compare_split(
    plan: Plan, state: BuildState, previous: Previous, folder: Path, name: str, samples: int
) -> SplitChange:
    new, gone = set(state.new.get(name, ())), set[int]()
    before = previous.splits.get(name)
    if before:
        digests = read_digests(folder / building_name(name)) if samples else b""
        windows = plan.settings.weak_crop is not None
        gone = {key_hash(before.key(line, windows)) for line in before.missing_from(digests)}
    changed, count = len(new & gone), len(state.new.get(name, ()))
    files = [_files(state, previous, f"{name}/{scale.folder}") for scale in plan.settings.scales]
    return SplitChange(
        unchanged=samples - count,
        added=count - changed,
        changed=changed,
        removed=len(gone) - changed,
        kept=sum(kept for kept, _ in files),
        rewritten=sum(rewritten for _, rewritten in files),
    )


def _files(state: BuildState, previous: Previous, stream: str) -> tuple[int, int]:
    """How many files of a stream are kept, and how many are rewritten."""
    records = _records(state, stream)
    if previous.manifest.format == "zarr":
        whole = _store_is_kept(records, previous)
        return (int(whole), int(not whole)) if records else (0, 0)
    kept = sum(record.kept is not None for record in records)
    return kept, len(records) - kept


def _records(state: BuildState, stream: str) -> list[ShardRecord]:
    return [record for record in state.closed if record.stream == stream]


def _store_is_kept(records: list[ShardRecord], previous: Previous) -> bool:
    """Whether a Zarr store holds the same groups as before, in the same order."""
    old = previous.stream(records[0].stream) if records else None
    return old is not None and [record.kept for record in records] == list(range(len(old.part.groups)))


def is_same(plan: Plan, state: BuildState, previous: Previous) -> bool:
    """Whether the set is what a build from scratch would give, as it is."""
    found = {name: record.sha256 for name, record in state.sources.items()}
    same = found == {name: split.file.sha256 for name, split in previous.splits.items()}
    told = _told_of(previous.manifest) == _told_of(plan.reader)
    return same and told and not describe_differences(previous.manifest.settings, plan.identity)


def _told_of(teller: Manifest | Reader) -> str:
    """Digest of what a reader tells the manifest beside the settings, such as the name of the file of `--classes`."""
    return digest_of([teller.title, teller.source, teller.terms, dict(teller.protocol)])


def prepare(
    plan: Plan, state: BuildState, previous: Previous, folder: Path, changes: Mapping[str, SplitChange]
) -> None:
    """Everything that needs the set before; nothing of it is touched."""
    (folder / READY).mkdir(exist_ok=True)
    stores: dict[str, list[dict[str, Any]]] = {}
    for stream in dict.fromkeys(record.stream for record in state.closed):
        records = _records(state, stream)
        old = previous.stream(stream)
        if plan.settings.format != "zarr":
            continue
        if old is not None and _store_is_kept(records, previous):
            stores[stream] = [file.model_dump() for file in old.part.files]
        elif not (folder / READY / store_name(stream)).exists():
            _write_kept_groups(records, previous, folder)
            pack_store(records, folder).replace(folder / READY / store_name(stream))
    sync_folder(folder / READY)
    told = {"changes": {name: vars(change) for name, change in changes.items()}, "stores": stores}
    publish_bytes(folder / UPDATE, json.dumps(told).encode())


def _write_kept_groups(records: list[ShardRecord], previous: Previous, folder: Path) -> None:
    """Shards of the groups that a Zarr store keeps while others change: stores are packed from shards."""
    for record in records:
        old = previous.stream(record.stream)
        if record.kept is None or old is None:
            continue
        stream = ShardStream(folder, record.stream, UNCUT, record.shard)
        first = sum(old.part.groups[: record.kept])
        for ordinal in range(first, first + record.samples):
            stream.add(old.place(ordinal).entry.key, old.blocks(ordinal))
        stream.finish()


def told_changes(folder: Path) -> dict[str, SplitChange]:
    """What an update that is being put in place has changed; {} where none is."""
    if not (folder / UPDATE).exists():
        return {}
    return {name: SplitChange(**change) for name, change in _told(folder)["changes"].items()}


def _told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / UPDATE).read_bytes())
    return found


def clear_the_way(state: BuildState, folder: Path, out: Path) -> None:
    """Take the old set away but for the files that are kept; after this it is published like any other build.

    Raises:
        SettingsError: foreign files; nothing is touched.
        FormatError: a kept file is gone.
    """
    if (folder / MOVED).exists():
        return
    outdir.check_no_foreign(out)
    (out / MANIFEST).unlink(missing_ok=True)
    sync_folder(out)
    for source, target in _moves(state, folder, out):
        if target.exists():
            continue
        if not source.exists():
            raise FormatError(source, "gone while the set was updated: start over with --fresh")
        source.replace(target)
    sync_folder(folder / READY)
    outdir.clear_published(out)
    publish_bytes(folder / MOVED, b"")


def _moves(state: BuildState, folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """(file of the old set, its place among those that are ready)."""
    for stream in _told(folder)["stores"]:
        yield out / stream / store_name(stream), folder / READY / store_name(stream)
    for record in state.closed:
        if record.kept is not None and record.bytes:
            old = replace(record, shard=record.kept)
            yield out / record.stream / old.index_name, folder / READY / record.index_name
            yield out / record.stream / old.name, folder / READY / record.name
