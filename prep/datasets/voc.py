"""PASCAL VOC 2012, 21 classes (background is one of them), and its training set enlarged by SBD.

    seg-prep voc --root /data/VOCdevkit --out data/voc
    seg-prep voc --root /data/VOCdevkit --aug --out data/voc-aug

Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; Hariharan et al., "Semantic Contours from
Inverse Detectors", ICCV 2011. With --aug the split train is VOC's and all of SBD's images but those of VOC's val:
10,582 in the full sets. VOC's own label is taken where there is one; SBD's masks have no void boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prep.decode import load_pixels, open_header
from prep.indexed import decode_indices
from prep.matfile import as_ids, load_variable
from prep.pairs import first_folder, listed
from prep.raw import BaseReader, RawSample, Reader, UInt16, clean_key
from prep.taxonomy import load_classes, load_colour_remap, load_remap, parse_colour, rows
from shards.classes import ClassTable
from shards.errors import LayoutError, SettingsError

_REMAP = "voc-22_to_21"
_LISTS = "ImageSets/Segmentation"
_AUG_LISTS = tuple(f"{folder}/{name}.txt" for folder in (_LISTS, ".", "list") for name in ("train_aug", "trainaug"))
_SBD = ("benchmark_RELEASE/dataset", "sbd/benchmark_RELEASE/dataset", "sbd/dataset", "sbd", "SBD", "dataset")


@dataclass(frozen=True)
class Voc(BaseReader):
    """Reader of the development kit; `aug` adds SBD, as `.mat` masks or as the PNGs of SegmentationClassAug."""

    aug: bool = False

    name = "voc"
    layout = """\
