"""A tiny shard set, built from the shards package alone: what the tests of reading and verifying read."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np

from shards import ClassTable, Manifest, Scale, resize_image, soften
from shards.arrays import pack
from shards.card import card
from shards.codec import ImageFormat, encode_hard, encode_image, encode_instances, encode_meta, encode_soft
from shards.index import encode_index
from shards.manifest import File, ScaleSet, Shard, Split, load_manifest, publish
from shards.tar import TAR_END, IndexEntry, sample_blocks

CLASSES = ClassTable.make(
    ["road", "car", "pole"], categories=["flat", "vehicle", "object"], things=[False, True, False]
)
SCALES = ("1", "1/2", "1/4")


def pair(i: int, size: tuple[int, int] = (32, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and hard label uint16 [H, W] number i, with thin lines and void."""
    random = np.random.default_rng(i)
    hard = np.zeros(size, np.uint16)
    hard[5:17, 3 + i : 20 + i] = 1
    hard[:, 30 + i] = 2
    hard[-6:] = 65535
    return random.integers(0, 256, (*size, 3)).astype(np.uint8), hard


def members(i: int, scale: str, split: str, key: str) -> dict[str, bytes]:
    """Stored members of sample i at a scale; the test split has no labels."""
    image, hard = pair(i)
    small = resize_image(image, scale, "box")
    out = {"png": encode_image(small, ImageFormat("png"))}
    if split != "test":
        if scale == "1":
            out["seg.png"] = encode_hard(hard, len(CLASSES))
            out["inst.png"] = encode_instances((hard == 1).astype(np.uint16))
        else:
            out["soft.npz"] = encode_soft(soften(hard, scale, "box"))
    meta = {"key": key, "split": split, "source": f"{key}.png", "size": [*hard.shape], "scale": scale}
    out["json"] = encode_meta(meta if split == "test" else {**meta, "weak": [0, 1]})
    return out


def build(
    folder: Path, format: str = "webdataset", samples: int = 5, per_shard: int = 2, sums: bool = True
) -> Manifest:
    """Publish a shard set of splits train and test (unlabelled) in ``folder``; returns its manifest.

    Args:
        sums: whether indexes hold the checksums of samples; those of old sets do not.
    """
    splits = {}
    for split in ("train", "test"):
        scales = {s: _scale_set(folder, split, s, format, samples, per_shard, sums) for s in SCALES}
        splits[split] = Split(samples=samples, labelled=split != "test", scales=scales)
    facts = {"dataset": "tiny", "title": "Tiny", "source": "made by a test", "terms": "none", "void": 65535}
    draft = Manifest.model_validate(
        {
            **facts, "format_version": 1, "format": format, "filter": "box", "scales": list(SCALES),
            "classes": CLASSES.to_dict(), "classes_digest": CLASSES.digest, "settings": {}, "protocol": {}, "files": [],
            "splits": {name: split.model_dump() for name, split in splits.items()},
        }
    )  # fmt: skip
    (folder / "README.md").write_text(card(draft, {"road": 10, "car": 3}, quarantined=1))
    return publish(draft.model_copy(update={"files": [file_of(folder, folder / "README.md")]}), folder)


def _scale_set(folder: Path, split: str, scale: str, format: str, samples: int, per_shard: int, sums: bool) -> ScaleSet:
    """Write one split at one scale."""
    name = Scale.parse(scale).folder
    target = folder / split / name
    target.mkdir(parents=True)
    tars = []
    for number, first in enumerate(range(0, samples, per_shard)):
        path = target / f"{split}-{name}-{number:05d}.tar"
        tars.append(_write_tar(path, split, scale, range(first, min(first + per_shard, samples)), sums))
    groups = [len(entries) for _, entries in tars]
    if format == "webdataset":
        return ScaleSet(groups=groups, shards=[_shard(folder, path, entries) for path, entries in tars])
    store = target / f"{split}-{name}.zarr"
    pack(tars, store)
    for path, _ in tars:
        path.unlink()
    files = [file_of(folder, p) for p in sorted(store.rglob("*")) if p.is_file()]
    return ScaleSet(groups=groups, store=str(store.relative_to(folder)), files=files)


def _write_tar(path: Path, split: str, scale: str, numbers: range, sums: bool) -> tuple[Path, list[IndexEntry]]:
    data, entries = b"", []
    for i in numbers:
        key = f"city/{split}_{i:03d}"
        part = members(i, scale, split, key)
        blocks, sizes = sample_blocks(key, part), {suffix: len(content) for suffix, content in part.items()}
        entries.append(IndexEntry(key, len(data), sizes, zlib.crc32(blocks) if sums else None))
        data += blocks
    path.write_bytes(data + TAR_END)
    return path, entries


def _shard(folder: Path, path: Path, entries: list[IndexEntry]) -> Shard:
    index = path.with_suffix(".index.jsonl")
    index.write_bytes(encode_index(entries))
    return Shard(**file_of(folder, path).model_dump(), samples=len(entries), index=file_of(folder, index))


def file_of(folder: Path, path: Path) -> File:
    """What a manifest says of a file."""
    data = path.read_bytes()
    return File(path=str(path.relative_to(folder)), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def seal_anew(folder: Path) -> Manifest:
    """Publish the manifest again, with the bytes and checksums that files have now, and the Zarr files there now."""
    manifest = load_manifest(folder)
    draft = manifest.model_dump(mode="json")
    for split in draft["splits"].values():
        for part in split["scales"].values():
            for shard in part["shards"]:
                shard.update(file_of(folder, folder / shard["path"]).model_dump())
                shard["index"] = file_of(folder, folder / shard["index"]["path"]).model_dump()
            if part["store"]:
                paths = sorted(p for p in (folder / part["store"]).rglob("*") if p.is_file())
                part["files"] = [file_of(folder, path).model_dump() for path in paths]
    return publish(Manifest.model_validate(draft), folder)
