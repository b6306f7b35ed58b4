"""The same samples in the other format: tar shards to Zarr and back, losslessly.

A set that is converted twice has the bytes of the first, and one that is converted once has those that `seg-prep
--format` would have written: members are copied, and a Zarr set's manifest says how its samples were grouped in shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import FormatError, SettingsError, UserError
from shards.manifest import Manifest
from shards.published import QUARANTINE
from shards.sets.plan import Format, OpenSet, SetPlan, SplitPlan, every_sample
from shards.sets.summary import Summary, scale_bytes
from shards.sets.write import write_set
from shards.shardfile import UNCUT

MOST_STATISTICS = 1 << 28  # bytes of a stats.json


def plan_conversion(source: OpenSet, format: Format | None) -> SetPlan:
    """Every sample, grouped as it is; `format` None is the other one. SettingsError where nothing is to do."""
    manifest = source.manifest
    other: Format = "zarr" if manifest.format == "webdataset" else "webdataset"
    if format == manifest.format:
        raise SettingsError(f"{source.store.name} is {format} already: expected --format {other}")
    splits = [
        SplitPlan(
            name,
            split.labelled,
            (every_sample(source, name),),
            {scale: list(part.groups) for scale, part in split.scales.items()},
        )
        for name, split in manifest.splits.items()
    ]
    settings = {**manifest.settings, **({"format": other} if "format" in manifest.settings else {})}
    return SetPlan(manifest, other, list(manifest.scales), splits, settings, UNCUT)


def convert(source: OpenSet, plan: SetPlan, out: Path, advance: Callable[[], None] = lambda: None) -> Manifest:
    """Write the conversion to the new folder `out`; raises as `write_set`."""
    return write_set(plan, out, lambda _, draft: _carried(source, draft), advance)


def _carried(source: OpenSet, draft: Manifest) -> Summary:
    """Everything beside the shards as it is, the bytes of shards aside."""
    files = {file.path: source.store.whole(file) for file in source.manifest.files if file.path != "README.md"}
    quarantined = len(files.get(QUARANTINE, b"").splitlines())
    statistics = _statistics(source)
    if statistics is None:
        return Summary({}, quarantined, None, files)
    splits = statistics["splits"]
    for name in draft.splits:
        splits[name]["bytes"] = scale_bytes(draft, name)
    pixels = dict.fromkeys(draft.class_table.names, 0)
    for split in splits.values():
        for one in split["classes"]:
            pixels[one["name"]] += one.get("pixels", 0)
    return Summary(pixels if any(pixels.values()) else {}, quarantined, statistics, files)


def _statistics(source: OpenSet) -> dict[str, Any] | None:
    """stats.json, which no manifest vouches for: None where it is not there, FormatError where it is not one."""
    try:
        data = source.store.small("stats.json", MOST_STATISTICS)
    except UserError:  # there is none
        return None
    where = f"{source.store.name}/stats.json"
    try:
        found: dict[str, Any] = json.loads(data)
        names = set(source.manifest.class_table.names)
        whole = set(found["splits"]) == set(source.manifest.splits) and all(
            one["name"] in names and isinstance(one.get("pixels", 0), int)
            for split in found["splits"].values()
            for one in split["classes"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(where, "not the statistics of this set: remove the file or build again") from error
    if not whole:
        raise FormatError(where, "not the statistics of this set: remove the file or build again")
    return found
