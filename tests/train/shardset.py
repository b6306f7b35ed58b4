"""Tiny shard sets for the trainer's tests, written with the format's own writers and no `prep`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import shards
from shards.classes import ClassTable
from shards.codec import ImageFormat, encode_hard, encode_image, encode_instances, encode_meta, encode_soft
from shards.index import encode_index
from shards.manifest import File, Manifest, ScaleSet, Shard, Split, publish
from shards.scale import Scale
from shards.tar import TAR_END, IndexEntry, sample_blocks

CLASSES = ClassTable.make(
    ("road", "wall", "car", "person"),
    categories=("flat", "construction", "vehicle", "human"),
    things=(False, False, True, True),
)
COLOURS = np.array([[128, 64, 128], [70, 70, 70], [0, 0, 142], [220, 20, 60], [0, 0, 0]], np.uint8)


@dataclass(frozen=True)
class Raw:
    """A source sample."""

    key: str
    image: np.ndarray
    hard: np.ndarray | None
    instances: np.ndarray | None = None


def scene(index: int, size: tuple[int, int] = (64, 96), classes: int = 4, void: bool = True) -> Raw:
    """A picture whose colours show its classes: bands, blocks, a thin pole, a strip of void."""
    rng = np.random.default_rng(index)
    h, w = size
    hard = np.zeros(size, np.uint16)
    hard[: h // 2 + int(rng.integers(-5, 5))] = 1 % classes
    for klass in range(2, classes):
        y, x = int(rng.integers(0, h - 16)), int(rng.integers(0, w - 20))
        hard[y : y + 13, x : x + 17] = klass
    hard[:, int(rng.integers(0, w))] = classes - 1
    if void:
        hard[h - 5 :, : w // 3] = shards.IGNORE
    palette = np.concatenate([COLOURS[:4], rng.integers(0, 255, (max(0, classes - 4), 3)), COLOURS[4:]])
    image = palette[np.where(hard == shards.IGNORE, classes, hard)].astype(np.int16)
    image += rng.integers(-20, 20, image.shape, dtype=np.int16)
    instances = np.where(hard == 2 % classes, 1, 0).astype(np.uint16)
    return Raw(f"scene_{index:04d}", np.clip(image, 0, 255).astype(np.uint8), hard, instances)


def write(
    folder: Path,
    splits: dict[str, Sequence[Raw]],
    scales: Sequence[str] = ("1", "1/2", "1/4"),
    filter: str = "box",
    classes: ClassTable = CLASSES,
    shard: int = 3,
    protocol: dict[str, object] | None = None,
) -> Path:
    """Publish a shard set of `shard` samples a tar and return its folder."""
    ordered = sorted(scales)
    parts = {
        name: Split(
            samples=len(raws),
            labelled=all(raw.hard is not None for raw in raws),
            scales={scale: _scale_set(folder, name, scale, raws, filter, classes, shard) for scale in ordered},
        )
        for name, raws in splits.items()
    }
    manifest = Manifest(
        format_version=1,
        dataset="scenes",
        title="Scenes",
        source="tests",
        terms="none",
        format="webdataset",
        filter=filter,
        scales=ordered,
        void=65535,
        classes=classes.to_dict(),
        classes_digest=classes.digest,
        splits=parts,
        settings={},
        protocol=protocol or {},
        files=[],
    )
    publish(manifest, folder)
    return folder


def _scale_set(folder, split, scale, raws, filter, classes, shard):
    place = folder / split / Scale.parse(scale).folder
    place.mkdir(parents=True, exist_ok=True)
    made, groups = [], []
    for number, first in enumerate(range(0, len(raws), shard)):
        blocks, entries = [], []
        for raw in raws[first : first + shard]:
            members = _members(raw, split, scale, filter, classes)
            entries.append(IndexEntry(raw.key, sum(map(len, blocks)), {k: len(v) for k, v in members.items()}))
            blocks.append(sample_blocks(raw.key, members))
        tar = _publish(place / f"{split}-{number:05d}.tar", b"".join(blocks) + TAR_END, folder)
        index = _publish(place / f"{split}-{number:05d}.jsonl", encode_index(entries), folder)
        made.append(Shard(**tar.model_dump(), samples=len(entries), index=index))
        groups.append(len(entries))
    return ScaleSet(groups=groups, shards=made)


def _members(raw, split, scale, filter, classes):
    png = ImageFormat.parse("png")
    meta = {"key": raw.key, "source": raw.key, "size": list(raw.image.shape[:2]), "split": split}
    if scale == "1":
        members = {"png": encode_image(raw.image, png)}
        if raw.hard is not None:
            members["seg.png"] = encode_hard(raw.hard, len(classes))
        if raw.instances is not None:
            members["inst.png"] = encode_instances(raw.instances)
    else:
        members = {"png": encode_image(shards.resize_image(raw.image, scale, filter), png)}
        if raw.hard is not None:
            members["soft.npz"] = encode_soft(shards.soften(raw.hard, scale, filter))
    return {**members, "json": encode_meta(meta)}


def _publish(path, data, folder):
    path.write_bytes(data)
    return File(path=str(path.relative_to(folder)), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
