"""Tiny raw datasets in each dataset's real folder layout, for the tests of all three packages.

    fake_cityscapes(tmp_path / "cs", splits={"train": 4, "val": 2, "test": 1}, size=(64, 128))

Pictures are coloured blobs with a little noise, so that they compress like pictures; labels are the blobs. Equal
arguments give equal files.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]
CITYSCAPES_INSTANCE_IDS = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
_CITIES = {"train": "aachen", "val": "frankfurt", "test": "berlin"}


def blobs(rng: np.random.Generator, size: Size, ids: int, cell: int = 13) -> NDArray[np.uint8]:
    """A map uint8 [H, W] of wavy regions with ids 0..ids-1, and a few lines one pixel wide."""
    height, width = size
    grid = rng.integers(0, ids, size=(height // cell + 3, width // cell + 3))
    y, x = np.mgrid[0:height, 0:width]
    shift = (3 * np.sin(x / 7.0) + 2 * np.cos(y / 5.0)).astype(int)
    out = grid[np.clip((y + shift) // cell, 0, None), np.clip((x - shift) // cell, 0, None)].astype(np.uint8)
    out[:, rng.integers(0, width, 2)] = rng.integers(0, ids)
    return out


def picture(rng: np.random.Generator, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture uint8 [H, W, 3] of a label map: one colour an id, and noise."""
    palette = np.random.default_rng(99).integers(20, 236, size=(256, 3))
    noise = rng.integers(-12, 13, size=(*label.shape, 3))
    return (palette[label] + noise).astype(np.uint8)


def save(array: NDArray[np.uint8] | NDArray[np.uint16], path: Path, **options: object) -> Path:
    """Write an array as an image file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def taxonomy_rows(name: str) -> list[dict[str, str]]:
    """Rows of a taxonomy file, read independently of `prep.taxonomy`."""
    text = (resources.files("prep") / "taxonomies" / f"{name}.tsv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


def fake_cityscapes(root: Path, splits: Mapping[str, int] | None = None, size: Size = (64, 128), seed: int = 0) -> Path:
    """leftImg8bit/ and gtFine/ with labelIds and instanceIds (none for test), as the official archives unpack."""
    for split, count in (splits or {"train": 4, "val": 2, "test": 1}).items():
        for number in range(count):
            rng = np.random.default_rng([seed, number, *split.encode()])
            _write_cityscapes_frame(root, split, number, size, rng)
    return root


def _write_cityscapes_frame(root: Path, split: str, number: int, size: Size, rng: np.random.Generator) -> None:
    city = _CITIES.get(split, "city")
    stem = f"{city}_{number:06d}_{number * 19 + 19:06d}"
    ids = blobs(rng, size, 34)
    ids[: size[0] // 6] = 23  # sky
    ids[-size[0] // 8 :] = 1  # ego vehicle: void
    save(picture(rng, ids), root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
    if split == "test":
        return
    instances = ids.astype(np.uint16)
    halves = (np.arange(size[1])[None, :] >= size[1] // 2).astype(np.uint16)
    for label in CITYSCAPES_INSTANCE_IDS:  # left and right half are two instances
        instances = np.where(ids == label, label * 1000 + halves, instances).astype(np.uint16)
    truth = root / "gtFine" / split / city
    save(ids, truth / f"{stem}_gtFine_labelIds.png")
    save(instances, truth / f"{stem}_gtFine_instanceIds.png")


def fake_camvid(
    root: Path,
    splits: Mapping[str, int] | None = None,
    size: Size = (48, 64),
    seed: int = 0,
    suffix: str = "png",
    prefix: str = "/SegNet/CamVid",
) -> Path:
    """The SegNet release: lists of two columns with a foreign prefix, images and masks of ids 0..11."""
    for split, count in (splits or {"train": 4, "val": 3, "test": 2}).items():
        lines = []
        for number in range(count):
            rng = np.random.default_rng([seed, number, *split.encode()])
            stem = f"0016E5_{number * 30 + ord(split[1]):05d}"
            label = blobs(rng, size, 12)
            options = {"quality": 90, "subsampling": 0} if suffix == "jpg" else {}
            save(picture(rng, label), root / split / f"{stem}.{suffix}", **options)
            save(label, root / f"{split}annot" / f"{stem}.png")
            lines.append(f"{prefix}/{split}/{stem}.{suffix} {prefix}/{split}annot/{stem}.png\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def fake_camvid_original(
    root: Path, count: int = 5, size: Size = (48, 64), seed: int = 0, lists: Mapping[str, int] | None = None
) -> Path:
    """The original release: 701_StillsRaw_full/ and LabeledApproved_full/ in 32 colours.

    Args:
        lists: {"train": 3, "val": 2} also writes the SegNet lists over the first frames.
    """
    colours = np.array(
        [[int(v) for v in row["colour"].split(",")] for row in taxonomy_rows("camvid-32_to_11")], np.uint8
    )
    stems = [f"0001TP_{number * 30 + 6690:06d}" for number in range(count)]
    for number, stem in enumerate(stems):
        rng = np.random.default_rng([seed, number])
        ids = blobs(rng, size, 32, cell=7)
        save(picture(rng, ids), root / "701_StillsRaw_full" / f"{stem}.png")
        save(colours[ids], root / "LabeledApproved_full" / f"{stem}_L.png")
    start = 0
    for split, share in (lists or {}).items():
        chosen, start = stems[start : start + share], start + share
        lines = [f"/SegNet/CamVid/{split}/{s}.png /SegNet/CamVid/{split}annot/{s}.png\n" for s in chosen]
        (root / f"{split}.txt").write_text("".join(lines))
    return root
