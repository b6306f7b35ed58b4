"""Names, links and folders as people's disks have them: each is read, refused in one line, or quarantined."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shards
from prep.datasets import load_reader
from shards.errors import LayoutError
from tests.fakes import blobs, fake_cityscapes, picture, save
from tests.fakes_folders import (
    fake_ccp,
    fake_kitti,
    fake_vistas,
    fake_wilddash1,
    fake_wilddash2,
)
from tests.fakes_voc_ade_coco import (
    fake_ade20k,
    fake_ade20k_full,
    fake_ade20k_full_tif,
    fake_voc,
    photo,
)
from tests.prep.builds import SegPrep, quarantine, run_build

NOT_UTF8 = os.fsdecode(b"caf\xe9\xff")


def own_data(root: Path, *names: str, split: str = "train") -> Path:
    """A folder of the user's own with an image and a label of each name."""
    for name in names:
        label = blobs(np.random.default_rng(len(name)), (16, 24), 2)
        save(picture(np.random.default_rng(0), label), root / "images" / split / f"{name}.png")
        save(label, root / "labels" / split / f"{name}.png")
    (root / "classes.txt").write_text("a\nb\n")
    return root


def all_samples(dataset: str, root: Path) -> list[str]:
    """Keys of all splits, or LayoutError."""
    reader = load_reader(dataset).bind(root, {})
    return [sample.key for split in reader.splits(root) for sample in reader.samples(root, split)]


def test_names_that_are_not_utf8_are_stored_and_quarantined(tmp_path: Path, seg_prep: SegPrep) -> None:
    root, out = own_data(tmp_path / "raw", NOT_UTF8, "ok", f"{NOT_UTF8}2"), tmp_path / "out"
    (root / "labels/train" / f"{NOT_UTF8}2.png").unlink()
    code, _, err = seg_prep("folder", "--root", root, "--out", out)
    assert (code, "Traceback" in err) == (1, False)
    assert shards.open(out, "train")["caf__"].meta["source"] == "images/train/caf\\udce9\\udcff.png"
    (bad,) = quarantine(out)
    assert bad["reason"] == (
        "no label labels/train/caf\\udce9\\udcff2.png found for images/train/caf\\udce9\\udcff2.png"
    )
    assert seg_prep("folder", "--root", root, "--out", out)[0] == 1  # complete, and read again


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 300 + ".jpg"], ids=["nul", "surrogate", "long"])
def test_listed_names_that_no_file_can_have_are_quarantined(tmp_path: Path, seg_prep: SegPrep, name: str) -> None:
    root, out = fake_wilddash2(tmp_path / "raw"), tmp_path / "out"
    lists = root / "wd_public_02/random_split.json"
    document = json.loads(lists.read_text())
    document["train"].append(name)
    lists.write_text(json.dumps(document))
    code, _, err = seg_prep("wilddash", "--root", root, "--out", out, "--scales", "1")
    assert (code, "Traceback" in err) == (1, False)
    assert len(quarantine(out)) == 1


DANGLING: dict[str, tuple[Callable[[Path], Path], str]] = {
    "vistas": (fake_vistas, "training"),
    "kitti": (fake_kitti, "training"),
    "wilddash": (fake_wilddash1, "wd_val_01"),
    "wilddash 2": (fake_wilddash2, "wd_both_02"),
    "ccp": (fake_ccp, "annotations/image-level"),
    "cityscapes": (fake_cityscapes, "leftImg8bit/test"),
    "cityscapes city": (fake_cityscapes, "leftImg8bit/test/berlin"),
    "ade20k-full": (fake_ade20k_full, "ADE20K_2021_17_01/images/ADE/training"),
    "ade20k-full scene": (fake_ade20k_full, "ADE20K_2021_17_01/images/ADE/training/urban"),
}


