"""The CamVid reader on fakes of both releases, and on the real SegNet release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError
from tests.fakes import fake_camvid, fake_camvid_original, save, taxonomy_rows
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER = load_reader("camvid")


def test_segnet_lists_are_resolved_under_the_root(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv")
    assert READER.splits(root) == ("train", "val", "test")
    samples = list(READER.samples(root, "val"))
    lines = (root / "val.txt").read_text().splitlines()
    assert [sample.key for sample in samples] == [line.split("/")[4].split(".")[0] for line in lines]
    assert all(sample.image.is_file() and sample.label.is_file() for sample in samples)
    assert all(sample.image.is_relative_to(root) for sample in samples)


def test_segnet_labels_become_eleven_classes_and_void(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    run_build("camvid", root, tmp_path / "out")
    for sample in shards.open(tmp_path / "out", split="val", scale="1"):
        ids = np.asarray(Image.open(root / "valannot" / f"{sample.key}.png")).astype(np.uint16)
        ids[ids == 11] = IGNORE
        assert np.array_equal(sample.hard, ids)


def test_the_original_release_is_recognised_and_grouped(tmp_path: Path) -> None:
    root = fake_camvid_original(tmp_path / "co", count=3)
    assert READER.splits(root) == ("all",)
    run_build("camvid", root, tmp_path / "out")
    group = {
        row["colour"]: IGNORE if row["to"] == "void" else int(row["to"]) for row in taxonomy_rows("camvid-32_to_11")
    }
    found = shards.open(tmp_path / "out", split="all", scale="1")
    assert len(found) == 3
    for sample in found:
        rgb = np.asarray(Image.open(root / "LabeledApproved_full" / f"{sample.key}_L.png"))
        want = [[group[",".join(map(str, pixel))] for pixel in row] for row in rgb.tolist()]
        assert sample.hard.tolist() == want


def test_the_original_release_takes_the_segnet_splits_where_their_lists_are(tmp_path: Path) -> None:
    root = fake_camvid_original(tmp_path / "co", count=5, lists={"train": 3, "val": 2})
    assert READER.splits(root) == ("train", "val")
    assert [sample.key for sample in READER.samples(root, "val")] == ["0001TP_006780", "0001TP_006810"]
    run_build("camvid", root, tmp_path / "out")
    assert len(shards.open(tmp_path / "out", split="train", scale="1/2")) == 3


def test_missing_twins_of_the_original_release_are_quarantined(tmp_path: Path) -> None:
    root = fake_camvid_original(tmp_path / "co", count=4)
    (root / "701_StillsRaw_full/0001TP_006690.png").unlink()
    (root / "LabeledApproved_full/0001TP_006720_L.png").unlink()
    run_build("camvid", root, tmp_path / "out")
    assert [bad["reason"] for bad in quarantine(tmp_path / "out")] == [
        "701_StillsRaw_full/0001TP_006690.png: missing file",
        "LabeledApproved_full/0001TP_006720_L.png: missing file",
    ]


def test_list_lines_that_lead_nowhere_are_quarantined(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    lines = (root / "val.txt").read_text().splitlines()
    lines[1] = "/SegNet/CamVid/val/nowhere.png /SegNet/CamVid/valannot/nowhere.png"
    lines += ["only-one-column.png", "/x/../../etc/passwd /x/../../etc/passwd", "a/.. b/..", lines[0], "\ufeff"]
    (root / "val.txt").write_text("\n".join(lines))
    run_build("camvid", root, tmp_path / "out")
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert len(reasons) == 6
    for reason, part in zip(
        reasons,
        (
            "val/nowhere.png: missing",
            "1 columns",
            "etc/passwd: missing file",
            "leaves the root",
            "duplicate key",
            "1 columns",
        ),
        strict=True,
    ):
        assert part in reason
    assert len(shards.open(tmp_path / "out", split="val", scale="1")) == 2


def test_a_list_of_which_no_line_resolves_is_a_layout_error(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    (root / "val.txt").write_text("/elsewhere/a.png /elsewhere/b.png\n")
    with pytest.raises(LayoutError, match=r"none of the 1 lines of .*val\.txt leads to an image.*elsewhere/a.png"):
        list(READER.samples(root, "val"))
    (root / "val.txt").write_text("")
    with pytest.raises(LayoutError, match="none of the 0 lines"):
        list(READER.samples(root, "val"))


def test_an_absolute_path_of_a_list_is_never_opened(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2}, prefix=str(tmp_path / "elsewhere"))
    outside = save(np.zeros((8, 8, 3), np.uint8), tmp_path / "elsewhere" / "val" / "secret.png")
    with open(root / "val.txt", "a") as file:
        file.write(f"{outside} {outside}\n")
    run_build("camvid", root, tmp_path / "out")
    assert [bad["reason"] for bad in quarantine(tmp_path / "out")] == ["val/secret.png: missing file"]


def test_dots_in_stems_become_underscores(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 1})
    image = next((root / "val").iterdir())
    image.rename(image.with_name("a.b.c.png"))
    label = next((root / "valannot").iterdir())
    label.rename(label.with_name("a.b.c.png"))
    (root / "val.txt").write_text("/z/val/a.b.c.png /z/valannot/a.b.c.png\n")
    assert [sample.key for sample in READER.samples(root, "val")] == ["a_b_c"]


def test_colour_labels_in_the_segnet_release_are_refused(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    label = min((root / "valannot").iterdir())
    save(np.zeros((48, 64, 3), np.uint8), label)
    run_build("camvid", root, tmp_path / "out")
    (bad,) = quarantine(tmp_path / "out")
    assert "colour image" in bad["reason"]


def test_a_folder_without_either_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"neither train.txt, val.txt or test.txt nor 701_StillsRaw_full/"):
        READER.splits(tmp_path)


def test_real_camvid(tmp_path: Path) -> None:
    root = real_data("camvid")
    assert len(list(READER.samples(root, "train"))) == 367
    assert len(list(READER.samples(root, "val"))) == 101
    run_build("camvid", root, tmp_path / "out", splits=("val",), limit=6)
    for sample in shards.open(tmp_path / "out", split="val", scale="1"):
        ids = np.asarray(Image.open(root / "valannot" / f"{sample.key}.png")).astype(np.uint16)
        ids[ids == 11] = IGNORE
        assert np.array_equal(sample.hard, ids)
    assert quarantine(tmp_path / "out") == []


@pytest.mark.parametrize("prefix", ["/data/my name/Cam Vid", "relative", ".", "C:\\Data Sets\\CamVid"])
def test_lists_may_hold_paths_with_spaces(tmp_path: Path, prefix: str) -> None:
    root = fake_camvid(tmp_path / "cam vid", {"val": 3}, prefix=prefix)
    samples = list(READER.samples(root, "val"))
    assert [sample.problem for sample in samples] == [None] * 3
    assert all(sample.image.is_file() and sample.label is not None and sample.label.is_file() for sample in samples)


def test_three_paths_in_a_line_are_a_problem(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    with open(root / "val.txt", "a") as file:
        file.write("val/x.jpeg valannot/x.png\n/a b/val/x.png /a b/valannot/x.png /a b/other/x.png\n")
    *good, bad = READER.samples(root, "val")
    assert [sample.problem for sample in good] == [None] * 3
    assert bad.problem is not None
    assert "3 columns" in bad.problem
