"""ADE20K, the 150 classes of the SceneParsing release (ADEChallengeData2016).

    seg-prep ade20k --root /data/ADEChallengeData2016 --out data/ade20k

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. Id 0 ("other objects") is void, as in its benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prep.indexed import decode_indices
from prep.pairs import IMAGES, first_folder, is_there, paired
from prep.raw import BaseReader, RawSample, UInt16
from prep.taxonomy import load_classes, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError

_FOLDER = "ADEChallengeData2016"
_LABELLED = {"train": "training", "val": "validation"}
_TEST = ("release_test/testing", "release_test", "testing", "images/testing")


class Ade20k(BaseReader):
    """Reader of images/ and annotations/; the test images are unlabelled."""

    name = "ade20k"
    title = "ADE20K scene parsing, 150 classes"
    layout = """\
ROOT/[ADEChallengeData2016/]images/{training,validation}/ADE_*.jpg
ROOT/[ADEChallengeData2016/]annotations/{training,validation}/ADE_*.png   (ids 1..150, 0 = void)
ROOT/release_test/testing/ADE_test_*.jpg                                  (optional, unlabelled)"""
    source = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip, release_test.zip)"
    terms = "ADE20K terms of use: non-commercial research and education"

    @property
    def classes(self) -> ClassTable:
        return load_classes("ade20k-150")

    def splits(self, root: Path) -> tuple[str, ...]:
        base = _base(root)
        found = [
            split
            for split, folder in _LABELLED.items()
            if is_there(base / "images" / folder) or is_there(base / "annotations" / folder)
        ]
        if _test_images(root):
            found.append("test")
        if not found:
            raise LayoutError(
                f"neither images/training nor images/validation found under {base}: expected the layout of "
                f"{_FOLDER}.zip; point --root at the folder that it was unpacked into"
            )
        return tuple(found)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        if split == "test":
            yield from paired(_test_images(root) or root / _TEST[0], None, "unpack release_test.zip there")
            return
        folder = _LABELLED[split]
        base = _base(root)
        remedy = f"unpack {_FOLDER}.zip again, or leave {split} out with --split"
        yield from paired(base / "images" / folder, base / "annotations" / folder, remedy)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        return load_remap("ade20k-151_to_150", self.name).apply(decode_indices(data, where), where)


def _base(root: Path) -> Path:
    return root / _FOLDER if (root / _FOLDER).is_dir() else root


def _test_images(root: Path) -> Path | None:
    """The folder of the test images, beside or in the release's own folder."""
    found = (first_folder(folder, *_TEST) for folder in (root, _base(root)))
    return next((folder for folder in found if folder and (not folder.exists() or _has_images(folder))), None)


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGES for path in folder.iterdir())


READER = Ade20k()
