"""The VOC reader on fakes of the development kit and of both forms of SBD, and on real masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError, SampleError, SettingsError
from tests.fakes import save
from tests.fakes_voc_ade_coco import (
    fake_sbd,
    fake_voc,
    photo,
    save_palette,
    sbd_mat,
    voc_label,
    voc_palette,
    write_list,
)
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER = load_reader("voc")
AUG = {"aug": "yes"}


def void(ids: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.where(ids == 255, IGNORE, ids).astype(np.uint16)


@pytest.mark.parametrize("folder", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_palette_labels_become_twenty_one_classes_and_void(tmp_path: Path, folder: str) -> None:
    root = fake_voc(tmp_path / "r", {"train": 3, "val": 2, "test": 2}, folder)
    assert READER.splits(root) == ("train", "val", "test")
    run_build("voc", root, tmp_path / "out", scales="1,1/2")
    assert quarantine(tmp_path / "out") == []
    for split, count in (("train", 3), ("val", 2)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == count
        assert found.classes.names[0] == "background"
        for sample in found:
            assert np.array_equal(sample.hard, void(voc_label(sample.key)))
    tests = list(shards.open(tmp_path / "out", split="test", scale="1"))
    assert [sample.hard for sample in tests] == [None, None]


def test_a_test_list_without_its_images_is_no_split(tmp_path: Path) -> None:
    root = fake_voc(tmp_path / "r")
    write_list(root / "VOC2012/ImageSets/Segmentation/test.txt", ["2008_000006"])
    assert READER.splits(root) == ("train", "val")


def aug_root(tmp_path: Path) -> tuple[Path, list[str], list[str]]:
    """A kit of 3 + 2 images and SBD lists that overlap both: (root, VOC's train, VOC's val)."""
    root = fake_voc(tmp_path / "r")
    train, val = (
        (root / f"VOC2012/ImageSets/Segmentation/{split}.txt").read_text().split() for split in ("train", "val")
    )
    fake_sbd(
        root / "VOC2012",
        root / "benchmark_RELEASE" / "dataset",
        train=["2008_000001", train[0], val[0], "2008_000003"],
        val=["2008_000002", val[1], train[1]],
    )
    return root, train, val


def test_train_aug_is_voc_and_sbd_without_val(tmp_path: Path) -> None:
    root, train, val = aug_root(tmp_path)
    run_build("voc", root, tmp_path / "out", scales="1", given=AUG)
    assert quarantine(tmp_path / "out") == []
    found = shards.open(tmp_path / "out", split="train", scale="1")
    new = ["2008_000001", "2008_000002", "2008_000003"]
    assert sorted(found.keys()) == sorted([*train, *new])
    assert not set(found.keys()) & set(val)
    for sample in found:
        truth = void(voc_label(sample.key)) if sample.key in train else voc_label(sample.key, sbd=True)
        assert np.array_equal(sample.hard, truth), sample.key
    assert sorted(shards.open(tmp_path / "out", split="val", scale="1").keys()) == val
    assert "SBD" in shards.open(tmp_path / "out", split="val", scale="1").manifest.title


def test_without_aug_nothing_of_sbd_is_read(tmp_path: Path) -> None:
    root, train, _ = aug_root(tmp_path)
    assert [sample.key for sample in READER.samples(root, "train")] == train
    assert READER.title == "PASCAL VOC 2012, 21 classes"


@pytest.mark.parametrize("place", ["VOC2012/SegmentationClassAug", "SegmentationClassAug"])
def test_the_png_form_of_sbd(tmp_path: Path, place: str) -> None:
    root = fake_voc(tmp_path / "r")
    base = root / "VOC2012"
    train, val = ((base / f"ImageSets/Segmentation/{s}.txt").read_text().split() for s in ("train", "val"))
    for stem in (*train, *val, "2008_000001", "2008_000002"):  # the folder holds every labelled image
        save_palette(voc_label(stem, sbd=True), root / place / f"{stem}.png")
        if not (base / "JPEGImages" / f"{stem}.jpg").is_file():
            photo(base / "JPEGImages" / f"{stem}.jpg", voc_label(stem))
    run_build("voc", root, tmp_path / "out", scales="1", given=AUG)
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert sorted(found.keys()) == sorted([*train, "2008_000001", "2008_000002"])
    assert np.array_equal(found["2008_000001"].hard, voc_label("2008_000001", sbd=True))
    assert np.array_equal(found[train[0]].hard, void(voc_label(train[0])))


@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png"])
def test_a_train_aug_list_is_followed_and_val_images_in_it_are_quarantined(tmp_path: Path, line: str) -> None:
    root, train, val = aug_root(tmp_path)
    names = [train[0], "2008_000002", val[1]]
    write_list(root / "VOC2012/ImageSets/Segmentation/train_aug.txt", [line.format(name, name) for name in names])
    run_build("voc", root, tmp_path / "out", scales="1", given=AUG)
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert sorted(found.keys()) == sorted(names[:2])
    (bad,) = quarantine(tmp_path / "out")
    assert bad["key"] == val[1]
    assert bad["reason"] == "in the val split, which train_aug.txt must not hold"


def test_aug_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    root = fake_voc(tmp_path / "r")
    reader = READER.bind(root, AUG)
    with pytest.raises(LayoutError, match=r"neither SegmentationClassAug/ nor SBD's .*unpack SBD's benchmark\.tgz"):
        list(reader.samples(root, "train"))
    root, *_ = aug_root(tmp_path / "b")
    (root / "VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(LayoutError, match=r"val\.txt not found .*--aug needs it"):
        list(reader.samples(root, "train"))
    with pytest.raises(SettingsError, match="--aug maybe is not known"):
        READER.bind(root, {"aug": "maybe"})


def test_a_palette_png_saved_again_in_colour_is_read_by_voc_s_colours(tmp_path: Path) -> None:
    root = fake_voc(tmp_path / "r", {"train": 2})
    one, two = sorted((root / "VOC2012/SegmentationClass").iterdir())
    save(np.asarray(Image.open(one).convert("RGB")), one)
    rgb = np.array(Image.open(two).convert("RGB"))
    rgb[2, 3] = (1, 2, 3)
    save(rgb, two)
    run_build("voc", root, tmp_path / "out", scales="1")
    (sample,) = shards.open(tmp_path / "out", split="train", scale="1")
    assert np.array_equal(sample.hard, void(voc_label(sample.key)))
    (bad,) = quarantine(tmp_path / "out")
    assert "unknown label colour 1,2,3 at row 2, column 3" in bad["reason"]


def test_a_palette_in_another_order_is_read_by_its_colours(tmp_path: Path) -> None:
    ids = voc_label("2007_1")
    order = np.random.default_rng(4).permutation(256)  # index of the file -> VOC's index
    colours = np.array(voc_palette()).reshape(-1, 3)[order]
    back = np.argsort(order)[ids]
    path = save_palette(back, tmp_path / "a.png", colours.reshape(-1).tolist())
    assert np.array_equal(READER.decode_label(path.read_bytes(), "voc a: a.png", None), void(ids))
    grey = save_palette(ids, tmp_path / "b.png", [v for v in range(256) for _ in range(3)])  # it says nothing
    assert np.array_equal(READER.decode_label(grey.read_bytes(), "voc b: b.png", None), void(ids))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (sbd_mat(np.full((4, 5), 21)), "unknown label id 21 at row 0, column 0"),
        (sbd_mat(np.zeros((4, 5)))[:200], "truncated"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, r"MATLAB 7\.3"),
    ],
)
def test_damaged_sbd_masks(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=rf"^voc a: cls/a\.mat: .*{reason}"):
        READER.decode_label(data, "voc a: cls/a.mat", None)


def test_bad_labels_and_lists_are_quarantined_by_reason(tmp_path: Path) -> None:
    root = fake_voc(tmp_path / "r", {"train": 5})
    base = root / "VOC2012"
    stems = (base / "ImageSets/Segmentation/train.txt").read_text().split()
    (base / "SegmentationClass" / f"{stems[0]}.png").unlink()
    (base / "JPEGImages" / f"{stems[1]}.jpg").unlink()
    save_palette(np.full((20, 28), 21), base / "SegmentationClass" / f"{stems[2]}.png")
    save(voc_label(stems[3]).astype(np.uint16) + 300, base / "SegmentationClass" / f"{stems[3]}.png")
    write_list(
        base / "ImageSets/Segmentation/train.txt", [*stems, stems[4], "../../../etc/passwd", "gr\u00fc\u00df.e\x00"]
    )
    run_build("voc", root, tmp_path / "out", scales="1")
    assert list(shards.open(tmp_path / "out", split="train", scale="1").keys()) == [stems[4]]
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    expected = ["missing", "missing", "id 21", "id 3", "duplicate key", "passwd.jpg: missing", "missing"]
    assert len(reasons) == len(expected)
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("ImageSets", "ImageSets/Segmentation/ not found under"),
        ("JPEGImages", "none of the 3 images that train.txt lists lies in"),
        ("SegmentationClass", "SegmentationClass/ not found under"),
    ],
)
def test_missing_folders_are_layout_errors(tmp_path: Path, spoil: str, reason: str) -> None:
    root = fake_voc(tmp_path / "r")
    shutil.rmtree(root / "VOC2012" / spoil)
    with pytest.raises(LayoutError, match=reason):
        list(READER.samples(root, READER.splits(root)[0]))


def test_empty_lists_are_layout_errors(tmp_path: Path) -> None:
    root = fake_voc(tmp_path / "r")
    (root / "VOC2012/ImageSets/Segmentation/val.txt").write_text("\n \n")
    with pytest.raises(LayoutError, match=r"val\.txt is empty"):
        list(READER.samples(root, "val"))
    for path in (root / "VOC2012/ImageSets/Segmentation").iterdir():
        path.unlink()
    with pytest.raises(LayoutError, match=r"none of train\.txt, val\.txt and trainval\.txt found"):
        READER.splits(root)
    write_list(root / "VOC2012/ImageSets/Segmentation/trainval.txt", ["2007_000000"])
    assert READER.splits(root) == ("trainval",)


def test_real_masks_decode() -> None:
    masks = sorted(real_data("labels/voc-aug").glob("*.png"))
    assert len(masks) == 250
    masks += sorted(real_data("layouts/labelme-voc2011/SegmentationClass").glob("*.png"))
    shown: set[int] = set()
    for path in masks:
        hard = READER.decode_label(path.read_bytes(), path.name, None)
        assert np.array_equal(hard, void(np.asarray(Image.open(path)).astype(np.uint16)))
        shown |= set(np.unique(hard).tolist())
    assert shown == {*range(21), IGNORE}


def test_real_layout_with_a_mask_in_colour(tmp_path: Path) -> None:
    root = real_data("layouts/datumaro/voc_dataset/voc_dataset1")
    run_build("voc", root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    (sample,) = shards.open(tmp_path / "out", split="train", scale="1")
    assert (sample.hard == 2).all()  # 0,128,0 is bicycle
    assert list(shards.open(tmp_path / "out", split="test", scale="1").keys()) == ["2007_000002"]
