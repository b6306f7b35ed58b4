"""Clothing Co-Parsing, 59 classes: 1,004 photos with pixel labels and 1,094 with tags alone.

    seg-prep ccp --root /data/clothing-co-parsing --out data/ccp

The source has no splits. Lists beside the photos say them (`pixel_train.txt`, `pixel_val.txt`, `image_level.txt`);
without lists every fourth pixel-labelled photo, in the order of the names, is val (753 + 251), and all tagged photos
are the split "weak", whose samples have an image-level label and no pixel label.

Class 0, "null", is what is no garment. It is a class as VOC's background is, and it stays in the tags, where nearly
every photo has it: what a photo shows is told alike by tags and by pixels. Yang, Luo, Lin, "Clothing Co-Parsing by
Joint Image Segmentation and Labeling", CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prep.matfile import load_variable
from prep.pairs import is_there, listed
from prep.places import read_place
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import Remap, load_classes
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_LISTS = {"train": "pixel_train.txt", "val": "pixel_val.txt", "weak": "image_level.txt"}
_PHOTOS = "photos"
_PIXELS, _TAGS = "annotations/pixel-level", "annotations/image-level"
_EVERY = 4  # the last of every four is val


class ClothingCoParsing(BaseReader):
    """Reader of the repository's folders."""

    name = "ccp"
    title = "Clothing Co-Parsing, 59 classes"
    layout = """\
ROOT/photos/0001.jpg
ROOT/annotations/pixel-level/0001.mat      variable groundtruth, ids 0..58
ROOT/annotations/image-level/1005.mat      variable tags, ids 0..58
ROOT/{pixel_train,pixel_val,image_level}.txt   optional lists of stems: splits train, val, weak"""
    source = "https://github.com/bearpaw/clothing-co-parsing"
    terms = "Apache-2.0 for the repository; photos are web fashion photos of unclear rights: research use"

    @property
    def classes(self) -> ClassTable:
        return load_classes("ccp-59")

    def splits(self, root: Path) -> tuple[str, ...]:
        for folder in (_PHOTOS, "annotations"):
            if not (root / folder).is_dir():
                raise LayoutError(
                    f"{folder}/ not found under {root}: expected the Clothing Co-Parsing repository with photos/ and "
                    "annotations/; point --root at it"
                )
        found = tuple(split for split, name in _LISTS.items() if (root / name).is_file())
        if not found:
            found = ("train", "val") if is_there(root / _PIXELS) else ()
            found += ("weak",) if is_there(root / _TAGS) else ()
        if not found:
            raise LayoutError(
                f"neither {_PIXELS}/ nor {_TAGS}/ found under {root}: expected one of them; get the repository again"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        stems = _stems(root, split)
        if not stems:
            place = root / (_LISTS[split] if _has_lists(root) else _TAGS if split == "weak" else _PIXELS)
            raise LayoutError(f"{place} names no photo for {split}: expected some; get the repository again")
        for stem in stems:
            yield _tagged(root, stem) if split == "weak" else _labelled(root, stem)
        if split == "weak" and not _has_lists(root):
            yield from _without_annotation(root)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        ids = load_variable(data, "groundtruth", where)
        if not isinstance(ids, np.ndarray) or ids.ndim != 2 or not ids.size or ids.dtype not in (np.uint8, np.uint16):
            shape = f"{ids.dtype} {ids.shape}" if isinstance(ids, np.ndarray) else type(ids).__name__
            raise SampleError(f"{where}: groundtruth is {shape}; expected a label map uint8 [height, width]")
        return _identity().apply(ids, where)


@cache
def _identity() -> Remap:
    """Ids are class indices; any other id is an error."""
    return Remap.from_pairs("ccp", {index: index for index in range(len(load_classes("ccp-59")))})


def _has_lists(root: Path) -> bool:
    return any((root / name).is_file() for name in _LISTS.values())


def _stems(root: Path, split: str) -> list[str]:
    """The photos of a split: listed, or by our rule."""
    if _has_lists(root):
        return [Path(line.replace("\\", "/")).name.removesuffix(".jpg") for line in listed(root / _LISTS[split])]
    if split == "weak":
        return _names(root / _TAGS, ".mat")
    stems = _names(root / _PIXELS, ".mat")
    val = stems[_EVERY - 1 :: _EVERY]
    return val if split == "val" else [stem for number, stem in enumerate(stems, 1) if number % _EVERY]


def _names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"*{suffix}"))


def _labelled(root: Path, stem: str) -> RawSample:
    return RawSample(clean_key(stem), root / _PHOTOS / f"{stem}.jpg", root / _PIXELS / f"{stem}.mat")


def _tagged(root: Path, stem: str) -> RawSample:
    """A photo with its tags; they are read here, since they belong to the listing."""
    where = f"{_TAGS}/{stem}.mat"
    photo = root / _PHOTOS / f"{stem}.jpg"
    try:
        tags = _read_tags(root / where, where)
    except SampleError as error:
        return RawSample(clean_key(stem), photo, problem=str(error))
    return RawSample(clean_key(stem), photo, weak=tags)


def _read_tags(path: Path, where: str) -> tuple[int, ...]:
    """Class indices, ascending, each once (the source repeats some)."""
    tags = load_variable(read_place(path, where), "tags", where)
    if not isinstance(tags, np.ndarray) or tags.ndim > 2 or tags.dtype.kind not in "ui" or not tags.size:
        raise SampleError(f"{where}: tags are no list of integers")
    found = np.unique(tags).tolist()
    count = len(load_classes("ccp-59"))
    if found[0] < 0 or found[-1] >= count:
        bad = found[0] if found[0] < 0 else found[-1]
        raise SampleError(f"{where}: unknown tag id {bad}; ccp defines {count} ids from 0 to {count - 1}")
    return tuple(found)


def _without_annotation(root: Path) -> Iterator[RawSample]:
    """Photos that neither folder of annotations knows."""
    known = {*_names(root / _PIXELS, ".mat"), *_names(root / _TAGS, ".mat")}
    for stem in _names(root / _PHOTOS, ".jpg"):
        if stem not in known:
            problem = f"neither {_PIXELS}/{stem}.mat nor {_TAGS}/{stem}.mat found"
            yield RawSample(clean_key(stem), root / _PHOTOS / f"{stem}.jpg", problem=problem)


READER = ClothingCoParsing()
