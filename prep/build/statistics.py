"""stats.json: what is in a shard set, per split and class, and what may differ between equal sets: times, libraries."""

from __future__ import annotations

from typing import Any

from prep.build.counts import Counts
from prep.build.plan import Plan
from prep.build.settings import library_versions
from prep.build.state import BuildState
from shards import IGNORE
from shards.manifest import Manifest


def summarise(plan: Plan, state: BuildState, manifest: Manifest) -> dict[str, Any]:
    """The contents of stats.json.

    Args:
        manifest: as it will be published, files aside; for the bytes of each scale.
    """
    seconds = max(state.seconds, 1e-9)
    return {
        "dataset": plan.reader.name,
        "source_bytes": plan.source_bytes,
        "splits": {name: _summarise_split(plan, state, name, manifest) for name in manifest.splits},
        "libraries": library_versions(),
        "time": {"seconds": round(seconds, 3), "samples_per_second": round(plan.samples / seconds, 2)},
    }


def class_pixels(plan: Plan, state: BuildState) -> dict[str, int]:
    """{class name: labelled pixels over all splits}; {} where scale 1 of no split is labelled."""
    total = Counts()
    for counts in state.counts.values():
        total.add(counts)
    return {name: total.pixels[index] for index, name in enumerate(plan.reader.classes.names)} if total.pixels else {}


def _summarise_split(plan: Plan, state: BuildState, split: str, manifest: Manifest) -> dict[str, Any]:
    counts = state.counts[split]
    total = max(sum(counts.pixels.values()), 1)
    scales = manifest.splits[split].scales
    return {
        "samples": counts.samples,
        "quarantined": sum(bad.split == split for bad in state.bad),
        "pixels": sum(counts.pixels.values()),
        "void_share": counts.pixels[IGNORE] / total,
        "mixed_cells": {scale: mixed / cells for scale, (mixed, cells) in sorted(counts.mixed.items())},
        "bytes": {scale: sum(f.bytes for f in (*part.shards, *part.files)) for scale, part in scales.items()},
        "classes": [
            {
                "id": index,
                "name": name,
                "pixels": counts.pixels[index],
                "share": counts.pixels[index] / total,
                "images": counts.images[index],
            }
            for index, name in enumerate(plan.reader.classes.names)
        ],
    }
