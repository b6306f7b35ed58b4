"""Tiny raw datasets of the readers whose layouts are plain folders: ids in PNGs or .mat files beside the images.

Each returns its root; `ids_of` a written label is the independent way back to what was drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from shards import IGNORE
from tests.fakes import Size, blobs, picture, save, taxonomy_rows


def ids_of(path: Path) -> NDArray[np.uint16]:
    """The ids that a label PNG holds, read with Pillow alone."""
    return np.asarray(Image.open(path)).astype(np.uint16)


def mapped(ids: NDArray[np.uint16], remap: str) -> list[list[int]]:
    """Ids -> class indices by a remap's rows, pixel by pixel."""
    table = {int(row["id"]): IGNORE if row["to"] == "void" else int(row["to"]) for row in taxonomy_rows(remap)}
    return [[table[value] for value in line] for line in ids.tolist()]


def _draw(seed: Sequence[int], ids: int, size: Size = (24, 32)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(label, picture); every id occurs where there is room."""
    rng = np.random.default_rng(list(seed))
    label = blobs(rng, size, ids, cell=5)
    row = np.arange(ids, dtype=np.uint8)[: label.size]
    label.reshape(-1)[: len(row)] = row
    return label, picture(rng, label)


def _palette_png(label: NDArray[np.uint8], path: Path) -> None:
    image = Image.fromarray(label, "L").convert("P")
    image.putdata(label.ravel().tolist())
    image.putpalette([(value * 37) % 256 for value in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def fake_folder(
    root: Path, splits: Mapping[str, int], classes: int = 4, size: Size = (24, 32), lines: str | None = None
) -> Path:
    """images/<split>/street/x.jpg, labels/<split>/street/x.png and classes.txt; "" is no split folder."""
    for split, count in splits.items():
        for number in range(count):
            label, pixels = _draw((number, len(split)), classes, size)
            label[-2:] = 255
            stem = Path(split) / "street" / f"frame{number:03d}"
            save(pixels, root / "images" / stem.with_suffix(".jpg"), quality=90, subsampling=0)
            save(label, root / "labels" / stem.with_suffix(".png"))
    text = lines if lines is not None else "".join(f"class {number}\n" for number in range(classes))
    (root / "classes.txt").write_text(text, encoding="utf-8")
    return root


def fake_vistas(
    root: Path, releases: Sequence[str] = ("v1.2",), splits: Mapping[str, int] | None = None, *, old: bool = False
) -> Path:
    """training/, validation/ and testing/ with palette labels; `old` is the layout of v1.2 as first published."""
    tables = {"v1.2": "vistas-66_to_65", "v2.0": "vistas-124_to_123"}
    for folder, count in (splits or {"training": 2, "validation": 1, "testing": 1}).items():
        for number in range(count):
            for release in releases:
                label, pixels = _draw((number, len(folder)), len(taxonomy_rows(tables[release])))
                name = f"{number}_-aB{folder[0]}"
                save(pixels, root / folder / "images" / f"{name}.jpg")
                if folder != "testing":
                    _palette_png(label, root / folder / ("" if old else release) / "labels" / f"{name}.png")
    for release in releases:
        labels = [{"name": row["name"], "color": [0, 0, 0]} for row in taxonomy_rows(tables[release])]
        name = "config.json" if old else f"config_{release}.json"
        (root / name).write_text(json.dumps({"version": release, "labels": labels}))
    return root


def fake_kitti(root: Path, train: int = 3, test: int = 1, *, semantic: bool = True) -> Path:
    """training/{image_2,semantic,instance} and testing/image_2."""
    for number in range(train):
        ids, pixels = _draw((number, 5), 34, (26, 40))
        halves = 1 + (np.arange(ids.shape[1])[None] >= 20).astype(np.uint16)
        instances = ids.astype(np.uint16) * 256 + np.where(ids >= 24, halves, 0).astype(np.uint16)
        name = f"{number:06d}_10.png"
        save(pixels, root / "training/image_2" / name)
        save(instances, root / "training/instance" / name)
        if semantic:
            save(ids, root / "training/semantic" / name)
    for number in range(test):
        save(_draw((number, 6), 34)[1], root / "testing/image_2" / f"{number:06d}_10.png")
    return root


def fake_wilddash1(root: Path, val: int = 3, test: int = 1) -> Path:
    """wd_val_01/ with images and labels side by side, wd_bench_01/ with images."""
    for number in range(val):
        ids, pixels = _draw((number, 7), 34)
        save(pixels, root / f"wd_val_01/ab{number:04d}_100000.png")
        save(ids, root / f"wd_val_01/ab{number:04d}_100000_labelIds.png")
    for number in range(test):
        save(_draw((number, 8), 34)[1], root / f"wd_bench_01/cd{number:04d}_100000.png")
    return root


def fake_wilddash2(root: Path, count: int = 4, test: int = 1, end: str = ".png", *, lists: bool = True) -> Path:
    """wd_public_02/{images,labels,random_split.json} and wd_both_02/images."""
    names = [f"us{number:04d}_100000" for number in range(count)]
    for number, name in enumerate(names):
        ids, pixels = _draw((number, 9), 81)
        save(pixels, root / "wd_public_02/images" / f"{name}.jpg")
        save(ids, root / "wd_public_02/labels" / f"{name}{end}")
    for number in range(test):
        save(_draw((number, 10), 81)[1], root / "wd_both_02/images" / f"de{number:04d}_100000.jpg")
    if lists:
        files = [f"{name}.jpg" for name in names]
        (root / "wd_public_02/random_split.json").write_text(json.dumps({"train": files[:-1], "val": files[-1:]}))
    return root


def fake_scannet(root: Path, scenes: Sequence[str] = ("scene0000_00", "scene0001_01", "scene0707_00")) -> Path:
    """scannet_frames_25k/ with two frames a scene, and the lists: the last scene is val."""
    for place, scene in enumerate(scenes):
        for frame in (0, 100):
            ids, pixels = _draw((place, frame), 41)
            save(pixels, root / "scannet_frames_25k" / scene / f"color/{frame:06d}.jpg")
            save(ids, root / "scannet_frames_25k" / scene / f"label/{frame:06d}.png")
    (root / "scannetv2_train.txt").write_text("".join(f"{scene}\n" for scene in scenes[:-1]))
    (root / "scannetv2_val.txt").write_text(f"{scenes[-1]}\n")
    return root


def fake_ccp(root: Path, pixel: int = 8, weak: int = 3, *, lists: bool = False) -> Path:
    """photos/, annotations/{pixel-level,image-level}/*.mat; tags repeat and are not sorted, as in the source."""
    for folder in ("pixel-level", "image-level"):
        (root / "annotations" / folder).mkdir(parents=True, exist_ok=True)
    stems = [f"{number:04d}" for number in range(1, pixel + 1)]
    for number, stem in enumerate(stems):
        label, pixels = _draw((number, 11), 59)
        save(pixels, root / "photos" / f"{stem}.jpg")
        savemat(root / f"annotations/pixel-level/{stem}.mat", {"groundtruth": label}, do_compression=True)
    tagged = [f"{number:04d}" for number in range(1001, 1001 + weak)]
    for number, stem in enumerate(tagged):
        save(_draw((number, 12), 59)[1], root / "photos" / f"{stem}.jpg")
        tags = np.array([[58, 0, 7 + number, 7 + number]], np.uint8)
        savemat(root / f"annotations/image-level/{stem}.mat", {"tags": tags})
    if lists:
        (root / "pixel_train.txt").write_text("\n".join(stems[:-1]))
        (root / "pixel_val.txt").write_text(stems[-1])
        (root / "image_level.txt").write_text("\n".join(tagged))
    return root


def fake_labelmefacade(root: Path, train: int = 2, test: int = 2, mode: str = "RGBA16") -> Path:
    """images/, labels/ in nine colours, and the lists; the release's labels are RGBA of 16 bits ("RGBA16")."""
    rows = taxonomy_rows("labelmefacade-9_to_8")
    colours = np.array([[int(v) for v in row["colour"].split(",")] for row in rows], np.uint8)
    for split, count in {"train": train, "test": test}.items():
        names = [f"static_street__{split}{number}" for number in range(count)]
        for number, name in enumerate(names):
            ids, pixels = _draw((number, len(split)), 9)
            save(pixels, root / "images" / f"{name}.jpg")
            label = np.asarray(Image.fromarray(colours[ids]).convert(mode.removesuffix("16")))
            if mode.endswith("16"):  # Pillow cannot write these
                wide = label.astype(np.uint16)[..., [2, 1, 0, 3]] * np.uint16(257)
                (root / "labels").mkdir(exist_ok=True)
                cv2.imwrite(str(root / "labels" / f"{name}.png"), wide)
            else:
                save(label, root / "labels" / f"{name}.png")
        (root / f"{split}.txt").write_text("".join(f"images/{name}.jpg\n" for name in names))
    return root
