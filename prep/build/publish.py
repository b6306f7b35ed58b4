"""A finished set of shards -> a published shard set: files into place, then card, statistics, quarantine, manifest.

Every step can be done again: a build that is killed here goes on here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from prep.build.encode import BadSample
from prep.build.outdir import READY, UPDATE, remove_held
from prep.build.plan import Plan
from prep.build.sources import SOURCES, building_name
from prep.build.state import BuildState
from prep.build.statistics import class_pixels, summarise
from shards.arrays import pack
from shards.card import card
from shards.errors import FormatError, UserError, naming
from shards.index import decode_index
from shards.manifest import File, Manifest, ScaleSet, Split, publish, publish_bytes, sync_folder
from shards.published import QUARANTINE, publish_file, store_name, sync_tree, tar_set, zarr_set
from shards.shardfile import ShardRecord
from shards.verify import check_file


def publish_build(plan: Plan, state: BuildState, folder: Path, out: Path) -> Manifest:
    """Publish what lies in `folder` (`<out>/.build/`) to `out` and remove `folder`.

    Raises:
        UserError: a split without a single usable sample.
    """
    check_samples(plan, state)
    splits = {split.name: _publish_split(plan, state, split.name, folder, out) for split in plan.splits}
    quarantine = "".join(json.dumps(sample.to_dict(), ensure_ascii=False) + "\n" for sample in state.bad)
    reports = plan.reader.reports({name: counts.tally for name, counts in state.counts.items()})
    texts = {QUARANTINE: quarantine} | {name: json.dumps(value, indent=1) + "\n" for name, value in reports.items()}
    files = [publish_file(out, name, text.encode()) for name, text in texts.items()]
    draft = _manifest(plan, splits, files + [_publish_sources(state, name, folder, out) for name in splits])
    publish_bytes(out / "stats.json", (json.dumps(summarise(plan, state, draft), indent=1) + "\n").encode())
    text = card(draft, class_pixels(plan, state), len(state.bad))
    draft = draft.model_copy(update={"files": [publish_file(out, "README.md", text.encode()), *draft.files]})
    manifest = publish(draft, out)
    remove_held(folder)
    sync_folder(out)
    return manifest


def check_samples(plan: Plan, state: BuildState, again: str = "--fresh") -> None:
    """UserError where a split has samples and none can be used; `again` is the option that a mended source wants."""
    for split in plan.splits:
        if not state.counts[split.name].samples:
            first = next(bad for bad in state.bad if bad.split == split.name)
            raise UserError(
                f"split '{split.name}' has no usable sample: all {split.samples} are bad, the first because of "
                f"'{first.reason}'; mend the source and run again with {again}, or leave the split out with --split"
            )


def check_sizes(manifest: Manifest, out: Path) -> None:
    """FormatError where a published file is gone or of another size; checksums are left to `seg-shards verify`."""
    for file in manifest.all_files():
        path = out / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise FormatError(path, "missing or of another size than the manifest says: build again with --fresh")


def read_quarantine(manifest: Manifest, out: Path) -> list[BadSample]:
    """The samples that a published build has quarantined; FormatError where the file is not what was published."""
    (file,) = (file for file in manifest.files if file.path == QUARANTINE)
    problem = check_file(out, file)
    if problem:
        raise FormatError(out / QUARANTINE, "does not match the manifest: build again with --fresh")
    lines = (out / QUARANTINE).read_bytes().split(b"\n")
    return [BadSample(**json.loads(line)) for line in lines if line]


def _publish_split(plan: Plan, state: BuildState, split: str, folder: Path, out: Path) -> Split:
    scales = {}
    for scale in sorted(plan.settings.scales, key=str):
        stream = f"{split}/{scale.folder}"
        records = [record for record in state.closed if record.stream == stream]
        (out / stream).mkdir(parents=True, exist_ok=True)
        if plan.settings.format == "zarr":
            scales[str(scale)] = _publish_store(records, folder, out / stream, out)
        else:
            scales[str(scale)] = _publish_tars(records, folder, out / stream)
        sync_folder(out / stream)
        sync_folder(out / split)
    labelled = next(part.labelled for part in plan.splits if part.name == split)
    return Split(samples=state.counts[split].samples, labelled=labelled, scales=scales)


def _publish_sources(state: BuildState, split: str, folder: Path, out: Path) -> File:
    """Rename the list of a split's source samples into place."""
    place = out / split / SOURCES
    if (folder / building_name(split)).exists():
        (folder / building_name(split)).replace(place)
    sync_folder(place.parent)
    record = state.sources[split]
    return File(path=place.relative_to(out).as_posix(), bytes=record.bytes, sha256=record.sha256)


def _publish_tars(records: Sequence[ShardRecord], folder: Path, place: Path) -> ScaleSet:
    """Rename shards and their indexes into place; those that an earlier run has moved stay."""
    for record in records:
        source = folder if record.kept is None else folder / READY
        for name in (record.index_name, record.name):
            if (source / name).exists():
                (source / name).replace(place / name)
    return tar_set(records)


def _publish_store(records: Sequence[ShardRecord], folder: Path, place: Path, out: Path) -> ScaleSet:
    """Rename the Zarr store of a split at a scale into place, packed now where an update has not done so."""
    stream = records[0].stream
    store = place / store_name(stream)
    if not store.exists():
        ready = folder / READY / store.name
        (ready if ready.exists() else pack_store(records, folder)).replace(store)
    return zarr_set(out, stream, [record.samples for record in records], kept_stores(folder).get(stream))


def pack_store(records: Sequence[ShardRecord], folder: Path) -> Path:
    """Pack the tar shards, which stay in the build folder, into one Zarr store; it is on disk when this returns."""
    store = folder / store_name(records[0].stream)
    shutil.rmtree(store, ignore_errors=True)
    tars = [(folder / r.name, decode_index((folder / r.index_name).read_bytes(), r.index_name)) for r in records]
    with naming(store):
        pack(tars, store)
    sync_tree(store)  # a store in place counts as whole, even after a power cut
    return store


def kept_stores(folder: Path) -> dict[str, list[File]]:
    """{stream: files} of the Zarr stores that an update keeps; their checksums stay those of the old manifest."""
    path = folder / UPDATE
    told = json.loads(path.read_bytes())["stores"] if path.exists() else {}
    return {stream: [File.model_validate(file) for file in files] for stream, files in told.items()}


def _manifest(plan: Plan, splits: dict[str, Split], files: list[File]) -> Manifest:
    reader, settings = plan.reader, plan.settings
    return Manifest(
        format_version=1,
        dataset=reader.name,
        title=reader.title,
        source=reader.source,
        terms=reader.terms,
        format=settings.format,
        filter=settings.filter,
        scales=[str(scale) for scale in settings.scales],
        void=65535,
        classes=reader.classes.to_dict(),
        classes_digest=reader.classes.digest,
        splits=splits,
        settings=dict(plan.identity),
        protocol=dict(reader.protocol),
        files=files,
    )
