"""ScanNet, the 20 benchmark classes of its 2D frames (scannet_frames_25k).

    seg-prep scannet20 --root /data/scannet --out data/scannet20

Labels are NYU40 ids 0..40; those outside the benchmark's 20 are void. Colour frames and labels of this export have
the same size, 1296 x 968; a frame whose label has another size is quarantined, not stretched. Dai, Chang, Savva,
Halber, Funkhouser, Niessner, "ScanNet: Richly-annotated 3D Reconstructions of Indoor Scenes", CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from prep.indexed import decode_indices
from prep.pairs import first_folder, listed, paired
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError

_FRAMES, _TEST = "scannet_frames_25k", "scannet_frames_test"
_SCENE = re.compile(r"scene\d{4}_\d{2}")
_LISTS = {split: f"scannetv2_{split}.txt" for split in ("train", "val")}
_REMEDY = "unpack scannet_frames_25k.zip there again"


class ScanNet20(BaseReader):
    """Reader of the exported frames, scene by scene."""

    name = "scannet20"
    title = "ScanNet frames, 20 classes"
    layout = """\
ROOT/[scannet_frames_25k/]scene0000_00/color/000000.jpg
ROOT/[scannet_frames_25k/]scene0000_00/label/000000.png   (NYU40 ids 0..40, 0 = unannotated)
ROOT/scannetv2_{train,val}.txt     lists of scenes, one a line; without them there is one split, "all"
ROOT/scannet_frames_test/scene0707_00/color/000000.jpg     (optional, unlabelled)"""
    source = "http://www.scan-net.org (scannet_frames_25k.zip); lists: github.com/ScanNet/ScanNet, Tasks/Benchmark"
    terms = "ScanNet terms of use: non-commercial research and education; an agreement is needed"

    @property
    def classes(self) -> ClassTable:
        return load_classes("scannet-20")

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(split for split in _LISTS if _list(root, split)) or (("all",) if _scenes(_base(root)) else ())
        if _scenes(root / _TEST):
            found = (*found, "test")
        if not found:
            raise LayoutError(
                f"no scene0000_00/ under {_base(root)}: expected the layout of scannet_frames_25k.zip, "
                "scene0000_00/color/*.jpg; point --root at the folder that it was unpacked into"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        base = root / _TEST if split == "test" else _base(root)
        path = _list(root, split)
        scenes = listed(path) if path else _scenes(base)
        if not any((base / scene).is_dir() for scene in scenes if _SCENE.fullmatch(scene)):
            raise LayoutError(
                f"none of the {len(scenes)} scenes of {path or base} is under {base}: expected scene0000_00/color/; "
                f"{_REMEDY}"
            )
        for scene in scenes:
            yield from self._frames(base, scene, labelled=split != "test")

    @staticmethod
    def _frames(base: Path, scene: str, *, labelled: bool) -> Iterator[RawSample]:
        key = clean_key(scene[:80])
        if not _SCENE.fullmatch(scene):
            yield RawSample(key, base / key, problem=f"the list names '{scene[:80]}'; expected scenes as scene0000_00")
            return
        folder = base / scene
        try:
            for sample in paired(folder / "color", folder / "label" if labelled else None, _REMEDY):
                yield replace(sample, key=f"{scene}/{sample.key}")
        except LayoutError as error:  # one scene that is missing or broken leaves the others
            yield RawSample(key, folder / "color", problem=str(error))

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        return load_remap("scannet-41_to_20", self.name).apply(decode_indices(data, where), where)


def _base(root: Path) -> Path:
    return first_folder(root, _FRAMES) or root


def _list(root: Path, split: str) -> Path | None:
    """The list of a split's scenes, beside or in the folder of the frames."""
    places = (folder / _LISTS[split] for folder in (root, _base(root)) if split in _LISTS)
    return next((path for path in places if path.is_file()), None)


def _scenes(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _SCENE.fullmatch(path.name))


READER = ScanNet20()
