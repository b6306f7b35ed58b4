"""Cityscapes: leftImg8bit + gtFine, 34 label ids -> the 19 evaluated classes, instance ids kept for iIoU.

    seg-prep cityscapes --root /data/cityscapes --out data/cityscapes

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prep.indexed import decode_indices
from prep.pairs import is_there
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_remap
from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_IMAGE, _LABEL, _INSTANCES = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_instanceIds.png"
_SPLITS = ("train", "val", "test")
_FIRST_INSTANCE_ID = 1000  # an instance is label id * 1000 + number; smaller values are plain label ids

# Average instance sizes in pixels over the training set, from cityscapesScripts 2.3.0 (MIT),
# evaluation/evalPixelLevelSemanticLabeling.py, args.avgClassSize; iIoU weighs each pixel by average / instance size.
_INSTANCE_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


class Cityscapes(BaseReader):
    """Reader of the official folder layout."""

    name = "cityscapes"
    title = "Cityscapes, fine annotations, 19 classes"
    layout = """\
ROOT/leftImg8bit/{train,val,test}/<city>/<city>_<seq>_<frame>_leftImg8bit.png
ROOT/gtFine/{train,val}/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png
ROOT/gtFine/{train,val}/<city>/<city>_<seq>_<frame>_gtFine_instanceIds.png   (optional)"""
    source = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
    protocol: Mapping[str, Any] = MappingProxyType({"instance_sizes": _INSTANCE_SIZES})
    terms = "Cityscapes terms of use: non-commercial, no redistribution; registration needed"

    @property
    def classes(self) -> ClassTable:
        return load_classes("cityscapes-19")

    def splits(self, root: Path) -> tuple[str, ...]:
        images = root / "leftImg8bit"
        if not images.is_dir():
            raise LayoutError(
                f"leftImg8bit/ not found under {root}: expected the Cityscapes layout "
                "leftImg8bit/<split>/<city>/*_leftImg8bit.png; point --root at the folder that "
                "holds leftImg8bit and gtFine"
            )
        found = tuple(split for split in _SPLITS if is_there(images / split))
        if not found:
            raise LayoutError(
                f"{images} holds none of the splits {', '.join(_SPLITS)}: expected "
                "leftImg8bit/<split>/<city>/*_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip there"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        images = self._stems(root / "leftImg8bit" / split, _IMAGE)
        if not images:
            raise LayoutError(
                f"no *{_IMAGE} under {root / 'leftImg8bit' / split}: expected <city>/<name>{_IMAGE}; unpack "
                "leftImg8bit_trainvaltest.zip there"
            )
        # The label files of the test split are empty dummies, so it counts as unlabelled.
        labels = self._stems(root / "gtFine" / split, _LABEL) if split != "test" else set()
        if split != "test" and not labels:
            raise LayoutError(
                f"no *{_LABEL} under {root / 'gtFine' / split}: expected <city>/<name>{_LABEL}; unpack "
                "gtFine_trainvaltest.zip there"
            )
        for city, stem in sorted(images | labels):
            yield self._sample(root, split, city, stem)

    @staticmethod
    def _stems(folder: Path, suffix: str) -> set[tuple[str, str]]:
        cities = [path for path in folder.iterdir() if is_there(path)] if is_there(folder) else []
        files = (path for city in cities for path in city.iterdir())  # not glob, which passes over what it cannot list
        return {(path.parent.name, path.name[: -len(suffix)]) for path in files if path.name.endswith(suffix)}

    @staticmethod
    def _sample(root: Path, split: str, city: str, stem: str) -> RawSample:
        truth = root / "gtFine" / split / city
        instances = truth / f"{stem}{_INSTANCES}"
        labelled = split != "test"
        return RawSample(
            key=clean_key(f"{city}/{stem}"),
            image=root / "leftImg8bit" / split / city / f"{stem}{_IMAGE}",
            label=truth / f"{stem}{_LABEL}" if labelled else None,
            instances=instances if labelled and instances.is_file() else None,
        )

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        return load_remap("cityscapes-34_to_19", self.name).apply(decode_indices(data, where), where)

    def decode_instances(self, data: bytes, hard: UInt16, where: str) -> UInt16:
        ids = decode_indices(data, where)
        if ids.shape != hard.shape:
            raise SampleError(
                f"{where}: instance map is {ids.shape[1]}x{ids.shape[0]} pixels, its label is "
                f"{hard.shape[1]}x{hard.shape[0]}"
            )
        # Instances of classes outside the evaluation (caravan, trailer) lie on void and are no instances here.
        ids = np.where((ids >= _FIRST_INSTANCE_ID) & (hard != IGNORE), ids, 0).astype(np.uint16)
        present = np.unique(ids)
        table = np.zeros(1 << 16, np.uint16)
        table[present[present > 0]] = np.arange(1, np.count_nonzero(present) + 1, dtype=np.uint16)
        return table[ids]


READER = Cityscapes()