@pytest.mark.parametrize("name", DANGLING)
def test_links_that_lead_nowhere_drop_no_split(tmp_path: Path, name: str) -> None:
    fake, folder = DANGLING[name]
    root = fake(tmp_path / "raw")
    away = tmp_path / "elsewhere"
    before = all_samples(name.split()[0], root)
    (root / folder).rename(away)
    (root / folder).symlink_to(away)
    assert all_samples(name.split()[0], root) == before
    away.rename(tmp_path / "unmounted")
    with pytest.raises((LayoutError, FileNotFoundError)):
        all_samples(name.split()[0], root)


def test_a_city_without_permission_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_cityscapes(tmp_path, {"test": 2})
    save(np.zeros((64, 128, 3), np.uint8), root / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png")
    forbid(monkeypatch, root / "leftImg8bit/test/bonn")
    with pytest.raises(PermissionError):
        all_samples("cityscapes", root)


def test_a_scene_without_permission_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_ade20k_full(tmp_path)
    scene = root / "ADE20K_2021_17_01/images/ADE/training/urban"
    forbid(monkeypatch, scene)
    with pytest.raises(LayoutError, match=r"urban cannot be listed \(Permission denied\)"):
        all_samples("ade20k-full", root)


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Listing a folder fails, also for root, whom permissions do not stop."""
    scandir, listdir = os.scandir, os.listdir

    def check(path: object) -> None:
        if os.fspath(path) == str(folder):  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", lambda path=".": check(path) or scandir(path))
    monkeypatch.setattr(os, "listdir", lambda path=".": check(path) or listdir(path))


def test_own_folders_that_lead_nowhere(tmp_path: Path, seg_prep: SegPrep) -> None:
    root, out = own_data(tmp_path / "raw", "one"), tmp_path / "out"
    for link in ("images/val", "images/train/street", "labels/train/street"):
        (root / link).symlink_to(tmp_path / "nowhere")
        line = seg_prep.refused("folder", "--root", root, "--out", out)
        assert f"{root / link} cannot be listed (No such file or directory)" in line
        (root / link).unlink()
    own_data(root, "two", split="test")
    (root / "labels/test").rename(tmp_path / "unmounted")
    (root / "labels/test").symlink_to(tmp_path / "nowhere")  # else test would count as unlabelled
    assert "labels/test cannot be listed" in seg_prep.refused("folder", "--root", root, "--out", out)


def test_an_own_image_that_leads_nowhere_is_quarantined(tmp_path: Path) -> None:
    root, out = own_data(tmp_path / "raw", "one", "two"), tmp_path / "out"
    (root / "images/train/two.png").unlink()
    (root / "images/train/two.png").symlink_to(tmp_path / "nowhere.png")
    run_build("folder", root, out)
    assert [bad["reason"] for bad in quarantine(out)] == ["images/train/two.png: missing file"]


def test_tif_labels_in_upper_case(tmp_path: Path) -> None:
    root, out = fake_ade20k_full_tif(tmp_path / "raw"), tmp_path / "out"
    labels = sorted((root / "annotations_detectron2").rglob("*.tif"))
    for path in labels:
        path.rename(path.with_suffix(".TIF"))
    assert labels
    assert run_build("ade20k-full", root, out).bad == []


def test_test_images_in_upper_case(tmp_path: Path) -> None:
    root = fake_ade20k(tmp_path)
    photo(root / "release_test/testing/ADE_test_00000001.JPG", np.zeros((8, 8), np.uint16))
    assert "test" in load_reader("ade20k").splits(root)


def test_annotations_without_either_kind_are_refused(tmp_path: Path, seg_prep: SegPrep) -> None:
    (tmp_path / "raw/photos").mkdir(parents=True)
    (tmp_path / "raw/annotations").mkdir()
    line = seg_prep.refused("ccp", "--root", tmp_path / "raw", "--out", tmp_path / "out")
    assert "neither annotations/pixel-level/ nor annotations/image-level/ found" in line


def test_aug_with_an_empty_folder_of_labels_is_refused(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_voc(tmp_path / "raw")
    (root / "SegmentationClassAug").mkdir()
    line = seg_prep.refused("voc", "--root", root, "--out", tmp_path / "out", "--aug")
    assert "no *.png found in" in line


def test_an_empty_classes_option_is_no_option_left_out(tmp_path: Path, seg_prep: SegPrep) -> None:
    """A shell variable that is not set must not give another dataset than was meant."""
    root = own_data(tmp_path / "raw", "one")
    assert "--classes " in seg_prep.refused("folder", "--root", root, "--out", tmp_path / "out", "--classes", "")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("id\tname\n0\t" + "a" * 200_000 + "\n1\tb\n", None),
        ("id\tid\tname\n0\t1\ta\n1\t0\tb\n", "line 1: column id found twice"),
    ],
)
def test_odd_class_tables(tmp_path: Path, seg_prep: SegPrep, text: str, wanted: str | None) -> None:
    root = own_data(tmp_path / "raw", "one")
    (root / "classes.txt").unlink()
    (root / "classes.tsv").write_text(text)
    if wanted:
        assert wanted in seg_prep.refused("folder", "--root", root, "--out", tmp_path / "out")
    else:
        assert seg_prep("folder", "--root", root, "--out", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("word", ["Void", "VOID"])
def test_void_in_other_letters_makes_no_class(tmp_path: Path, seg_prep: SegPrep, word: str) -> None:
    root, spec = own_data(tmp_path / "raw", "one"), tmp_path / "map.tsv"
    spec.write_text(f"from\tto\na\t{word}\nb\tb\n")
    args = ("folder", "--root", root, "--out", tmp_path / "out")
    assert f"map.tsv line 2: '{word}' found; expected void" in seg_prep.refused(*args, "--classes", spec)
    (root / "classes.txt").write_text(f"a\n{word}\n")
    assert f"classes.txt line 2: '{word}' found; expected void" in seg_prep.refused(*args)


def test_a_changed_table_is_named_when_a_build_is_refused(tmp_path: Path, seg_prep: SegPrep) -> None:
    root, spec = own_data(tmp_path / "raw", "one"), tmp_path / "map.tsv"
    spec.write_text("from\tto\na\tx\nb\ty\n")
    args = ("folder", "--root", root, "--out", tmp_path / "out", "--classes", spec)
    assert seg_prep(*args)[0] == 0
    spec.write_text("from\tto\tid\nb\tx\t0\na\ty\t1\n")
    assert re.search(r"differs in class_map \w{12}\.\.\. -> \w{12}\.\.\.: go back", seg_prep.refused(*args))


@pytest.mark.parametrize(("classes", "want"), [(256, 255), (255, 65535)])
def test_255_in_eight_bits_is_clear_where_no_id_goes_beyond(tmp_path: Path, classes: int, want: int) -> None:
    root, out = own_data(tmp_path / "raw", "one"), tmp_path / "out"
    (root / "classes.txt").write_text("".join(f"c{n}\n" for n in range(classes)))
    save(np.full((16, 24), 255, np.uint8), root / "labels/train/one.png")
    assert run_build("folder", root, out).bad == []
    assert np.unique(shards.open(out, "train")["one"].hard).tolist() == [want]


@pytest.mark.parametrize("names", [("training", "validation"), ("Train", "Val")])
def test_splits_by_other_names_are_not_mixed(tmp_path: Path, names: tuple[str, str], seg_prep: SegPrep) -> None:
    root = own_data(own_data(tmp_path / "raw", "x", split=names[0]), "y", split=names[1])
    line = seg_prep.refused("folder", "--root", root, "--out", tmp_path / "out")
    assert f"holds {names[0]}/, {names[1]}/: expected the splits' names train, val, test; rename them" in line


def test_two_labels_of_one_stem_are_not_chosen_among(tmp_path: Path) -> None:
    root, out = fake_kitti(tmp_path / "raw"), tmp_path / "out"
    label = root / "training/semantic/000001_10.png"
    (label.parent / "000001_10.PNG").write_bytes(label.read_bytes())
    run_build("kitti", root, out)
    assert [bad["reason"] for bad in quarantine(out)] == [
        "labels 000001_10.PNG, 000001_10.png have one stem; expected one of them"
    ]
