"""Image-level labels from pixel labels: `--weak`, whole images and windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import shards
from prep.weak import shown_classes, windows
from shards import IGNORE
from shards.classes import ClassTable
from shards.cli import command as look
from shards.manifest import load_manifest
from shards.verify import verify
from tests.fakes import fake_camvid, fake_cityscapes, save
from tests.prep.builds import SegPrep, run_build, tree


def source(root: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of a fake CamVid sample, read without the code under test; void is 11."""
    image = np.asarray(Image.open(root / "val" / f"{key}.png"))
    return image, np.asarray(Image.open(root / "valannot" / f"{key}.png"))


def shown(label: np.ndarray) -> list[int]:
    return sorted({int(value) for value in label.ravel()} - {11})


def test_an_image_keeps_its_classes_and_loses_its_pixels(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    out = tmp_path / "out"
    run_build("camvid", root, out, weak=True)
    manifest = load_manifest(out)
    assert not manifest.splits["val"].labelled
    assert manifest.settings["weak"] == "images"
    for scale in ("1", "1/2"):
        dataset = shards.open(out, split="val", scale=scale)
        assert len(dataset) == 3
        for sample in dataset:
            assert sample.weak is not None
            assert sample.weak.tolist() == shown(source(root, sample.key)[1])
            assert sample.hard is None
            assert sample.soft is None
    assert not list(verify(out))


def test_instances_are_not_stored_with_weak_labels(tmp_path: Path) -> None:
    root = fake_cityscapes(tmp_path / "cs", {"train": 2})
    run_build("cityscapes", root, tmp_path / "out", weak=True)
    assert set(shards.open(tmp_path / "out", split="train").members(0)) == {"png", "json"}


def test_windows_cover_the_image_and_each_has_its_own_classes(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2}, size=(50, 70))
    out = tmp_path / "out"
    run_build("camvid", root, out, weak=True, weak_crop=32, scales="1")
    dataset = shards.open(out, split="val")
    assert len(dataset) == 2 * 2 * 3
    assert load_manifest(out).settings["weak"] == "windows of 32"
    covered = {}
    for sample in dataset:
        key, place = sample.key.split("/")
        image, label = source(root, key)
        top, left, height, width = sample.meta["window"]
        assert (height, width) == (32, 32)
        assert place == f"{top}_{left}"
        assert np.array_equal(sample.image, image[top : top + 32, left : left + 32])
        assert sample.weak.tolist() == shown(label[top : top + 32, left : left + 32])
        covered.setdefault(key, np.zeros(label.shape, int))[top : top + 32, left : left + 32] += 1
    assert len(covered) == 2
    assert all((count > 0).all() for count in covered.values())
    assert any(len(sample.weak) < len(shown(source(root, sample.key.split("/")[0])[1])) for sample in dataset)


def test_an_all_void_image_shows_nothing(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 1})
    (label,) = (root / "valannot").iterdir()
    save(np.full((48, 64), 11, np.uint8), label)
    run_build("camvid", root, tmp_path / "out", weak=True, scales="1")
    (sample,) = shards.open(tmp_path / "out", split="val")
    assert sample.weak is not None
    assert sample.weak.tolist() == []


def test_workers_and_windows_give_the_same_bytes(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 9}, size=(50, 70))
    for name, workers in (("one", 1), ("two", 2)):
        run_build("camvid", root, tmp_path / name, weak=True, weak_crop=32, scales="1", workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_statistics_count_images_by_their_tags(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    run_build("camvid", root, tmp_path / "out", weak=True, scales="1")
    found = json.loads((tmp_path / "out" / "stats.json").read_text())["splits"]["val"]
    keys = shards.open(tmp_path / "out", split="val").keys()
    tags = [shown(source(root, key)[1]) for key in keys]
    assert [row["images"] for row in found["classes"]] == [sum(i in t for t in tags) for i in range(11)]
    assert found["pixels"] == 0


def test_the_command_takes_both(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    assert seg_prep("camvid", "--root", root, "--out", tmp_path / "o", "--weak", "--weak-crop", 48)[0] == 0
    manifest = load_manifest(tmp_path / "o")
    assert manifest.scales == ["1"]
    assert manifest.splits["val"].samples == 4
    refused = seg_prep.refused("camvid", "--root", root, "--out", tmp_path / "p", "--weak-crop", 48)
    assert "--weak-crop 48 found: expected at least 16 pixels, together with --weak" in refused
    assert "at least 16" in seg_prep.refused(
        "camvid", "--root", root, "--out", tmp_path / "p", "--weak", "--weak-crop", 8
    )


def test_the_two_settings_do_not_mix_in_one_folder(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    assert seg_prep("camvid", "--root", root, "--out", tmp_path / "o", "--weak")[0] == 0
    assert "weak images -> none" in seg_prep.refused("camvid", "--root", root, "--out", tmp_path / "o", "--scales", "1")


@given(st.integers(1, 200), st.integers(1, 200), st.integers(16, 64))
def test_windows_are_few_and_cover_all(height: int, width: int, crop: int) -> None:
    found = windows(height, width, crop)
    covered = np.zeros((height, width), bool)
    for window in found:
        assert (window.height, window.width) == (min(crop, height), min(crop, width))
        assert covered[window.slices].shape == (window.height, window.width), "a window leaves the image"
        covered[window.slices] = True
    assert covered.all()
    assert len(found) == -(-height // crop) * -(-width // crop)


@given(st.lists(st.sampled_from([0, 3, 7, 65533, IGNORE]), min_size=1, max_size=12))
def test_shown_classes_are_the_set_without_void(values: list[int]) -> None:
    assert list(shown_classes(np.array([values], np.uint16))) == sorted(set(values) - {IGNORE})


def test_the_tools_show_image_level_labels(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    out = tmp_path / "out"
    run_build("camvid", root, out, weak=True, scales="1")
    dataset = shards.open(out, split="val")
    names = [dataset.classes.names[i] for i in shown(source(root, dataset[0].key)[1])]
    text = CliRunner().invoke(look, ["cat", str(out)]).output
    assert f"shows    {', '.join(names)}" in text
    text = CliRunner().invoke(look, ["stats", str(out), "--json", str(tmp_path / "s.json"), "--quiet"]).output
    assert "3 samples with image-level labels instead of pixel labels" in text
    figures = json.loads((tmp_path / "s.json").read_text())["val 1"]
    assert figures["tagged"] == 3
    tags = [shown(source(root, sample.key)[1]) for sample in dataset]
    counts = [entry["images"] for entry in figures["classes"].values()]
    assert counts == [sum(i in t for t in tags) for i in range(11)] + [0]
    assert "no pixel labels" in CliRunner().invoke(look, ["ls", str(out)]).output


def test_a_card_of_very_many_classes_stays_short() -> None:
    from shards.card import MANY_CLASSES, card

    names = [f"class {i}" for i in range(MANY_CLASSES + 1)]
    table = ClassTable.make(names)
    manifest = load_manifest(Path(__file__).parents[1] / "golden" / "v1-webdataset")
    draft = manifest.model_copy(update={"classes": table.to_dict(), "classes_digest": table.digest})
    text = card(draft, {"class 7": 5, "class 8": 0})
    assert "| 7 | class 7 |" in text
    assert "class 8 " not in text
    assert "2001 classes; `manifest.json` holds the whole table" in text
