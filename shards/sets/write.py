"""A plan becomes a shard set: its shards in either format, then card, statistics and manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from shards.arrays import pack
from shards.card import card
from shards.index import decode_index
from shards.manifest import Manifest, ScaleSet, Split, publish, publish_bytes
from shards.published import publish_file, store_name, tar_set, zarr_set
from shards.scale import Scale
from shards.sets.newset import new_set
from shards.sets.plan import SetPlan, SplitPlan
from shards.sets.summary import Summary
from shards.shardfile import UNCUT, Blocks, ShardRecord, ShardStream
from shards.tar import sample_blocks

TARS = ".tars"  # where the tars lie that a Zarr store is packed from
Advance = Callable[[], None]
Summarise = Callable[[Path, Manifest], Summary]


def write_set(plan: SetPlan, out: Path, summarise: Summarise, advance: Advance = lambda: None) -> Manifest:
    """Write a shard set to the new folder `out`.

    Args:
        summarise: what card and stats.json say, by the set's folder and a manifest without files.
        advance: called once a sample and scale.

    Raises:
        SettingsError: `out` is there already, or a key comes twice.
        FormatError: a source is broken.
    """
    with new_set(out) as folder:
        splits = {split.name: _write_split(plan, split, folder, advance) for split in plan.splits}
        draft = plan.manifest.model_copy(
            update={
                "format": plan.format,
                "scales": plan.scales,
                "splits": splits,
                "settings": plan.settings,
                "files": [],
                "digest": "",
            }
        )
        summary = summarise(folder, draft)
        text = card(draft, summary.class_pixels, summary.quarantined).encode()
        files = [publish_file(folder, "README.md", text)]
        files += [publish_file(folder, name, data) for name, data in summary.files.items()]
        if summary.statistics is not None:
            publish_bytes(folder / "stats.json", (json.dumps(summary.statistics, indent=1) + "\n").encode())
        return publish(draft.model_copy(update={"files": files}), folder)


def _write_split(plan: SetPlan, split: SplitPlan, folder: Path, advance: Advance) -> Split:
    keys = split.keys()
    scales = {}
    for scale in sorted(plan.scales):
        stream = f"{split.name}/{Scale.parse(scale).folder}"
        (folder / stream).mkdir(parents=True)
        if plan.format == "zarr":
            scales[scale] = _write_store(plan, split, keys, scale, folder, advance)
        else:
            records = _write_tars(plan, split, keys, scale, folder / stream, advance)
            scales[scale] = tar_set(records)
    return Split(samples=split.samples, labelled=split.labelled, scales=scales)


def _write_tars(
    plan: SetPlan, split: SplitPlan, keys: Sequence[str], scale: str, place: Path, advance: Advance
) -> list[ShardRecord]:
    """Tar shards and their indexes, cut as the plan says."""
    groups = split.groups.get(scale)
    stream = ShardStream(place, f"{split.name}/{Scale.parse(scale).folder}", plan.limit if groups is None else UNCUT)
    ends = set(accumulate(groups or ()))
    try:
        for number, (key, members) in enumerate(zip(keys, _members(split, scale), strict=True), 1):
            sizes = {suffix: len(data) for suffix, data in members.items()}
            stream.add(key, Blocks(sample_blocks(key, members), sizes))
            if number in ends:
                stream.finish()
            advance()
        stream.finish()
    finally:
        stream.abandon()
    return stream.take_closed()


def _members(split: SplitPlan, scale: str) -> Iterator[dict[str, bytes]]:
    for part in split.parts:
        yield from part.members(scale)


def _write_store(
    plan: SetPlan, split: SplitPlan, keys: Sequence[str], scale: str, folder: Path, advance: Advance
) -> ScaleSet:
    """One Zarr store, packed from tars that go again."""
    tars = folder / TARS
    tars.mkdir()
    records = _write_tars(plan, split, keys, scale, tars, advance)
    stream = f"{split.name}/{Scale.parse(scale).folder}"
    pack(
        [(tars / r.name, decode_index((tars / r.index_name).read_bytes(), r.index_name)) for r in records],
        folder / stream / store_name(stream),
    )
    shutil.rmtree(tars)
    return zarr_set(folder, stream, [record.samples for record in records])
