"""The WildDash reader: release 1, WildDash 2, its split file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import shards
from prep.datasets import load_reader
from shards.errors import LayoutError
from tests.fakes import save, taxonomy_rows
from tests.fakes_folders import fake_wilddash1, fake_wilddash2, ids_of, mapped
from tests.prep.builds import quarantine, run_build

READER = load_reader("wilddash")


@pytest.mark.parametrize("bare", [True, False])
def test_release_1(tmp_path: Path, bare: bool) -> None:
    root = fake_wilddash1(tmp_path / "wd")
    base = root / "wd_val_01" if bare else root
    assert READER.splits(base) == (("val",) if bare else ("val", "test"))
    run_build("wilddash", base, tmp_path / "out")
    found = shards.open(tmp_path / "out", split="val", scale="1")
    assert list(found.keys()) == [f"ab{number:04d}_100000" for number in range(3)]
    for sample in found:
        ids = ids_of(root / "wd_val_01" / f"{sample.key}_labelIds.png")
        assert sample.hard.tolist() == mapped(ids, "cityscapes-34_to_19")
    if not bare:
        assert shards.open(tmp_path / "out", split="test", scale="1")["cd0000_100000"].hard is None


@pytest.mark.parametrize("end", [".png", "_labelIds.png"])
def test_wilddash_2_with_its_lists(tmp_path: Path, end: str) -> None:
    root = fake_wilddash2(tmp_path / "wd", end=end)
    assert READER.splits(root) == ("train", "val", "test")
    run_build("wilddash", root, tmp_path / "out")
    assert quarantine(tmp_path / "out") == []
    for split, count in (("train", 3), ("val", 1)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == count
        for sample in found:
            ids = ids_of(root / "wd_public_02/labels" / f"{sample.key}{end}")
            assert ids.max() == 80
            assert sample.hard.tolist() == mapped(ids, "wilddash-81_to_19")


def test_wilddash_2_without_lists_is_one_split(tmp_path: Path) -> None:
    root = fake_wilddash2(tmp_path / "wd", test=0, lists=False)
    assert READER.splits(root / "wd_public_02") == ("all",)
    assert len(list(READER.samples(root, "all"))) == 4


def test_ids_of_wilddash_2_are_unknown_to_release_1(tmp_path: Path) -> None:
    root = fake_wilddash1(tmp_path / "wd")
    save(np.full((24, 32), 35, np.uint8), root / "wd_val_01/ab0001_100000_labelIds.png")
    run_build("wilddash", root, tmp_path / "out")
    (bad,) = quarantine(tmp_path / "out")
    assert "unknown label id 35" in bad["reason"]
    assert "WildDash 1 defines 34 ids" in bad["reason"]
    second = fake_wilddash2(tmp_path / "wd2")
    save(np.full((24, 32), 81, np.uint8), second / "wd_public_02/labels/us0000_100000.png")
    run_build("wilddash", second, tmp_path / "out2")
    (bad,) = quarantine(tmp_path / "out2")
    assert "unknown label id 81" in bad["reason"]
    assert "WildDash 2 defines 81 ids" in bad["reason"]


@pytest.mark.parametrize("release", [1, 2])
def test_missing_twins_are_quarantined(tmp_path: Path, release: int) -> None:
    if release == 1:
        root = fake_wilddash1(tmp_path / "wd")
        image, label = "wd_val_01/ab0000_100000.png", "wd_val_01/ab0001_100000_labelIds.png"
    else:
        root = fake_wilddash2(tmp_path / "wd", lists=False)
        image, label = "wd_public_02/images/us0000_100000.jpg", "wd_public_02/labels/us0001_100000.png"
    (root / image).unlink()
    (root / label).unlink()
    run_build("wilddash", root, tmp_path / "out")
    assert [bad["reason"] for bad in quarantine(tmp_path / "out")] == [
        f"{image}: missing file",
        f"{label}: missing file",
    ]


def test_listed_but_absent_is_quarantined(tmp_path: Path) -> None:
    root = fake_wilddash2(tmp_path / "wd")
    (root / "wd_public_02/random_split.json").write_text(
        '{"train": ["us0000_100000.jpg", "gone.jpg"], "val": ["us0001_100000"]}'
    )
    run_build("wilddash", root, tmp_path / "out")
    (bad,) = quarantine(tmp_path / "out")
    assert bad["reason"] == "wd_public_02/images/gone.jpg: missing file"
    assert len(shards.open(tmp_path / "out", split="val", scale="1")) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", '{"train": 3}', '{"train": [3]}', '{"a": []}', "[" * 100_000, '{"train": ["a"']
)
def test_split_files_that_are_none(tmp_path: Path, text: str) -> None:
    root = fake_wilddash2(tmp_path)
    (root / "wd_public_02/random_split.json").write_text(text)
    with pytest.raises(LayoutError, match=r"random_split.json: not .*expected lists of image names"):
        READER.splits(root)


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"neither images/, wd_public_02/ nor wd_val_01/ found"):
        READER.splits(tmp_path)
    root = fake_wilddash2(tmp_path)
    shutil.rmtree(root / "wd_public_02/labels")
    with pytest.raises(LayoutError, match=r"labels/ not found under .*unpack wd_public_02.zip"):
        list(READER.samples(root, "train"))
    (root / "wd_public_02/panoptic.json").write_text("{}")
    with pytest.raises(LayoutError, match=r"pano2sem.py of github.com/ozendelait/wilddash_scripts makes them"):
        list(READER.samples(root, "train"))
    (root / "wd_public_02/random_split.json").unlink()
    (root / "wd_public_02/labels").mkdir()
    with pytest.raises(LayoutError, match=r"holds 4 images/\*.jpg and 0 labels/\*.png"):
        list(READER.samples(root, "all"))
    bare = fake_wilddash1(tmp_path / "one")
    for path in (bare / "wd_val_01").glob("*_labelIds.png"):
        path.unlink()
    with pytest.raises(LayoutError, match=r"holds 3 images and 0 labels"):
        list(READER.samples(bare, "val"))


def test_the_authors_policy() -> None:
    """Pairs of wd2_unified_label_policy.json, by hand, and Cityscapes' own ids unchanged."""
    table = {row["name"]: row["to_name"] for row in taxonomy_rows("wilddash-81_to_19")}
    for name, to in (
        ("pickup", "truck"), ("van", "car"), ("billboard", ""), ("street light", ""), ("road marking", "road"),
        ("autorickshaw", "motorcycle"), ("other barrier", "wall"), ("curb", "sidewalk"), ("curb terrain", "terrain"),
        ("traffic sign back", ""), ("traffic sign frame", "pole"), ("on rails", "train"), ("bicyclist", "rider"),
    ):  # fmt: skip
        assert table[name] == to, name
    ours, theirs = taxonomy_rows("wilddash-81_to_19")[:34], taxonomy_rows("cityscapes-34_to_19")
    assert [row["to"] for row in ours] == [row["to"] for row in theirs]
    names = [row["name"] for row in taxonomy_rows("cityscapes-19")]
    assert all(
        row["to_name"] == names[int(row["to"])] for row in taxonomy_rows("wilddash-81_to_19") if row["to"] != "void"
    )
