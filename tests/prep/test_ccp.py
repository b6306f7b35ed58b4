"""The Clothing Co-Parsing reader: pixel labels and tags in MATLAB files, on fakes and on the real sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

import shards
from prep.datasets import load_reader
from shards.errors import LayoutError
from tests.fakes import taxonomy_rows
from tests.fakes_folders import fake_ccp
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER = load_reader("ccp")


def _truth(root: Path, key: str) -> list[list[int]]:
    return loadmat(root / f"annotations/pixel-level/{key}.mat")["groundtruth"].tolist()


@pytest.mark.parametrize("lists", [True, False])
def test_pixel_labels_and_tags(tmp_path: Path, lists: bool) -> None:
    root = fake_ccp(tmp_path / "ccp", lists=lists)
    run_build("ccp", root, tmp_path / "out")
    assert quarantine(tmp_path / "out") == []
    train, val, weak = (shards.open(tmp_path / "out", split=s, scale="1") for s in ("train", "val", "weak"))
    assert list(val.keys()) == (["0008"] if lists else ["0004", "0008"])
    assert len(train) == (7 if lists else 6)
    assert all(sample.hard.tolist() == _truth(root, sample.key) for found in (train, val) for sample in found)
    assert all(sample.weak is None for sample in train)
    assert {key: [int(v) for v in weak[key].weak] for key in list(weak.keys())} == {
        "1001": [0, 7, 58],
        "1002": [0, 8, 58],
        "1003": [0, 9, 58],
    }
    assert all(sample.hard is None for sample in weak)


def test_annotations_that_are_none(tmp_path: Path) -> None:
    root = fake_ccp(tmp_path / "ccp", pixel=9, weak=5, lists=True)
    pixel, tags = root / "annotations/pixel-level", root / "annotations/image-level"
    savemat(pixel / "0001.mat", {"groundtruth": np.full((24, 32), 59, np.uint8)})
    savemat(pixel / "0002.mat", {"groundtruth": np.zeros((24, 32))})
    savemat(pixel / "0003.mat", {"other": np.zeros((24, 32), np.uint8)})
    (pixel / "0004.mat").write_bytes((pixel / "0005.mat").read_bytes()[:300])
    (pixel / "0006.mat").unlink()
    (root / "photos/0007.jpg").unlink()
    savemat(tags / "1001.mat", {"tags": np.array([[0, 59]], np.uint8)})
    savemat(tags / "1002.mat", {"tags": "shirt"})
    (tags / "1003.mat").unlink()
    savemat(tags / "1004.mat", {"tags": np.array([[-1, 3]], np.int16)})
    run_build("ccp", root, tmp_path / "out")
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    for reason, part in zip(
        reasons,
        (
            "annotations/pixel-level/0001.mat: unknown label id 59",
            "groundtruth is float64 (24, 32); expected a label map uint8",
            "without the variable groundtruth",
            "0004.mat: truncated or damaged MATLAB file",
            "annotations/pixel-level/0006.mat: missing file",
            "photos/0007.jpg: missing file",
            "annotations/image-level/1001.mat: unknown tag id 59",
            "annotations/image-level/1002.mat: tags are no list of integers",
            "annotations/image-level/1003.mat: missing file",
            "annotations/image-level/1004.mat: unknown tag id -1",
        ),
        strict=True,
    ):
        assert part in reason


def test_photos_without_any_annotation_do_not_vanish(tmp_path: Path) -> None:
    root = fake_ccp(tmp_path)
    (root / "annotations/pixel-level/0003.mat").unlink()
    bad = [sample for split in READER.splits(root) for sample in READER.samples(root, split) if sample.problem]
    assert [sample.key for sample in bad] == ["0003"]
    assert "neither annotations/pixel-level/0003.mat nor annotations/image-level/0003.mat" in bad[0].problem


def test_folders_and_lists_that_are_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"photos/ not found under"):
        READER.splits(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(LayoutError, match=r"annotations/ not found under"):
        READER.splits(tmp_path)
    root = fake_ccp(tmp_path)
    (root / "pixel_train.txt").write_text("\n\n")
    assert READER.splits(root) == ("train",)
    with pytest.raises(LayoutError, match=r"pixel_train.txt names no photo for train"):
        list(READER.samples(root, "train"))


def test_the_real_sample(tmp_path: Path) -> None:
    root = real_data("ccp")
    names = [str(name[0]) for name in loadmat(root / "label_list.mat")["label_list"].ravel()]
    assert [row["name"] for row in taxonomy_rows("ccp-59")] == names
    assert [len(list(READER.samples(root, split))) for split in READER.splits(root)] == [120, 40, 160]
    for split in ("val", "weak"):
        run_build("ccp", root, tmp_path / split, scales="1/4,1", splits=(split,), limit=40)
        assert quarantine(tmp_path / split) == []
    for sample in shards.open(tmp_path / "val", split="val", scale="1"):
        assert np.array_equal(sample.hard, loadmat(root / f"annotations/pixel-level/{sample.key}.mat")["groundtruth"])
    for sample in shards.open(tmp_path / "weak", split="weak", scale="1"):
        tags = loadmat(root / f"annotations/image-level/{sample.key}.mat")["tags"]
        assert [int(v) for v in sample.weak] == sorted(set(tags.ravel().tolist()))


def test_our_rule_without_lists_is_the_samples(tmp_path: Path) -> None:
    root = real_data("ccp")
    for name in ("photos", "annotations"):
        (tmp_path / name).symlink_to(root / name)
    assert [sample.key for sample in READER.samples(tmp_path, "val")] == (root / "pixel_val.txt").read_text().split()
    assert [sample.key for sample in READER.samples(tmp_path, "train")] == (
        root / "pixel_train.txt"
    ).read_text().split()
    assert [sample.key for sample in READER.samples(tmp_path, "weak")] == (root / "image_level.txt").read_text().split()
