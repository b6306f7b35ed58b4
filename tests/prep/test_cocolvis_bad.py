"""What the cocolvis reader refuses or quarantines: bad masks, lost images, files of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prep.datasets import load_reader
from prep.raw import Reader
from shards.errors import LayoutError
from tests.fakes_cocolvis import SIZE, box, code, small_coco
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

COCO2017 = {"protocol": "coco2017"}


def bound(root: Path, **options: str) -> Reader:
    return load_reader("cocolvis").bind(root, options)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ([[1.0, 2, 3, 4]], "polygon with 2 points"),
        ([[1.0, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ({"counts": [5], "size": list(SIZE)}, "does not fill"),
        ({"counts": [-5, 5 + SIZE[0] * SIZE[1]], "size": list(SIZE)}, "negative count"),
        ({"counts": [9], "size": [3, 3]}, "of 3x3 pixels; its image has 32x24"),
        ("text", "not a COCO annotation"),
    ],
)
def test_malformed_masks_are_quarantined(tmp_path: Path, mask: Any, why: str) -> None:
    fake = small_coco()
    id = fake.lvis(25, 5, mask)
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",))
    (bad,) = quarantine(tmp_path / "out")
    assert bad["key"] == "000000000025"
    assert why in bad["reason"]
    assert bad["reason"].startswith("annotations/lvis_v1_train.json: ")
    assert mask == "text" or f"LVIS annotation {id}: " in bad["reason"]


def test_unknown_categories_are_quarantined(tmp_path: Path) -> None:
    fake = small_coco()
    fake.stuff(25, 44, code(box(0, 0, 3, 3)))
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",))
    (bad,) = quarantine(tmp_path / "out")
    assert "stuff annotation 5: unknown category id 44; cocolvis defines 92 to 182" in bad["reason"]


@pytest.mark.parametrize(
    ("field", "ids", "found"),
    [
        ("neg_category_ids", [3, 1204], 1204),
        ("not_exhaustive_category_ids", [0], 0),
        ("neg_category_ids", [9999], 9999),
    ],
)
def test_checked_categories_beyond_the_table_are_quarantined(
    tmp_path: Path, field: str, ids: list[int], found: int
) -> None:
    fake = small_coco()
    fake.lvis_files["train"]["images"][1][field] = ids
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",))
    (bad,) = quarantine(tmp_path / "out")
    assert f"image 25: unknown category id {found} in what LVIS checked" in bad["reason"]


@pytest.mark.parametrize("kind", ["LVIS", "stuff"])
def test_an_annotation_that_stands_there_twice_is_quarantined(tmp_path: Path, kind: str) -> None:
    fake = small_coco()
    annotations = (fake.lvis_files if kind == "LVIS" else fake.stuff_files)["train"]["annotations"]
    annotations.append(dict(annotations[0]))
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",))
    (bad,) = quarantine(tmp_path / "out")
    assert f"{kind} annotation {annotations[0]['id']}: stands there 2 times" in bad["reason"]


def test_places_that_disagree_are_quarantined(tmp_path: Path) -> None:
    fake = small_coco()
    records = fake.lvis_files["train"]["images"]
    records[0]["coco_url"], records[1]["coco_url"] = records[1]["coco_url"], records[0]["coco_url"]
    root = fake.write(tmp_path / "coco")
    found = {sample.facts.image: sample.problem for sample in bound(root, **COCO2017).samples(root, "train")}
    assert found[9] == (
        "image 9: its place is train2017/000000000025.jpg in the LVIS file and train2017/000000000009.jpg in the "
        "stuff file"
    )
    assert found[25] is not None
    assert found[30] is None


def test_an_image_that_both_lvis_files_list_is_quarantined(tmp_path: Path) -> None:
    fake = small_coco()
    fake.lvis_files["val"]["images"].append(fake.lvis_files["train"]["images"][1])
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",), given=COCO2017)
    (bad,) = quarantine(tmp_path / "out")
    assert "image 25: listed by lvis_v1_train.json and lvis_v1_val.json and stuff_train2017.json" in bad["reason"]


def test_listed_but_absent_and_unlisted_images_are_quarantined(tmp_path: Path) -> None:
    root = small_coco().write(tmp_path / "coco")
    (root / "train2017/000000000025.jpg").rename(root / "train2017/000000000077.jpg")
    run_build("cocolvis", root, tmp_path / "out", given=COCO2017)
    assert {bad["key"]: bad["reason"] for bad in quarantine(tmp_path / "out")} == {
        "000000000025": "train2017/000000000025.jpg: missing file",
        "000000000077": "train2017/000000000077.jpg: no annotation file lists it",
    }


@pytest.mark.parametrize("url", ["", "http://x/test2017/000000000025.jpg", "http://x/train2017/..", "/../../a.jpg"])
def test_images_without_a_place_are_quarantined(tmp_path: Path, url: str) -> None:
    fake = small_coco()
    fake.lvis_files["train"]["images"][1]["coco_url"] = url
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",))
    (bad,) = quarantine(tmp_path / "out")
    assert "image 25: no place in train2017 or val2017" in bad["reason"]


def test_sizes_that_disagree_are_quarantined(tmp_path: Path) -> None:
    fake = small_coco()
    fake.stuff_files["train"]["images"][1]["height"] = 7
    run_build("cocolvis", fake.write(tmp_path / "coco"), tmp_path / "out", splits=("train",))
    (bad,) = quarantine(tmp_path / "out")
    assert "(24, 32) in the LVIS file and (7, 32) in the stuff file" in bad["reason"]


@pytest.mark.parametrize(
    ("name", "split", "protocol"),
    [
        ("lvis_v1_train", "train", "essnet"),
        ("stuff_train2017", "val", "essnet"),
        ("stuff_val2017", "val", "essnet"),
        ("lvis_v1_val", "train", "coco2017"),
        ("stuff_val2017", "val", "coco2017"),
    ],
)
def test_a_missing_annotation_file_is_named(tmp_path: Path, name: str, split: str, protocol: str) -> None:
    root = small_coco().write(tmp_path / "coco")
    (root / f"annotations/{name}.json").unlink()
    assert bound(root).splits(root) == ("train", "val")
    with pytest.raises(LayoutError, match=rf"annotations/{name}\.json not found under"):
        list(bound(root, protocol=protocol).samples(root, split))


def test_roots_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"neither annotations/lvis_v1_train\.json nor"):
        bound(tmp_path).splits(tmp_path)
    root = small_coco().write(tmp_path / "coco")
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(LayoutError, match="neither val2017/ nor images/val2017/ found"):
        list(bound(root).samples(root, "val"))
    for path in (root / "annotations").glob("*val*"):
        path.unlink()
    assert bound(root).splits(root) == ("train",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"images": [', "truncated"),
        ("<html>", "not a COCO annotation file at byte 0"),
        ('{"images": [], "categories": []}', "no list 'annotations'"),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path: Path, text: str, why: str) -> None:
    root = small_coco().write(tmp_path / "coco")
    (root / "annotations/stuff_train2017.json").write_text(text)
    with pytest.raises(LayoutError, match=why):
        list(bound(root).samples(root, "train"))


def test_lvis_v05_is_refused(tmp_path: Path) -> None:
    root = small_coco().write(tmp_path / "coco")
    path = root / "annotations/lvis_v1_train.json"
    v05 = json.loads(real_data("lvis/annotations/lvis_v0.5_val_9.json").read_text())
    path.write_text(json.dumps(v05))
    with pytest.raises(LayoutError, match=r"lists 1230 categories, .*expected the 1,203 of LVIS v1"):
        list(bound(root).samples(root, "train"))


def test_another_list_of_categories_is_refused(tmp_path: Path) -> None:
    root = small_coco().write(tmp_path / "coco")
    for name, expected in (("lvis_v1_val", "1,203 of LVIS v1"), ("stuff_val2017", "COCO stuff's")):
        path = root / f"annotations/{name}.json"
        good = path.read_text()
        content = json.loads(good)
        content["categories"][4]["name"] = "person"
        path.write_text(json.dumps(content))
        with pytest.raises(LayoutError, match=rf"1 of them unknown, e\.g\. \d+ 'person': expected .*{expected}"):
            list(bound(root).samples(root, "val"))
        path.write_text(good)
    content = json.loads((root / "annotations/lvis_v1_val.json").read_text())
    content["categories"].pop()
    (root / "annotations/lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(LayoutError, match="lists 1202 categories"):
        list(bound(root).samples(root, "val"))
