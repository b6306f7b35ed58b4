"""Class statistics of a shard set, counted from its stored labels. ``seg-shards stats OUT``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec import decode_hard, decode_meta, decode_soft
from shards.dataset import ShardDataset, weak_labels
from shards.manifest import Manifest, load_manifest
from shards.scale import Scale
from shards.softlabel import SoftLabel
from shards.store import Place, Store, open_store

I64 = npt.NDArray[np.int64]


@dataclass
class LabelCounts:
    """Sums over the labels of one split at one scale.

    Args:
        mass: int64 [C + 1], pixels (scale 1) or cells (fractions added up) of each class; the last is void.
        images: int64 [C + 1], images that show the class, by their pixels or else by their image-level labels.
        cells, mixed: cells in all, and those of more than one class.
        label_bytes, image_bytes: stored bytes.
        samples, tagged: samples in all, and those that hold image-level labels and no pixel labels.
    """

    mass: npt.NDArray[np.float64]
    images: I64
    cells: int = 0
    mixed: int = 0
    label_bytes: int = 0
    image_bytes: int = 0
    samples: int = 0
    tagged: int = 0

    def add(self, soft: SoftLabel, stored: int) -> None:
        """Count one label; ``stored`` is its size in bytes."""
        mass = class_mass(soft, len(self.images) - 1)
        self.mass += mass
        self.images += mass > 0
        self.cells += soft.base.size
        self.mixed += len(soft.cells)
        self.label_bytes += stored

    def add_tags(self, tags: npt.NDArray[np.uint32]) -> None:
        """Count the classes uint32 [L] of an image-level label."""
        self.tagged += 1
        self.images[np.unique(tags)] += 1

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = zip((*names, "void"), self.mass, self.images, strict=True)
        classes = {name: {"cells": round(float(m), 3), "images": int(i)} for name, m, i in rows}
        sizes = {"label_bytes": self.label_bytes, "image_bytes": self.image_bytes}
        counted = {"samples": self.samples, "tagged": self.tagged, "cells": self.cells, "mixed_cells": self.mixed}
        return {**counted, **sizes, "classes": classes}


def class_mass(soft: SoftLabel, classes: int) -> npt.NDArray[np.float64]:
    """Cells of each class, fractions added up: float64 [classes + 1], the last is void."""
    uniform = np.ones(soft.base.size, np.bool_)
    uniform[soft.cells] = False
    mass = np.bincount(np.minimum(soft.base.ravel()[uniform], classes), minlength=classes + 1).astype(np.float64)
    return mass + np.bincount(np.minimum(soft.ids, classes), soft.weights, classes + 1) / soft.denominator


def count_labels(
    place: Place | Store,
    split: str,
    scale: str,
    advance: Callable[[], None] = lambda: None,
    manifest: Manifest | None = None,
) -> LabelCounts:
    """Count one split at one scale; ``advance`` is called once a sample. Raises UserError, FormatError."""
    store = open_store(place)
    dataset = ShardDataset(store, manifest or load_manifest(store), split, Scale.parse(scale))
    classes = len(dataset.classes)
    counts = LabelCounts(np.zeros(classes + 1, np.float64), np.zeros(classes + 1, np.int64))
    for i in range(len(dataset)):
        members = dataset.members(i)
        where = dataset.where(i)
        counts.samples += 1
        counts.image_bytes += sum(len(members[s]) for s in ("jpg", "png", "webp") if s in members)
        if "seg.png" in members:
            hard = decode_hard(members["seg.png"], classes, f"{where} [seg.png]")
            counts.add(SoftLabel.from_hard(hard), len(members["seg.png"]))
        elif "soft.npz" in members:
            counts.add(decode_soft(members["soft.npz"], f"{where} [soft.npz]"), len(members["soft.npz"]))
        elif (
            tags := weak_labels(decode_meta(members.get("json", b""), f"{where} [json]"), classes, where)
        ) is not None:
            counts.add_tags(tags)
        advance()
    return counts
