"""The KITTI semantics reader."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError
from tests.fakes import save
from tests.fakes_folders import fake_kitti, ids_of, mapped
from tests.prep.builds import quarantine, run_build
from tests.real import real_data


@pytest.mark.parametrize("semantic", [True, False])
def test_labels_and_instances(tmp_path: Path, semantic: bool) -> None:
    root = fake_kitti(tmp_path / "kitti", semantic=semantic)
    run_build("kitti", root, tmp_path / "out")
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert len(found) == 3
    for sample in found:
        raw = ids_of(root / "training/instance" / f"{sample.key}.png")
        assert sample.hard.tolist() == mapped(raw >> 8, "cityscapes-34_to_19")
        kept = np.where((raw % 256 != 0) & (sample.hard != IGNORE), raw, 0)
        numbers = {value: number for number, value in enumerate(sorted(set(kept.ravel().tolist()) - {0}), 1)} | {0: 0}
        assert len(numbers) > 4
        assert sample.instances.tolist() == [[numbers[value] for value in line] for line in kept.tolist()]
    assert shards.open(tmp_path / "out", split="test", scale="1")["000000_10"].hard is None


def test_instance_maps_are_optional_and_of_sixteen_bits(tmp_path: Path) -> None:
    root = fake_kitti(tmp_path / "kitti")
    instances = root / "training/instance"
    (instances / "000000_10.png").unlink()
    save(np.zeros((26, 40), np.uint8), instances / "000001_10.png")
    save(np.zeros((5, 5), np.uint16), instances / "000002_10.png")
    run_build("kitti", root, tmp_path / "out")
    narrow, small = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert "instance map of 8 bits; expected 16" in narrow
    assert "instance map is 5x5 pixels, its label is 40x26" in small
    (sample,) = shards.open(tmp_path / "out", split="train", scale="1")
    assert sample.instances is None


def test_an_eight_bit_instance_map_is_no_label(tmp_path: Path) -> None:
    root = fake_kitti(tmp_path / "kitti", semantic=False)
    save(np.zeros((26, 40), np.uint8), root / "training/instance/000000_10.png")
    run_build("kitti", root, tmp_path / "out")
    (bad,) = quarantine(tmp_path / "out")
    assert "training/instance/000000_10.png: instance map of 8 bits" in bad["reason"]


def test_bad_files_are_quarantined(tmp_path: Path) -> None:
    root = fake_kitti(tmp_path / "kitti", train=4)
    (root / "training/image_2/000000_10.png").unlink()
    (root / "training/semantic/000001_10.png").unlink()
    save(np.full((26, 40), 34, np.uint8), root / "training/semantic/000002_10.png")
    save(np.zeros((26, 40, 3), np.uint8), root / "training/image_2/000009_10.png")
    save(np.zeros((26, 40, 3), np.uint8), root / "training/semantic/000009_10.png")
    run_build("kitti", root, tmp_path / "out")
    image, label, unknown, colour = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert image == "training/image_2/000000_10.jpg: missing file"  # by the name that any image may have
    assert label == "training/semantic/000001_10.png: missing file"
    assert "unknown label id 34" in unknown
    assert "colour image" in colour


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"neither training/ nor testing/ found"):
        load_reader("kitti").splits(tmp_path)
    root = fake_kitti(tmp_path)
    shutil.rmtree(root / "training/semantic")
    shutil.rmtree(root / "training/instance")
    with pytest.raises(LayoutError, match=r"training/semantic cannot be listed"):
        list(load_reader("kitti").samples(root, "train"))


def test_the_datumaro_fixture(tmp_path: Path) -> None:
    root = real_data("layouts/datumaro/kitti_dataset/kitti_segmentation")
    run_build("kitti", root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    found = shards.open(tmp_path / "out", split="train", scale="1")
    # 768 = 3 * 256: void; 6913, 6914: two trucks; 3073: wall, numbered; 7937: a train
    for sample in found:
        raw = ids_of(root / "training/instance" / f"{sample.key}.png")
        want = {768: IGNORE, 6913: 14, 6914: 14, 3073: 3, 7937: 16}
        assert sample.hard.tolist() == [[want[value] for value in line] for line in raw.tolist()]