ROOT/[VOCdevkit/][VOC2012/]ImageSets/Segmentation/{train,val}.txt   (test.txt too: unlabelled)
ROOT/[VOCdevkit/][VOC2012/]JPEGImages/<name>.jpg
ROOT/[VOCdevkit/][VOC2012/]SegmentationClass/<name>.png   (palette: 0..20, 255 = void)
with --aug, beside those or in ROOT, one of:
  SegmentationClassAug/<name>.png, and train_aug.txt (optional; also in ImageSets/Segmentation)
  benchmark_RELEASE/dataset/{cls/<name>.mat,train.txt,val.txt}   (SBD; also found as sbd/ or dataset/)"""
    source = (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar) and, for --aug, "
        "http://home.bharathh.info/pubs/codes/SBD (benchmark.tgz)"
    )
    terms = "VOC: Flickr terms of use of the images, research; SBD: research"
    options = ("aug",)

    @property
    def title(self) -> str:
        return "PASCAL VOC 2012 with SBD, 21 classes" if self.aug else "PASCAL VOC 2012, 21 classes"

    @property
    def classes(self) -> ClassTable:
        return load_classes("voc-21")

    def bind(self, root: Path, options: Mapping[str, str]) -> Reader:
        """Whether SBD is added."""
        if options.get("aug", "yes") != "yes":
            raise SettingsError(f"--aug {options['aug']} is not known: --aug stands alone")
        return cast(Reader, replace(self, aug="aug" in options))

    def splits(self, root: Path) -> tuple[str, ...]:
        base = _base(root)
        found = [split for split in ("train", "val") if (base / _LISTS / f"{split}.txt").is_file()]
        if not found and (base / _LISTS / "trainval.txt").is_file():
            found.append("trainval")
        if (base / _LISTS / "test.txt").is_file() and _has_images(base, listed(base / _LISTS / "test.txt")):
            found.append("test")  # some kits carry its list without its images
        if not found:
            raise LayoutError(
                f"none of train.txt, val.txt and trainval.txt found in {base / _LISTS}: unpack "
                "VOCtrainval_11-May-2012.tar again"
            )
        return tuple(found)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        base = _base(root)
        stems = _stems(base / _LISTS / f"{split}.txt")
        if not _has_images(base, stems):
            raise LayoutError(
                f"none of the {len(stems)} images that {split}.txt lists lies in {base / 'JPEGImages'}: expected "
                f"<name>.jpg; unpack the images there, or leave {split} out with --split"
            )
        if split != "test" and not (base / "SegmentationClass").is_dir():
            raise LayoutError(f"SegmentationClass/ not found under {base}: unpack VOCtrainval_11-May-2012.tar again")
        if self.aug and split in ("train", "trainval"):
            yield from _with_sbd(root, base, split, stems)
            return
        for stem in stems:
            yield _sample(base, stem, base / "SegmentationClass" / f"{stem}.png" if split != "test" else None)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        if where.endswith(".mat"):
            return load_remap(_REMAP, self.name).apply(_sbd_ids(data, where), where)
        image = open_header(data, where)
        if image.format == "PNG" and image.mode == "RGB":
            load_pixels(image, where)
            return load_colour_remap(_REMAP, self.name).apply(np.asarray(image), where)
        ids = decode_indices(data, where)
        palette = _renumbered(image, ids)
        if palette is not None:
            return load_colour_remap(_REMAP, self.name).apply(palette[ids], where)
        return load_remap(_REMAP, self.name).apply(ids, where)


def _base(root: Path) -> Path:
    """The folder that holds ImageSets/, JPEGImages/ and SegmentationClass/."""
    for folder in ("VOCdevkit/VOC2012", "VOC2012", "."):
        if (root / folder / _LISTS).is_dir():
            return root / folder
    raise LayoutError(
        f"{_LISTS}/ not found under {root}: expected the layout of VOCtrainval_11-May-2012.tar; point --root at "
        "VOCdevkit or at VOCdevkit/VOC2012"
    )


def _stems(path: Path) -> list[str]:
    """The stems that a list names: `2007_000032`, or `/JPEGImages/2007_000032.jpg /SegmentationClassAug/...`."""
    if not path.is_file():
        raise LayoutError(f"{path} not found: expected one image name a line; unpack the release again")
    first = (line.split()[0] for line in listed(path))
    stems = [
        PurePosixPath(name).stem if name.endswith((".jpg", ".png")) else PurePosixPath(name).name for name in first
    ]
    if not stems:
        raise LayoutError(f"{path} is empty: expected one image name a line; unpack the release again")
    return stems


def _has_images(base: Path, stems: list[str]) -> bool:
    return any((base / "JPEGImages" / f"{stem}.jpg").is_file() for stem in stems)


def _sample(base: Path, stem: str, label: Path | None, problem: str | None = None) -> RawSample:
    return RawSample(clean_key(stem), base / "JPEGImages" / f"{stem}.jpg", label, problem=problem)


def _with_sbd(root: Path, base: Path, split: str, own: list[str]) -> Iterator[RawSample]:
    """VOC's training images and SBD's, those of val left out.

    An explicit train_aug list that holds val images is wrong, which must be seen: they go to quarantine. SBD's own
    lists hold some 900 of them by design, so there they are left out silently.
    """
    if not (base / _LISTS / "val.txt").is_file():
        raise LayoutError(f"val.txt not found in {base / _LISTS}: --aug needs it, to keep the val images out of train")
    val = set(_stems(base / _LISTS / "val.txt"))
    maps = first_folder(root, "SegmentationClassAug") or first_folder(base, "SegmentationClassAug")
    sbd = _sbd_folder(root) or _sbd_folder(base)
    lists = (folder / name for folder in (base, root) for name in _AUG_LISTS)
    aug_list = next((path for path in lists if path.is_file()), None)
    if maps is None and sbd is None:
        raise LayoutError(
            f"neither SegmentationClassAug/ nor SBD's benchmark_RELEASE/dataset/cls/ found under {root} or {base}: "
            "--aug needs one of them; unpack SBD's benchmark.tgz there"
        )
    mine, added = set(own), _sbd_stems(maps, sbd)
    if not added:
        raise LayoutError(f"no *.png found in {maps}: --aug needs SBD's labels; unpack them there again")
    stems = _stems(aug_list) if aug_list else sorted((mine | added) - val)
    for stem in stems:
        label = base / "SegmentationClass" / f"{stem}.png" if stem in mine else _aug_label(maps, sbd, stem)
        problem = f"in the val split, which {aug_list.name} must not hold" if aug_list and stem in val else None
        yield _sample(base, stem, label, problem)


def _sbd_folder(root: Path) -> Path | None:
    return next((root / name for name in _SBD if (root / name / "cls").is_dir()), None)


def _sbd_stems(maps: Path | None, sbd: Path | None) -> set[str]:
    """All that SBD labels: by its lists where they are, else by the PNGs."""
    if sbd:
        return {stem for name in ("train.txt", "val.txt") for stem in _stems(sbd / name)}
    return {path.stem for path in maps.glob("*.png")} if maps else set()


def _aug_label(maps: Path | None, sbd: Path | None, stem: str) -> Path:
    """The label that SBD gives an image: a PNG where there is one, else the .mat file."""
    png = maps / f"{stem}.png" if maps else None
    mat = sbd / "cls" / f"{stem}.mat" if sbd else None
    return next((path for path in (png, mat) if path and path.is_file()), png or mat or Path(f"{stem}.png"))


def _sbd_ids(data: bytes, where: str) -> UInt16:
    """An SBD `.mat` -> class ids uint16 [H, W]: GTcls.Segmentation."""
    return as_ids(load_variable(data, "GTcls.Segmentation", where), where)


def _renumbered(image: Image.Image, ids: NDArray[Any]) -> NDArray[np.uint8] | None:
    """The palette [N, 3] of a PNG that shows VOC's colours under other indices, as PNG optimisers leave it."""
    if image.mode != "P" or image.palette is None or image.palette.mode != "RGB":
        return None
    palette = np.frombuffer(bytes(image.palette.palette), np.uint8).reshape(-1, 3)
    used = [int(index) for index in np.unique(ids)]
    if used[-1] >= len(palette):
        return None
    shown = {index: tuple(int(v) for v in palette[index]) for index in used}
    meant = _colours()
    if shown.items() <= meant.items() or not set(shown.values()) <= set(meant.values()):
        return None  # VOC's own palette, or one that says nothing
    return palette


@cache
def _colours() -> dict[int, tuple[int, int, int]]:
    """Palette index -> VOC's colour."""
    return {int(row["id"]): parse_colour(row["colour"]) for row in rows(_REMAP)}


READER = Voc()
