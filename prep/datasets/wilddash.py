"""WildDash, 19 classes of Cityscapes, from its first release or from WildDash 2.

    seg-prep wilddash --root /data/wilddash --out data/wilddash

Release 1 has Cityscapes' ids 0..33. WildDash 2 has 81 ids, mapped to Cityscapes by its authors' own policy: pickups
are trucks, vans are cars, road markings are road; billboards and street lights are void. Zendel, Honauer, Murschitz,
Steininger, Fernandez Dominguez, "WildDash - Creating Hazard-Aware Benchmarks", ECCV 2018; Zendel, Schörghuber, Rainer,
Murschitz, Beleznai, "Unifying Panoptic Segmentation for Autonomous Driving", CVPR 2022.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from prep.indexed import decode_indices
from prep.pairs import first_folder, paired
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError

_FIRST, _FIRST_TEST = ("wd_val_01",), ("wd_bench_01",)
_SECOND, _SECOND_TEST = ("wd_public_02", "wd_public_v2p0"), ("wd_both_02",)
_IMAGE, _LABEL = "_100000.png", "_labelIds.png"
_LISTS, _MAX_LISTS = "random_split.json", 1 << 26
_SPLITS = ("train", "val")


class WildDash(BaseReader):
    """Reader of both releases; which one a folder holds is recognised by its folders."""

    name = "wilddash"
    title = "WildDash, 19 classes"
    layout = """\
WildDash 2:
  ROOT/[wd_public_02/]images/x.jpg    ROOT/[wd_public_02/]labels/x.png (ids 0..80) or x_labelIds.png (of pano2sem.py)
  ROOT/[wd_public_02/]random_split.json   optional {"train": [names], "val": [names]}; without it one split, "all"
  ROOT/wd_both_02/images/x.jpg            optional, unlabelled: "test"
