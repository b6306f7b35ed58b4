"""COCO-Stuff 164K, 171 classes: the pixel maps of stuffthingmaps_trainval2017.zip beside the COCO 2017 images.

    seg-prep cocostuff --root /data/coco --out data/cocostuff

Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. A map's value is the official
id - 1, 255 is unlabelled (README of nightrome/cocostuff, "Caffe-compatible stuff-thing maps").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prep.indexed import decode_indices
from prep.pairs import first_folder, paired
from prep.raw import BaseReader, RawSample, UInt16
from prep.taxonomy import load_classes, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError

_SPLITS = {"train": "train2017", "val": "val2017"}
_IMAGES = ("images", ".")
_MAPS = (
    "stuffthingmaps",
    "stuffthingmaps_trainval2017",
    "annotations/stuffthingmaps",
    "annotations/stuffthingmaps_trainval2017",
    "annotations",
)


class CocoStuff(BaseReader):
    """Reader of the pixel maps."""

    name = "cocostuff"
    title = "COCO-Stuff 164K, 171 classes"
    layout = """\
ROOT/[images/]{train2017,val2017}/000000xxxxxx.jpg
ROOT/stuffthingmaps/{train2017,val2017}/000000xxxxxx.png   (official id - 1, 255 = unlabelled; also found under
    stuffthingmaps_trainval2017/, annotations/stuffthingmaps/ and annotations/)"""
    source = (
        "https://github.com/nightrome/cocostuff (stuffthingmaps_trainval2017.zip) and "
        "https://cocodataset.org (train2017.zip, val2017.zip)"
    )
    terms = "annotations CC BY 4.0; images: Flickr terms of use, licence per image"

    @property
    def classes(self) -> ClassTable:
        return load_classes("cocostuff-171")

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(split for split in _SPLITS if _images(root, split) or _maps(root, split))
        if not found:
            raise LayoutError(
                f"neither train2017/ nor val2017/ found under {root} or {root / 'images'}: expected the COCO 2017 "
                "images and, under stuffthingmaps/, their maps; point --root at the folder that holds them"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        folder = _SPLITS[split]
        images, maps = _images(root, split), _maps(root, split)
        leave = f"or leave {split} out with --split"
        if images is None:
            raise LayoutError(
                f"maps of {folder} but no images under {root}: expected {folder}/ or images/{folder}/; "
                f"unpack {folder}.zip there, {leave}"
            )
        if maps is None:
            raise LayoutError(
                f"images of {folder} but no maps under {root}: expected stuffthingmaps/{folder}/; "
                f"unpack stuffthingmaps_trainval2017.zip there, {leave}"
            )
        # mmsegmentation writes its converted maps beside the original ones.
        yield from paired(images, maps, f"unpack {folder}.zip and its maps again, {leave}", leave_out="_labelTrainIds")

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        return load_remap("cocostuff-172_to_171", self.name).apply(decode_indices(data, where), where)


def _images(root: Path, split: str) -> Path | None:
    return first_folder(root, *(f"{folder}/{_SPLITS[split]}" for folder in _IMAGES))


def _maps(root: Path, split: str) -> Path | None:
    return first_folder(root, *(f"{folder}/{_SPLITS[split]}" for folder in _MAPS))


READER = CocoStuff()
