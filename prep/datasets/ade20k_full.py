"""ADE20K, 847 classes, from the full release of 2021 or from MaskFormer's preprocessed form of it.

    seg-prep ade20k-full --root /data/ADE20K_2021_17_01 --out data/ade20k-full

Zhou et al., "Semantic Understanding of Scenes through the ADE20K Dataset", IJCV 2019. The release names 3,688 classes;
`*_seg.png` holds them as R // 10 * 256 + G. The 847 that occur in both splits are kept, the others are void. The
release of 2016 names 3,148 classes; no table of its ids could be checked, so it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prep.decode import load_pixels, open_header, png_depth
from prep.pairs import is_there, paired
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_remap
from prep.trees import Identity, descend
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_RELEASE, _OLD_RELEASE = "ADE20K_2021_17_01", "ADE20K_2016_07_26"
_FULL, _IMAGES, _LABELS = "images/ADE", "images_detectron2", "annotations_detectron2"
_SPLITS = {"train": "training", "val": "validation"}
_SEG, _JPG = "_seg.png", ".jpg"


class Ade20kFull(BaseReader):
    """Reader of both forms; where a root holds both, of the full release, whose images are not resized."""

    name = "ade20k-full"
    title = "ADE20K full release (2021_17_01), 847 classes"
    layout = """\
the full release:
  ROOT/[ADE20K_2021_17_01/]images/ADE/{training,validation}/<scene>/<name>.jpg and <name>_seg.png
or the preprocessed form:
  ROOT/[ADE20K_2021_17_01/]images_detectron2/{training,validation}/<name>.jpg
  ROOT/[ADE20K_2021_17_01/]annotations_detectron2/{training,validation}/<name>.tif   (16 bit: 0..846, 65535 = void)"""
    source = "https://groups.csail.mit.edu/vision/datasets/ADE20K (registration needed)"
    terms = "ADE20K terms of use: non-commercial research and education"

    @property
    def classes(self) -> ClassTable:
        return load_classes("ade20k-full-847")

    def splits(self, root: Path) -> tuple[str, ...]:
        base = _base(root)
        forms = (_FULL,) if (base / _FULL).is_dir() else (_IMAGES, _LABELS)
        found = tuple(
            split for split, folder in _SPLITS.items() if any(is_there(base / form / folder) for form in forms)
        )
        if found:
            return found
        old = next((path for path in (base / "images", root / _OLD_RELEASE) if path.is_dir()), None)
        if old:
            raise LayoutError(
                f"{old} found, but no {_FULL}/: this looks like the release of 2016, whose class ids are others; "
                f"expected {_RELEASE}: get it from {self.source}"
            )
        raise LayoutError(
            f"neither {_FULL}/ nor {_IMAGES}/ found under {base}: expected the ADE20K release 2021_17_01; "
            "point --root at its folder"
        )

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        base, folder = _base(root), _SPLITS[split]
        if (base / _FULL).is_dir():
            yield from _in_tree(base / _FULL / folder, split)
            return
        remedy = f"run MaskFormer's preparation again, or leave {split} out with --split"
        yield from paired(base / _IMAGES / folder, base / _LABELS / folder, remedy, ".tif")

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        if where.lower().endswith(".tif"):
            return load_remap("ade20k-full-848_to_847", self.name).apply(_decode_tif(data, where), where)
        return load_remap("ade20k-full-3689_to_847", self.name).apply(_decode_seg(data, where), where)


def _base(root: Path) -> Path:
    return root / _RELEASE if (root / _RELEASE).is_dir() else root


def _in_tree(top: Path, split: str) -> Iterator[RawSample]:
    """Every <name>.jpg and <name>_seg.png below `top`; linked folders are followed, and no folder is passed over."""
    empty, above = True, dict[Path, frozenset[Identity]]()
    for folder, below, names in os.walk(top, onerror=_refuse_unlisted, followlinks=True):
        place = Path(folder)
        above[place] = descend(place, above.get(place.parent, frozenset()))
        for name in names:
            if "." not in name:  # no file of the release is called so; a link that leads nowhere may be
                descend(place / name, frozenset())
        images = {name.removesuffix(_JPG) for name in names if name.endswith(_JPG)}
        labels = {name.removesuffix(_SEG) for name in names if name.endswith(_SEG)}
        below[:] = sorted(set(below) - images)  # <name>/ holds the masks of single objects
        for stem in sorted(images | labels):
            empty = False
            yield RawSample(clean_key(stem), place / f"{stem}{_JPG}", place / f"{stem}{_SEG}")
    if empty:
        raise LayoutError(
            f"no *{_JPG} or *{_SEG} found under {top}: expected <scene>/<name>{_JPG}; unpack the release there, "
            f"or leave {split} out with --split"
        )


def _refuse_unlisted(error: OSError) -> None:
    raise LayoutError(f"{error.filename} cannot be listed ({error.strerror}): expected a folder that can be read")


def _decode_seg(data: bytes, where: str) -> UInt16:
    """A `*_seg.png` -> ids of the release uint16 [H, W]; the instances in its blue channel are left."""
    image = open_header(data, where)
    if image.format != "PNG" or image.mode != "RGB" or png_depth(data) != 8:
        raise SampleError(f"{where}: label is {image.format} of mode {image.mode}; expected a PNG of 8-bit RGB")
    load_pixels(image, where)
    rgb = np.asarray(image)
    ids: UInt16 = rgb[..., 0] // np.uint8(10) * np.uint16(256) + rgb[..., 1]
    return ids


def _decode_tif(data: bytes, where: str) -> UInt16:
    """A 16-bit `.tif` -> class indices uint16 [H, W], 65535 = void."""
    image = open_header(data, where)
    if image.format != "TIFF" or image.mode not in ("I;16", "I;16B"):
        raise SampleError(
            f"{where}: label is {image.format} of mode {image.mode}; expected a TIFF of 16-bit grey "
            "(847 classes do not fit into 8 bits: a label stored so has lost its ids)"
        )
    load_pixels(image, where)
    return np.asarray(image).astype(np.uint16)


READER = Ade20kFull()