or release 1:
  ROOT/[wd_val_01/]x_100000.png       ROOT/[wd_val_01/]x_100000_labelIds.png (ids 0..33): "val"
  ROOT/wd_bench_01/x_100000.png           optional, unlabelled: "test\""""
    source = "https://wilddash.cc (wd_public_02.zip, wd_both_02.zip; wd_val_01.zip, wd_bench_01.zip)"
    terms = "WildDash licence: non-commercial; registration needed"

    @property
    def classes(self) -> ClassTable:
        return load_classes("cityscapes-19")

    def splits(self, root: Path) -> tuple[str, ...]:
        second = _second(root)
        if second:
            labelled = tuple(_lists(second)) if (second / _LISTS).is_file() else ("all",)
            return (*labelled, "test") if first_folder(root, *_SECOND_TEST) else labelled
        present = {"val": _first(root), "test": first_folder(root, *_FIRST_TEST)}
        found = tuple(split for split, folder in present.items() if folder)
        if not found:
            raise LayoutError(
                f"neither images/, wd_public_02/ nor wd_val_01/ found under {root}: expected WildDash 2 or WildDash 1 "
                "(seg-prep --list shows both layouts); point --root at the folder that holds them"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        second = _second(root)
        if second is None:
            yield from _samples_of_first(root, split)
        elif split == "test":
            folder = first_folder(root, *_SECOND_TEST) or root
            yield from paired(folder / "images", None, "unpack wd_both_02.zip there again")
        elif split == "all":
            yield from _all_of_second(second)
        else:
            yield from _listed_of_second(second, split)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        remap = "cityscapes-34_to_19" if facts == 1 else "wilddash-81_to_19"
        return load_remap(remap, f"WildDash {facts or 2}").apply(decode_indices(data, where), where)


def _first(root: Path) -> Path | None:
    """The folder of release 1's images and labels, which lie side by side."""
    named = first_folder(root, *_FIRST)
    return next((f for f in (named, root) if f and any(f.glob(f"*{_IMAGE[:-4]}*.png"))), named)


def _second(root: Path) -> Path | None:
    """The folder that holds WildDash 2's images/."""
    folders = (first_folder(root, *_SECOND), root)
    return next((folder for folder in folders if folder and (folder / "images").is_dir()), None)


def _samples_of_first(root: Path, split: str) -> Iterator[RawSample]:
    folder = (_first(root) if split == "val" else first_folder(root, *_FIRST_TEST)) or root
    names = [path.name for path in folder.iterdir()]
    stems = {name.removesuffix(".png") for name in names if name.endswith(_IMAGE)}
    labels = {name.removesuffix(_LABEL) for name in names if name.endswith(_IMAGE[:-4] + _LABEL)}
    if not stems or (split == "val" and not labels):
        raise LayoutError(
            f"{folder} holds {len(stems)} images and {len(labels)} labels: expected *{_IMAGE} and, for val, "
            f"*{_IMAGE[:-4]}{_LABEL}; unpack WildDash there again"
        )
    for stem in sorted(stems | labels if split == "val" else stems):
        label = folder / f"{stem}{_LABEL}" if split == "val" else None
        yield RawSample(clean_key(stem), folder / f"{stem}.png", label, facts=1)


def _all_of_second(folder: Path) -> Iterator[RawSample]:
    end = _label_end(folder)
    images = {path.stem for path in (folder / "images").glob("*.jpg")}
    labels = {path.name.removesuffix(end) for path in (folder / "labels").glob(f"*{end}")}
    if not images or not labels:
        raise LayoutError(
            f"{folder} holds {len(images)} images/*.jpg and {len(labels)} labels/*{end}: expected both; unpack "
            "WildDash 2 there again"
        )
    for stem in sorted(images | labels):
        yield _sample_of_second(folder, stem, end)


def _listed_of_second(folder: Path, split: str) -> Iterator[RawSample]:
    end = _label_end(folder)
    names = _lists(folder)[split]
    if not names:
        raise LayoutError(f"{folder / _LISTS} lists no image for {split}: expected some; unpack WildDash 2 there again")
    for name in names:
        yield _sample_of_second(folder, PurePosixPath(name.replace("\\", "/")).name.removesuffix(".jpg"), end)


def _sample_of_second(folder: Path, stem: str, end: str) -> RawSample:
    return RawSample(clean_key(stem), folder / "images" / f"{stem}.jpg", folder / "labels" / f"{stem}{end}", facts=2)


def _label_end(folder: Path) -> str:
    """How label names end: "_labelIds.png" where the authors' pano2sem.py has written them, else ".png"."""
    labels = folder / "labels"
    if not labels.is_dir():
        hint = "; pano2sem.py of github.com/ozendelait/wilddash_scripts makes them of panoptic.json"
        raise LayoutError(
            f"labels/ not found under {folder}: expected labels/*.png with WildDash 2's ids"
            f"{hint if (folder / 'panoptic.json').is_file() else '; unpack wd_public_02.zip there again'}"
        )
    return _LABEL if any(labels.glob(f"*{_LABEL}")) else ".png"


def _lists(folder: Path) -> dict[str, list[str]]:
    """{split: names} of the split file; LayoutError where it is not that."""
    path = folder / _LISTS
    try:
        if path.stat().st_size > _MAX_LISTS:
            raise LayoutError(f"{path}: {path.stat().st_size} bytes are more than the cap of {_MAX_LISTS}")
        lists = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        lists = None
    except OSError as error:
        raise LayoutError(f"{path}: unreadable file: {error.strerror}") from None
    found = {split: lists[split] for split in _SPLITS if split in lists} if isinstance(lists, dict) else {}
    if not found or not all(_is_names(names) for names in found.values()):
        raise LayoutError(
            f'{path}: not {{"train": [names], "val": [names]}}: expected lists of image names; unpack it again, or '
            'remove it to have one split, "all"'
        )
    return found


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


READER = WildDash()
