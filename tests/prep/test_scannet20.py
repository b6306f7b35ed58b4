"""The ScanNet frames reader."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import shards
from prep.datasets import load_reader
from shards.errors import LayoutError
from tests.fakes import save, taxonomy_rows
from tests.fakes_folders import fake_scannet, ids_of, mapped
from tests.prep.builds import quarantine, run_build

READER = load_reader("scannet20")
_BENCHMARK = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    14,
    16,
    24,
    28,
    33,
    34,
    36,
    39,
]  # NYU40 ids, from its documentation


def test_lists_say_the_splits_and_ids_become_classes(tmp_path: Path) -> None:
    root = fake_scannet(tmp_path / "sn")
    run_build("scannet20", root, tmp_path / "out")
    assert quarantine(tmp_path / "out") == []
    keys = list(shards.open(tmp_path / "out", split="train", scale="1").keys())
    assert keys == [f"{scene}/{frame}" for scene in ("scene0000_00", "scene0001_01") for frame in ("000000", "000100")]
    for sample in shards.open(tmp_path / "out", split="val", scale="1"):
        scene, frame = sample.key.split("/")
        ids = ids_of(root / "scannet_frames_25k" / scene / "label" / f"{frame}.png")
        assert sample.hard.tolist() == mapped(ids, "scannet-41_to_20")


def test_the_benchmarks_ids() -> None:
    kept = {int(row["id"]): int(row["to"]) for row in taxonomy_rows("scannet-41_to_20") if row["to"] != "void"}
    assert kept == {label: index for index, label in enumerate(_BENCHMARK)}
    names = {row["id"]: row["name"] for row in taxonomy_rows("scannet-41_to_20")}
    assert [names[str(label)] for label in _BENCHMARK] == [row["name"] for row in taxonomy_rows("scannet-20")]


def test_without_lists_there_is_one_split(tmp_path: Path) -> None:
    root = fake_scannet(tmp_path)
    for name in ("train", "val"):
        (root / f"scannetv2_{name}.txt").unlink()
    save(np.zeros((8, 8, 3), np.uint8), root / "scannet_frames_test/scene0800_00/color/000000.jpg")
    assert READER.splits(root) == ("all", "test")
    assert len(list(READER.samples(root, "all"))) == 6
    assert READER.splits(root / "scannet_frames_25k") == ("all",)
    (sample,) = READER.samples(root, "test")
    assert (sample.key, sample.label) == ("scene0800_00/000000", None)


def test_a_missing_scene_or_odd_line_is_quarantined_and_the_rest_built(tmp_path: Path) -> None:
    root = fake_scannet(tmp_path / "sn")
    shutil.rmtree(root / "scannet_frames_25k/scene0001_01/label")
    with open(root / "scannetv2_train.txt", "a") as file:
        file.write("scene0009_00\n../scene0000_00\n")
    run_build("scannet20", root, tmp_path / "out")
    no_label, no_scene, odd = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert "scene0001_01/label cannot be listed" in no_label
    assert "scene0009_00/color cannot be listed" in no_scene
    assert "names '../scene0000_00'" in odd
    assert len(shards.open(tmp_path / "out", split="train", scale="1")) == 2


def test_labels_of_another_size_or_id_are_quarantined(tmp_path: Path) -> None:
    root = fake_scannet(tmp_path / "sn")
    folder = root / "scannet_frames_25k/scene0000_00/label"
    save(np.zeros((12, 16), np.uint8), folder / "000000.png")
    save(np.full((24, 32), 41, np.uint8), folder / "000100.png")
    run_build("scannet20", root, tmp_path / "out")
    size, unknown = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert size.endswith("000000.png: label is 16x12 pixels, its image is 32x24")
    assert "unknown label id 41" in unknown


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"no scene0000_00/ under"):
        READER.splits(tmp_path)
    root = fake_scannet(tmp_path)
    (root / "scannetv2_val.txt").write_text("scene0500_00\n")
    with pytest.raises(LayoutError, match=r"none of the 1 scenes of .*scannetv2_val.txt is under"):
        list(READER.samples(root, "val"))
