"""KITTI semantic segmentation (2015), 19 classes: 200 labelled road scenes with Cityscapes' ids.

    seg-prep kitti --root /data/kitti/data_semantics --out data/kitti

Labels come from `semantic/`; where only `instance/` is there, from its high byte. Alhaija, Mustikovela, Mescheder,
Geiger, Rother, "Augmented Reality Meets Computer Vision", IJCV 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prep.indexed import decode_indices
from prep.pairs import is_there, paired
from prep.raw import BaseReader, RawSample, UInt16
from prep.taxonomy import load_classes, load_remap
from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_FOLDERS = {"train": "training", "test": "testing"}
_FROM_INSTANCES = "from instances"  # the facts of a sample whose label is its instance map


class Kitti(BaseReader):
    """Reader of the folders of data_semantics.zip; there is no validation split."""

    name = "kitti"
    title = "KITTI semantic segmentation 2015, 19 classes"
    layout = """\
ROOT/training/image_2/000000_10.png
ROOT/training/semantic/000000_10.png     (Cityscapes' label ids 0..33)
ROOT/training/instance/000000_10.png     (optional; 16-bit, label id * 256 + instance number, 0 = none)
ROOT/testing/image_2/000000_10.png       (unlabelled)"""
    source = "https://www.cvlibs.net/datasets/kitti/eval_semseg.php (data_semantics.zip)"
    terms = "CC BY-NC-SA 3.0"

    @property
    def classes(self) -> ClassTable:
        return load_classes("cityscapes-19")

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(split for split, name in _FOLDERS.items() if is_there(root / name))
        if not found:
            raise LayoutError(
                f"neither training/ nor testing/ found under {root}: expected the KITTI layout "
                "training/image_2/*.png; point --root at the folder that data_semantics.zip was unpacked into"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        folder, remedy = root / _FOLDERS[split], "unpack data_semantics.zip there again"
        semantic, instance = folder / "semantic", folder / "instance"
        if split == "test":
            yield from paired(folder / "image_2", None, remedy)
        elif instance.is_dir() and not semantic.is_dir():
            for sample in paired(folder / "image_2", instance, remedy):
                yield replace(sample, instances=instance / _label_name(sample), facts=_FROM_INSTANCES)
        else:
            for sample in paired(folder / "image_2", semantic, remedy):
                path = instance / _label_name(sample)
                yield replace(sample, instances=path if path.is_file() else None)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        ids = decode_indices(data, where)
        if facts == _FROM_INSTANCES:
            _check_depth(ids.dtype, where)
            ids = (ids >> 8).astype(np.uint8)
        return load_remap("cityscapes-34_to_19", self.name).apply(ids, where)

    def decode_instances(self, data: bytes, hard: UInt16, where: str) -> UInt16:
        ids = decode_indices(data, where)
        _check_depth(ids.dtype, where)
        if ids.shape != hard.shape:
            raise SampleError(
                f"{where}: instance map is {ids.shape[1]}x{ids.shape[0]} pixels, its label is "
                f"{hard.shape[1]}x{hard.shape[0]}"
            )
        numbered = np.where((ids & 255 > 0) & (hard != IGNORE), ids, 0)
        present = np.unique(numbered)
        table = np.zeros(1 << 16, np.uint16)
        table[present[present > 0]] = np.arange(1, np.count_nonzero(present) + 1)
        return table[numbered]


def _label_name(sample: RawSample) -> str:
    return sample.label.name if isinstance(sample.label, Path) else ""


def _check_depth(dtype: np.dtype[Any], where: str) -> None:
    if dtype != np.uint16:
        raise SampleError(f"{where}: instance map of 8 bits; expected 16, label id * 256 + instance number")


READER = Kitti()
