"""What card and stats.json say of a set that is made of others: carried over, or counted from its labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.manifest import Manifest
from shards.published import QUARANTINE
from shards.statistics import LabelCounts, count_labels


@dataclass(frozen=True)
class Summary:
    """What lies beside the shards.

    Args:
        class_pixels: class name -> labelled pixels at scale 1.
        quarantined: source samples that could not be used.
        statistics: contents of stats.json, None for no such file.
        files: other files by name, the card aside.
    """

    class_pixels: dict[str, int]
    quarantined: int = 0
    statistics: dict[str, Any] | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def count_set(folder: Path, manifest: Manifest, quarantine: bytes, advance: Callable[[], None]) -> Summary:
    """Count the labels of shards that are written; `advance` is called once a sample and scale."""
    names, total, splits = manifest.class_table.names, dict[str, int](), dict[str, Any]()
    for name in manifest.splits:
        counts = {s: count_labels(folder, name, s, advance, manifest) for s in manifest.scales}
        splits[name] = _split_figures(manifest, name, counts, names)
        if "1" in counts and counts["1"].cells:
            for index, class_name in enumerate(names):
                total[class_name] = total.get(class_name, 0) + int(counts["1"].mass[index])
    statistics = {"dataset": manifest.dataset, "splits": splits}
    return Summary(total, len(quarantine.splitlines()), statistics, {QUARANTINE: quarantine})


def _split_figures(
    manifest: Manifest, split: str, counts: dict[str, LabelCounts], names: tuple[str, ...]
) -> dict[str, Any]:
    """As `seg-prep` has them, but for what only a source tells; shares are of the largest scale."""
    largest = counts[manifest.scales[0]]
    cells = max(largest.cells, 1)
    pixels = counts["1"].mass if "1" in counts and counts["1"].cells else None
    classes = [
        {
            "id": i,
            "name": name,
            **({} if pixels is None else {"pixels": int(pixels[i])}),
            "share": float(largest.mass[i]) / cells,
            "images": int(largest.images[i]),
        }
        for i, name in enumerate(names)
    ]
    return {
        "samples": manifest.splits[split].samples,
        "void_share": float(largest.mass[-1]) / cells,
        "mixed_cells": {s: c.mixed / c.cells for s, c in sorted(counts.items()) if s != "1" and c.cells},
        "bytes": scale_bytes(manifest, split),
        "classes": classes,
    }


def scale_bytes(manifest: Manifest, split: str) -> dict[str, int]:
    """Bytes of a split's shards at each scale."""
    scales = manifest.splits[split].scales
    return {scale: sum(f.bytes for f in (*part.shards, *part.files)) for scale, part in scales.items()}
