"""The COCO panoptic reader on fakes and on real PNGs and JSON files."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shards
from prep.datasets import load_reader
from shards import IGNORE
from shards.errors import LayoutError, SampleError
from tests.fakes import save
from tests.fakes_voc_ade_coco import fake_panoptic
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER = load_reader("coco-panoptic")
Document = dict[str, Any]


def oracle(root: Path, split: str) -> dict[str, np.ndarray]:
    """{key: class indices} from the JSON and the PNGs, segment by segment."""
    document = json.loads((root / "annotations" / f"panoptic_{split}.json").read_text())
    ids = sorted(category["id"] for category in document["categories"])
    found = {}
    for annotation in document["annotations"]:
        path = root / "annotations" / f"panoptic_{split}" / annotation["file_name"]
        rgb = np.asarray(Image.open(path)).astype(np.int64)
        segments = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        hard = np.full(segments.shape, IGNORE, np.uint16)
        for segment in annotation["segments_info"]:
            hard[segments == segment["id"]] = ids.index(segment["category_id"])
        found[Path(annotation["file_name"]).stem] = hard
    return found


@pytest.mark.parametrize("images", [".", "images"])
def test_segments_become_133_classes(tmp_path: Path, images: str) -> None:
    root = fake_panoptic(tmp_path / "coco", images)
    run_build("coco-panoptic", root, tmp_path / "out", scales="1")
    assert quarantine(tmp_path / "out") == []
    for split, count in (("train", 3), ("val", 2)):
        want = oracle(root, f"{split}2017")
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == count
        assert sorted(found.keys()) == sorted(want)
        for sample in found:
            assert np.array_equal(sample.hard, want[sample.key])
            assert (sample.hard == IGNORE).any()
    assert sum(found.classes.things) == 80


def test_real_samples_are_pixel_equal(tmp_path: Path) -> None:
    root = real_data("coco")
    for split in ("train", "val"):
        want = oracle(root, f"{split}2017")
        samples = list(READER.samples(root, split))
        assert len(samples) == len(want) == 30
        for sample in samples:
            assert sample.problem is None
            assert sample.image.is_file()
            facts = ast.literal_eval(repr(sample.facts))  # they say all of themselves
            hard = READER.decode_label(sample.label.read_bytes(), "x", facts)
            assert np.array_equal(hard, want[sample.key])


def test_an_image_without_segments_is_all_void(tmp_path: Path) -> None:
    root = fake_panoptic(tmp_path / "coco", edit=lambda d: d["annotations"][0].update(segments_info=[]))
    path = root / "annotations/panoptic_train2017/000000000009.png"
    save(np.zeros((20, 28, 3), np.uint8), path)
    first = next(iter(READER.samples(root, "train")))
    assert (READER.decode_label(path.read_bytes(), "x", first.facts) == IGNORE).all()


def test_a_segment_without_pixels_does_no_harm_and_one_without_json_is_named(tmp_path: Path) -> None:
    def edit(document: Document) -> None:
        segments = document["annotations"][0]["segments_info"]
        segments.append({"id": 16_777_215, "category_id": 1, "iscrowd": 0})
        document["annotations"][1]["segments_info"].pop()

    root = fake_panoptic(tmp_path / "coco", edit=edit)
    run_build("coco-panoptic", root, tmp_path / "out", scales="1")
    bad = quarantine(tmp_path / "out")
    assert [line["key"] for line in bad] == ["000000000025", "000000000285"]
    assert "panoptic_train2017/000000000025.png: unknown label id 70026 at row" in bad[0]["reason"]
    assert "the JSON lists 7 segments for this image" in bad[0]["reason"]
    sample = shards.open(tmp_path / "out", split="train", scale="1")["000000000009"]
    assert np.array_equal(sample.hard, oracle(root, "train2017")["000000000009"])


def _category(document: Document) -> None:
    document["annotations"][0]["segments_info"][0]["category_id"] = 12


def _twice(document: Document) -> None:
    segments = document["annotations"][0]["segments_info"]
    segments.append(dict(segments[0], category_id=1))


def _path(document: Document) -> None:
    document["annotations"][0]["file_name"] = "../../secret.png"


def _nul(document: Document) -> None:
    document["images"][0]["file_name"] = "a\0.jpg"


def _zero(document: Document) -> None:
    document["annotations"][0]["segments_info"][0]["id"] = 0


def _huge(document: Document) -> None:
    document["annotations"][0]["segments_info"][0]["id"] = 1 << 70


def _image(document: Document) -> None:
    document["annotations"][0]["image_id"] = 999_999


def _orphan(document: Document) -> None:
    document["annotations"].pop(0)


def _again(document: Document) -> None:
    document["annotations"].insert(1, document["annotations"][0])


@pytest.mark.parametrize(
    ("edit", "reason", "good"),
    [
        (_category, "unknown category 12 of segment", 2),
        (_twice, "two segments of one id", 2),
        (_path, "is a path or no name", 2),
        (_nul, "is a path or no name", 2),
        (_zero, "segment id 0; expected 1 to 16777215", 2),
        (_huge, "segment id 1180591620717411303424; expected", 2),
        (_image, "annotation of image 999999, which is not among the JSON's images", 2),
        (_orphan, "image without an annotation", 2),
        (_again, "duplicate key '000000000009'", 3),
    ],
)
def test_annotations_that_cannot_be_used_are_quarantined(
    tmp_path: Path, edit: Callable[[Document], None], reason: str, good: int
) -> None:
    root = fake_panoptic(tmp_path / "coco", edit=edit)
    run_build("coco-panoptic", root, tmp_path / "out", scales="1", splits=("train",))
    assert any(reason in bad["reason"] for bad in quarantine(tmp_path / "out"))
    assert len(shards.open(tmp_path / "out", split="train", scale="1")) == good


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"images": [], "annotations": [{"image_id": 9,', "truncated"),
        ("", "truncated"),
        ("not JSON", "JSON is malformed"),
        ("[]", "Expected `object`"),
        ('{"images": []}', "missing required field `annotations`"),
        ('{"images": [], "annotations": [{"image_id": "9", "file_name": "a", "segments_info": []}]}', "Expected `int`"),
        ('{"images": {}, "annotations": []}', "Expected `array`"),
        ('{"images": [], "annotations": []}', "holds no annotations"),
        (
            '{"images": [], "annotations": [], "info": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "depth|recursion|holds no",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "calls category 1 'a'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 12, "name": "a"}]}', "expected 'no such id'"),
        ('{"images": [{"id": 9, "file_name": "\udcff"}], "annotations": []}', "truncated"),
    ],
)
def test_json_that_is_no_panoptic_json_is_a_layout_error(tmp_path: Path, text: str, reason: str) -> None:
    root = fake_panoptic(tmp_path / "coco")
    (root / "annotations/panoptic_val2017.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LayoutError, match=rf"panoptic_val2017\.json .*({reason})") as caught:
        list(READER.samples(root, "val"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_changed_json_is_read_again(tmp_path: Path) -> None:
    root = fake_panoptic(tmp_path / "coco")
    assert len(list(READER.samples(root, "train"))) == 3
    path = root / "annotations/panoptic_train2017.json"
    document = json.loads(path.read_text())
    del document["annotations"][1:], document["images"][1:]
    path.write_text(json.dumps(document))
    os.utime(path, ns=(1, 1))
    assert len(list(READER.samples(root, "train"))) == 1


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("train2017", r"train2017/ or images/train2017/ not found .*unpack train2017\.zip"),
        ("annotations/panoptic_train2017.json", r"annotations/panoptic_train2017\.json not found"),
        (
            "annotations/panoptic_train2017",
            r"annotations/panoptic_train2017/ not found .*panoptic_train2017\.zip .inside",
        ),
    ],
)
def test_a_split_of_which_a_part_is_missing_is_refused(tmp_path: Path, remove: str, reason: str) -> None:
    root = fake_panoptic(tmp_path / "coco")
    path = root / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LayoutError, match=reason):
        run_build("coco-panoptic", root, tmp_path / "out")
    run_build("coco-panoptic", root, tmp_path / "out", scales="1", splits=("val",))
    with pytest.raises(LayoutError, match=r"neither train2017/ nor annotations/panoptic_train2017\.json"):
        READER.splits(tmp_path)


def test_another_dataset_s_panoptic_json_is_refused(tmp_path: Path) -> None:
    source = real_data("layouts/datumaro/coco_dataset/coco_panoptic")
    shutil.copytree(source / "images/val", tmp_path / "val2017")
    shutil.copytree(source / "annotations/panoptic_val", tmp_path / "annotations/panoptic_val2017")
    shutil.copy(source / "annotations/panoptic_val.json", tmp_path / "annotations/panoptic_val2017.json")
    with pytest.raises(LayoutError, match="calls category 1 'a': expected 'person'"):
        list(READER.samples(tmp_path, "val"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_pngs_that_are_not_rgb_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(SampleError, match=rf"^x: label is PNG of mode {mode}; expected a PNG of 8-bit RGB"):
        READER.decode_label(path.read_bytes(), "x", ())
