"""The readers of COCO-Stuff, 164K pixel maps and 10K .mat files: both become the same 171 classes."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError, SampleError
from tests.fakes_voc_ade_coco import (
    COCO_IDS,
    fake_cocostuff,
    fake_cocostuff10k,
    label_of,
    stuff10k_label,
    stuff10k_mat,
    write_list,
)
from tests.prep.builds import quarantine, run_build

READER, SMALL = load_reader("cocostuff"), load_reader("cocostuff10k")


def oracle(official: np.ndarray, void: int) -> np.ndarray:
    """Official ids -> their position among the 171 that COCO kept."""
    position = {official_id: index for index, official_id in enumerate(COCO_IDS)} | {void: IGNORE}
    return np.vectorize(position.__getitem__)(official)


@pytest.mark.parametrize("images", ["images", "."])
@pytest.mark.parametrize("maps", ["stuffthingmaps", "annotations", "annotations/stuffthingmaps_trainval2017"])
def test_pixel_maps_become_171_classes(tmp_path: Path, images: str, maps: str) -> None:
    root = fake_cocostuff(tmp_path / "coco", maps, images)
    run_build("cocostuff", root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    keys = {"train": ["000000000009", "000000000025", "000000000030"], "val": ["000000000139", "000000000285"]}
    for split, want in keys.items():
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert list(found.keys()) == want
        for sample in found:
            value = np.asarray(Image.open(root / maps / f"{split}2017" / f"{sample.key}.png")).astype(int)
            assert np.array_equal(sample.hard, oracle(np.where(value == 255, 0, value + 1), 0))


def test_every_value_of_a_map_is_known_or_refused() -> None:
    for value in range(256):
        data = save_bytes(np.full((3, 4), value, np.uint8))
        if value == 255 or value + 1 in COCO_IDS:
            hard = READER.decode_label(data, "cocostuff x: x.png", None)
            assert (hard == (IGNORE if value == 255 else COCO_IDS.index(value + 1))).all()
        else:
            with pytest.raises(SampleError, match=rf"cocostuff x: x\.png: unknown label id {value} "):
                READER.decode_label(data, "cocostuff x: x.png", None)


def save_bytes(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()


def test_maps_that_mmsegmentation_adds_are_left_out(tmp_path: Path) -> None:
    root = fake_cocostuff(tmp_path / "coco", "annotations")
    for path in sorted((root / "annotations/train2017").iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}_labelTrainIds"))
    assert len(list(READER.samples(root, "train"))) == 3


def test_halves_that_are_missing_are_quarantined_or_refused(tmp_path: Path) -> None:
    root = fake_cocostuff(tmp_path / "coco")
    (root / "images/train2017/000000000009.jpg").unlink()
    (root / "stuffthingmaps/train2017/000000000025.png").unlink()
    run_build("cocostuff", root, tmp_path / "out", scales="1")
    assert [bad["key"] for bad in quarantine(tmp_path / "out")] == ["000000000009", "000000000025"]
    shutil.rmtree(root / "stuffthingmaps/train2017")
    with pytest.raises(LayoutError, match=r"images of train2017 but no maps .*unpack stuffthingmaps_trainval2017\.zip"):
        run_build("cocostuff", root, tmp_path / "b")
    shutil.rmtree(root / "images/val2017")
    with pytest.raises(LayoutError, match=r"maps of val2017 but no images .*unpack val2017\.zip"):
        list(READER.samples(root, "val"))
    with pytest.raises(LayoutError, match="neither train2017/ nor val2017/ found"):
        READER.splits(tmp_path)


def test_mat_files_become_the_same_171_classes(tmp_path: Path) -> None:
    root = fake_cocostuff10k(tmp_path / "r")
    run_build("cocostuff10k", root, tmp_path / "out")
    assert quarantine(tmp_path / "out") == []
    for split, count in (("train", 3), ("test", 2)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert list(found.keys()) == (root / f"imageLists/{split}.txt").read_text().split()
        assert len(found) == count
        assert found.classes == READER.classes
        for sample in found:
            assert np.array_equal(sample.hard, oracle(stuff10k_label(sample.key), 0))


def test_bad_mat_files_and_lines_are_quarantined_by_reason(tmp_path: Path) -> None:
    root = fake_cocostuff10k(tmp_path / "r", {"train": 8})
    stems = (root / "imageLists/train.txt").read_text().split()
    files = [root / "annotations" / f"{stem}.mat" for stem in stems]
    files[0].write_bytes(files[0].read_bytes()[:300])
    files[1].write_bytes(stuff10k_mat(np.full((20, 28), 12, np.uint16)))  # one of the eleven that COCO dropped
    files[2].write_bytes(stuff10k_mat(np.full((20, 28), 183, np.uint16)))
    files[3].write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 300)
    files[4].write_bytes(stuff10k_mat(np.zeros((20, 28, 3), np.uint16)))
    files[5].unlink()
    files[6].write_bytes(stuff10k_mat(stuff10k_label(stems[6]).astype(np.float64)))
    write_list(root / "imageLists/train.txt", [*stems, "../../secret", stems[7]])
    run_build("cocostuff10k", root, tmp_path / "out", scales="1")
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    parts = ["damaged", "id 12 ", "id 183 ", "MATLAB 7.3", "shape (20, 28, 3)", "missing", "is a path", "duplicate key"]
    assert len(reasons) == len(parts)
    for reason, part in zip(reasons, parts, strict=True):
        assert part in reason
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert list(found.keys()) == stems[6:]
    assert np.array_equal(found[stems[6]].hard, oracle(stuff10k_label(stems[6]), 0))


def test_version_1_0_whose_ids_are_others_is_refused(tmp_path: Path) -> None:
    root = fake_cocostuff10k(tmp_path / "r")
    stem = (root / "imageLists/train.txt").read_text().split()[0]
    (root / "annotations" / f"{stem}.mat").write_bytes(stuff10k_mat(label_of([1], range(1, 173)), names=172))
    with pytest.raises(LayoutError, match=r"names 172 classes: this is COCO-Stuff 10K v1\.0"):
        list(SMALL.samples(root, "train"))


def test_incomplete_folders_of_the_10k_release_are_refused(tmp_path: Path) -> None:
    root = fake_cocostuff10k(tmp_path / "r")
    shutil.rmtree(root / "annotations")
    with pytest.raises(LayoutError, match="annotations/ not found under"):
        list(SMALL.samples(root, "train"))
    (root / "imageLists/test.txt").write_text("")
    with pytest.raises(LayoutError, match=r"test\.txt is empty"):
        list(SMALL.samples(root, "test"))
    with pytest.raises(LayoutError, match=r"neither train\.txt nor test\.txt found"):
        SMALL.splits(tmp_path)
