"""The readers of ADE20K: the 150 classes, the full release and its preprocessed form."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError, SampleError
from tests.fakes import save, taxonomy_rows
from tests.fakes_voc_ade_coco import (
    ade_full_label,
    ade_tif_label,
    fake_ade20k,
    fake_ade20k_full,
    fake_ade20k_full_tif,
    photo,
    save_palette,
    save_seg,
)
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER, FULL = load_reader("ade20k"), load_reader("ade20k-full")


@pytest.mark.parametrize("folder", ["ADEChallengeData2016", "."])
def test_ids_become_150_classes_and_zero_void(tmp_path: Path, folder: str) -> None:
    root = fake_ade20k(tmp_path / "r", folder=folder)
    run_build("ade20k", root, tmp_path / "out")
    assert quarantine(tmp_path / "out") == []
    for split, where, count in (("train", "training", 3), ("val", "validation", 2)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == count
        for sample in found:
            ids = np.asarray(Image.open(root / folder / "annotations" / where / f"{sample.key}.png")).astype(int)
            assert np.array_equal(sample.hard, np.where(ids == 0, IGNORE, ids - 1))


def test_the_test_images_are_unlabelled(tmp_path: Path) -> None:
    root = fake_ade20k(tmp_path / "r", {"validation": 1})
    assert READER.splits(root) == ("val",)
    photo(root / "release_test" / "testing" / "ADE_test_00000001.jpg", np.zeros((20, 28), np.uint16))
    assert READER.splits(root) == ("val", "test")
    (sample,) = READER.samples(root, "test")
    assert (sample.key, sample.label) == ("ADE_test_00000001", None)


def test_what_cannot_be_used_is_quarantined_by_reason(tmp_path: Path) -> None:
    root = fake_ade20k(tmp_path / "r", {"training": 8}, folder=".")
    labels = sorted((root / "annotations/training").iterdir())
    images = sorted((root / "images/training").iterdir())
    labels[0].unlink()
    images[1].unlink()
    save(np.full((20, 28), 151, np.uint8), labels[2])
    save(np.zeros((20, 28, 3), np.uint8), labels[3])
    save(np.zeros((20, 27), np.uint8), labels[4])
    shutil.copy(images[5], images[5].with_suffix(".png"))  # a second image of the same stem
    images[6].rename(images[6].with_name("gr\u00fc.n.jpg"))
    labels[6].rename(labels[6].with_name("gr\u00fc.n.png"))
    save_palette(np.asarray(Image.open(labels[7])), labels[7])  # indices are what counts
    run_build("ade20k", root, tmp_path / "out", scales="1")
    reasons = {bad["key"]: bad["reason"] for bad in quarantine(tmp_path / "out")}
    for path, part in zip(
        images[:6], ("missing", "missing", "id 151", "colour", "27x20", "duplicate key"), strict=True
    ):
        assert part in reasons.pop(path.stem)
    assert reasons == {}
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert sorted(found.keys()) == [images[5].stem, images[7].stem, "gr__n"]
    ids = np.asarray(Image.open(labels[7])).astype(int)
    assert np.array_equal(found[images[7].stem].hard, np.where(ids == 0, IGNORE, ids - 1))


def test_images_of_every_kind_go_through(tmp_path: Path) -> None:
    root = fake_ade20k(tmp_path / "r", {"training": 4}, folder=".")
    cmyk, grey, turned, moving = sorted((root / "images/training").iterdir())
    Image.open(cmyk).convert("CMYK").save(cmyk)
    Image.open(grey).convert("L").save(grey)
    image = Image.open(turned)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn: the stored pixels are landscape, the label is upright
    image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    frames = [Image.open(moving).copy(), Image.new("RGB", (28, 20))]
    moving.unlink()
    frames[0].save(moving.with_suffix(".png"), save_all=True, append_images=frames[1:])
    run_build("ade20k", root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    assert all(s.image.shape == (20, 28, 3) for s in shards.open(tmp_path / "out", split="train", scale="1"))


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("annotations/training", r"annotations/training cannot be listed .*--split"),
        ("images/training", r"images/training cannot be listed .*--split"),
    ],
)
def test_a_split_of_which_half_is_missing_is_refused(tmp_path: Path, remove: str, reason: str) -> None:
    root = fake_ade20k(tmp_path / "r", folder=".")
    shutil.rmtree(root / remove)
    with pytest.raises(LayoutError, match=reason):
        run_build("ade20k", root, tmp_path / "out")
    (root / remove).mkdir()
    with pytest.raises(LayoutError, match="training holds no"):
        run_build("ade20k", root, tmp_path / "out")
    with pytest.raises(LayoutError, match="neither images/training nor images/validation"):
        READER.splits(tmp_path)


def test_real_masks_of_a_reduction_decode() -> None:
    masks = sorted(real_data("labels/ade-5class").glob("*.png"))
    assert len(masks) == 250
    images = np.zeros(4, int)
    for path in masks:
        hard = READER.decode_label(path.read_bytes(), path.name, None)
        images += [bool((hard == index).any()) for index in range(4)]
    assert images.tolist() == [124, 102, 38, 72]  # the README's counts of labels 1 to 4


def full_oracle(ids: np.ndarray) -> np.ndarray:
    index = {int(row["release_id"]): int(row["id"]) for row in taxonomy_rows("ade20k-full-847")}
    return np.vectorize(lambda value: index.get(int(value), IGNORE))(ids)


@pytest.mark.parametrize("inside", [True, False])
def test_the_full_release_becomes_847_classes(tmp_path: Path, inside: bool) -> None:
    root = fake_ade20k_full(tmp_path / "r")
    run_build("ade20k-full", root / "ADE20K_2021_17_01" if inside else root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    stems = {"train": [f"ADE_train_0000000{n}" for n in (1, 2, 3)], "val": ["ADE_val_00000001"]}
    for split, keys in stems.items():
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert sorted(found.keys()) == keys
        for sample in found:
            want = full_oracle(ade_full_label(sample.key))
            assert 0 < (want == IGNORE).sum() < want.size
            assert np.array_equal(sample.hard, want)


def test_the_preprocessed_form_becomes_the_same_classes(tmp_path: Path) -> None:
    root = fake_ade20k_full_tif(tmp_path / "r")
    assert FULL.splits(root) == ("train", "val")
    run_build("ade20k-full", root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    for split in ("train", "val"):
        for sample in shards.open(tmp_path / "out", split=split, scale="1"):
            assert np.array_equal(sample.hard, ade_tif_label(sample.key))


def test_the_full_release_is_taken_where_both_forms_are(tmp_path: Path) -> None:
    root = fake_ade20k_full(tmp_path / "r")
    fake_ade20k_full_tif(root / "ADE20K_2021_17_01")
    keys = [sample.key for sample in FULL.samples(root, "train")]
    assert keys == ["ADE_train_00000002", "ADE_train_00000001", "ADE_train_00000003"]


def test_a_16_bit_label_stored_in_8_bits_is_refused(tmp_path: Path) -> None:
    root = fake_ade20k_full_tif(tmp_path / "r", {"training": ["ADE_train_1", "ADE_train_2", "ADE_train_3"]})
    path = root / "annotations_detectron2/training/ADE_train_1.tif"
    save(ade_tif_label("ADE_train_1").astype(np.uint8), path)
    save(np.full((20, 28), 847, np.uint16), path.with_stem("ADE_train_2"))
    run_build("ade20k-full", root, tmp_path / "out", scales="1")
    one, two = (bad["reason"] for bad in quarantine(tmp_path / "out"))
    assert "TIFF of mode L; expected a TIFF of 16-bit grey" in one
    assert "unknown label id 847" in two


def test_bad_seg_files_are_quarantined_by_reason(tmp_path: Path) -> None:
    stems = [f"ADE_train_0000000{n}" for n in range(5)]
    root = fake_ade20k_full(tmp_path / "r", {"training/street": stems, "training/other": [stems[4]]})
    folder = root / "ADE20K_2021_17_01/images/ADE/training/street"
    (folder / f"{stems[0]}_seg.png").unlink()
    (folder / f"{stems[1]}.jpg").unlink()
    save_seg(np.full((20, 28), 3689, np.uint16), folder / f"{stems[2]}_seg.png")
    save(np.zeros((20, 28), np.uint8), folder / f"{stems[3]}_seg.png")
    run_build("ade20k-full", root, tmp_path / "out", scales="1")
    assert list(shards.open(tmp_path / "out", split="train", scale="1").keys()) == [stems[4]]
    reasons = sorted(bad["reason"] for bad in quarantine(tmp_path / "out"))
    for part in ("PNG of mode L; expected a PNG of 8-bit RGB", "unknown label id 3689", "duplicate key", "missing"):
        assert any(part in reason for reason in reasons)
    assert len(reasons) == 5


def test_folders_of_single_objects_are_not_searched(tmp_path: Path) -> None:
    root = fake_ade20k_full(tmp_path / "r")
    masks = root / "ADE20K_2021_17_01/images/ADE/training/home/bedroom/ADE_train_00000002"
    save_seg(ade_full_label("x"), masks / "ADE_train_00000009_seg.png")
    assert next(sample.key for sample in FULL.samples(root, "train")) == "ADE_train_00000002"
    assert len(list(FULL.samples(root, "train"))) == 3


def test_links_are_followed_and_rings_refused(tmp_path: Path) -> None:
    root = fake_ade20k_full(tmp_path / "r")
    top = root / "ADE20K_2021_17_01/images/ADE/training"
    (top / "urban").rename(tmp_path / "urban")
    (top / "urban").symlink_to(tmp_path / "urban", target_is_directory=True)
    assert len(list(FULL.samples(root, "train"))) == 3
    (top / "urban" / "ring").symlink_to(top, target_is_directory=True)
    with pytest.raises(LayoutError, match=r"ring.* is a symlink that leads back to a folder above it"):
        list(FULL.samples(root, "train"))


@pytest.mark.parametrize("folder", ["images/training/a/abbey", "ADE20K_2016_07_26/images/training/a/abbey"])
def test_the_release_of_2016_is_refused(tmp_path: Path, folder: str) -> None:
    save_seg(ade_full_label("x"), tmp_path / folder / "ADE_train_00000001_seg.png")
    with pytest.raises(LayoutError, match=r"release of 2016, whose class ids are others; expected ADE20K_2021_17_01"):
        FULL.splits(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="neither images/ADE/ nor images_detectron2/ found"):
        FULL.splits(tmp_path)
    (tmp_path / "images/ADE/training/street").mkdir(parents=True)
    with pytest.raises(LayoutError, match=r"no \*\.jpg or \*_seg\.png found"):
        list(FULL.samples(tmp_path, "train"))
    root = fake_ade20k_full_tif(tmp_path / "r")
    shutil.rmtree(root / "annotations_detectron2")
    with pytest.raises(LayoutError, match="annotations_detectron2/training cannot be listed"):
        list(FULL.samples(root, "train"))


def test_a_truncated_seg_file_is_a_sample_error() -> None:
    with pytest.raises(SampleError, match=r"x_seg\.png"):
        FULL.decode_label(b"\x89PNG\r\n\x1a\n", "ade20k-full x: x_seg.png", None)


def test_the_real_sample_of_the_full_release(tmp_path: Path) -> None:
    root = real_data("layouts/ade20k-full-3images")
    run_build("ade20k-full", root, tmp_path / "out", scales="1/4")
    assert quarantine(tmp_path / "out") == []
    assert len(shards.open(tmp_path / "out", split="train", scale="1/4")) == 3
    for sample in FULL.samples(root, "train"):
        hard = FULL.decode_label(sample.label.read_bytes(), sample.label.name, None)
        rgb = np.asarray(Image.open(sample.label)).astype(int)
        ids, place = np.unique(rgb[..., 0] // 10 * 256 + rgb[..., 1], return_inverse=True)
        assert np.array_equal(hard, full_oracle(ids)[place.reshape(hard.shape)])
        assert (hard == IGNORE).mean() < 0.12  # nothing but id 0
