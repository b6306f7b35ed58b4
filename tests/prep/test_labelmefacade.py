"""The LabelMeFacade reader, on fakes and on the real sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError
from tests.fakes import taxonomy_rows
from tests.fakes_folders import fake_labelmefacade
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER = load_reader("labelmefacade")
# From the sample's README, by hand.
_COLOURS = {
    (0, 0, 0): IGNORE, (128, 0, 0): 0, (128, 0, 128): 1, (128, 128, 0): 2, (128, 128, 128): 3, (128, 64, 0): 4,
    (0, 128, 128): 5, (0, 128, 0): 6, (0, 0, 128): 7,
}  # fmt: skip


def _want(path: Path) -> list[list[int]]:
    pixels = np.asarray(Image.open(path))[..., :3]
    return [[_COLOURS[tuple(pixel)] for pixel in line] for line in pixels.tolist()]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBA16"])
def test_colours_become_classes(tmp_path: Path, mode: str) -> None:
    root = fake_labelmefacade(tmp_path / "lf", mode=mode)
    run_build("labelmefacade", root, tmp_path / "out")
    for split in ("train", "test"):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == 2
        for sample in found:
            assert sample.hard.tolist() == _want(root / "labels" / f"{sample.key}.png")


def test_labels_that_are_none(tmp_path: Path) -> None:
    root = fake_labelmefacade(tmp_path / "lf", train=5, test=1, mode="RGBA")
    labels = sorted((root / "labels").glob("*train*"))
    clear = Image.open(labels[0])
    clear.putpixel((3, 2), (128, 0, 0, 254))
    clear.save(labels[0])
    other = Image.open(labels[1])
    other.putpixel((5, 1), (1, 2, 3, 255))
    other.save(labels[1])
    Image.open(labels[2]).convert("L").save(labels[2])
    labels[3].unlink()
    run_build("labelmefacade", root, tmp_path / "out")
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    for reason, part in zip(
        reasons,
        (
            "transparent at row 2, column 3",
            "unknown label colour 1,2,3 at row 1, column 5",
            "of mode L",
            "missing file",
        ),
        strict=True,
    ):
        assert part in reason


def test_lists(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"neither train.txt nor test.txt found"):
        READER.splits(tmp_path)
    root = fake_labelmefacade(tmp_path)
    with open(root / "train.txt", "a") as file:
        file.write("images/gone.jpg\n")
    assert [sample.image.is_file() for sample in READER.samples(root, "train")] == [True, True, False]
    (root / "test.txt").write_text("elsewhere/a.jpg\n")
    with pytest.raises(LayoutError, match=r"none of the 1 lines of .*test.txt leads .*'elsewhere/a.jpg'"):
        list(READER.samples(root, "test"))


def test_the_table_is_the_sources() -> None:
    rows = taxonomy_rows("labelmefacade-8")
    assert {tuple(int(v) for v in row["colour"].split(",")): int(row["id"]) for row in rows} | {
        (0, 0, 0): IGNORE
    } == _COLOURS
    assert [row["name"] for row in rows] == [
        "building",
        "car",
        "door",
        "pavement",
        "road",
        "sky",
        "vegetation",
        "window",
    ]


def test_the_real_sample(tmp_path: Path) -> None:
    root = real_data("labelmefacade")
    run_build("labelmefacade", root, tmp_path / "out", scales="1", splits=("train",))
    assert quarantine(tmp_path / "out") == []
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert len(found) == 20
    first = found[next(iter(found.keys()))]
    assert first.hard.tolist() == _want(root / "labels" / f"{first.key}.png")
    assert len(list(READER.samples(root, "test"))) == 20
