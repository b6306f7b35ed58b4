"""COCO-Stuff 10K v1.1, 171 classes: 10,000 images with `.mat` label maps and lists of 9,000 and 1,000.

    seg-prep cocostuff10k --root /data/cocostuff-10k-v1.1 --out data/cocostuff10k

Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. Variable S of each file holds
official ids 1..182, 0 = unlabelled; they become the same 171 classes as those of `cocostuff`. Version 1.0 numbers its
172 classes otherwise and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prep.matfile import as_ids, load_variable
from prep.pairs import listed
from prep.places import read_place
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_SPLITS = ("train", "test")
_NAMES_1_0 = 172  # v1.1 names 183 classes, the 11 empty ones and "unlabeled" among them


class CocoStuff10k(BaseReader):
    """Reader of the .mat release; both of its splits are labelled."""

    name = "cocostuff10k"
    title = "COCO-Stuff 10K v1.1, 171 classes"
    layout = """\
ROOT/imageLists/{train,test}.txt    one stem a line
ROOT/images/COCO_train2014_*.jpg
ROOT/annotations/COCO_train2014_*.mat   (variable S: official ids, 0 = unlabelled)"""
    source = "https://github.com/nightrome/cocostuff10k (cocostuff-10k-v1.1.zip)"
    terms = "annotations CC BY 4.0; images: Flickr terms of use, licence per image"

    @property
    def classes(self) -> ClassTable:
        return load_classes("cocostuff-171")

    def splits(self, root: Path) -> tuple[str, ...]:
        lists = root / "imageLists"
        found = tuple(split for split in _SPLITS if (lists / f"{split}.txt").is_file())
        if not found:
            raise LayoutError(
                f"neither train.txt nor test.txt found in {lists}: expected the layout of cocostuff-10k-v1.1.zip "
                "(images/, annotations/, imageLists/); point --root at the folder that it was unpacked into"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        path = root / "imageLists" / f"{split}.txt"
        stems = listed(path)
        if not stems:
            raise LayoutError(f"{path} is empty: expected one stem a line; unpack cocostuff-10k-v1.1.zip again")
        for folder in ("images", "annotations"):
            if not (root / folder).is_dir():
                raise LayoutError(f"{folder}/ not found under {root}: unpack cocostuff-10k-v1.1.zip there")
        _refuse_other_release(root / "annotations" / f"{Path(stems[0]).name}.mat")
        for stem in stems:
            yield _sample(root, stem, path.name)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        ids = as_ids(load_variable(data, "S", where), where)
        return load_remap("cocostuff10k-172_to_171", self.name).apply(ids, where)


def _sample(root: Path, stem: str, name: str) -> RawSample:
    if "/" in stem or "\\" in stem:
        problem = f"{name}: '{stem[:120]}' is a path; expected a stem"
        return RawSample(clean_key(Path(stem).name), root / "images" / "outside", problem=problem)
    return RawSample(clean_key(stem), root / "images" / f"{stem}.jpg", root / "annotations" / f"{stem}.mat")


def _refuse_other_release(path: Path) -> None:
    """LayoutError where the first file names 172 classes; files that cannot be read are quarantined later."""
    try:
        names = load_variable(read_place(path, path.name), "names", path.name)
    except SampleError:
        return
    if isinstance(names, list) and len(names) == _NAMES_1_0:
        raise LayoutError(
            f"{path} names {_NAMES_1_0} classes: this is COCO-Stuff 10K v1.0, whose ids are others; "
            "expected v1.1: get cocostuff-10k-v1.1.zip"
        )


READER = CocoStuff10k()
