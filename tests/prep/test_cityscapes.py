"""The Cityscapes reader on a fake in the official layout, and on the public fixtures."""

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
from tests.fakes import fake_cityscapes, save
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

READER = load_reader("cityscapes")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fake_cityscapes(tmp_path / "cs")


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_lists_splits_and_samples_in_order(root: Path) -> None:
    assert READER.splits(root) == ("train", "val", "test")
    keys = [sample.key for sample in READER.samples(root, "train")]
    assert keys == sorted(keys)
    assert keys[0] == "aachen/aachen_000000_000019"
    assert len(keys) == 4
    assert all(sample.label is None and sample.instances is None for sample in READER.samples(root, "test"))


def test_labels_become_train_ids(root: Path) -> None:
    sample = next(READER.samples(root, "val"))
    ids = np.asarray(Image.open(sample.label))
    hard = READER.decode_label(sample.label.read_bytes(), "x")
    from cityscapesscripts.helpers.labels import id2label

    want = np.vectorize(lambda i: IGNORE if id2label[i].trainId == 255 else id2label[i].trainId)(ids)
    assert hard.dtype == np.uint16
    assert np.array_equal(hard, want)


def test_instances_are_consecutive_in_the_order_of_their_ids() -> None:
    ids = np.array([[7, 26001, 26000, 24003], [29000, 29001, 33000, 11]], np.uint16)
    hard = READER.decode_label(png(np.array([[7, 26, 26, 24], [29, 29, 33, 11]], np.uint8)), "x")
    found = READER.decode_instances(png(ids), hard, "x")
    assert found.tolist() == [[0, 3, 2, 1], [0, 0, 4, 0]]  # caravans are void, so they are no instances


def test_an_instance_map_of_another_size_is_refused() -> None:
    hard = np.zeros((2, 3), np.uint16)
    with pytest.raises(SampleError, match=r"instance map is 4x2 pixels, its label is 3x2"):
        READER.decode_instances(png(np.zeros((2, 4), np.uint16)), hard, "x")


def test_missing_twins_are_quarantined(root: Path, tmp_path: Path) -> None:
    images = sorted((root / "leftImg8bit/train/aachen").iterdir())
    labels = sorted((root / "gtFine/train/aachen").glob("*labelIds.png"))
    images[0].unlink()
    labels[1].unlink()
    run_build("cityscapes", root, tmp_path / "out")
    found = quarantine(tmp_path / "out")
    assert [(bad["key"][-6:], bad["split"]) for bad in found] == [("000019", "train"), ("000038", "train")]
    assert "leftImg8bit.png: missing file" in found[0]["reason"]
    assert "labelIds.png: missing file" in found[1]["reason"]


def test_whole_flow_keeps_labels_instances_and_protocol(root: Path, tmp_path: Path) -> None:
    run_build("cityscapes", root, tmp_path / "out", scales="1,1/2")
    full = shards.open(tmp_path / "out", split="val", scale="1")
    assert full.manifest.protocol["instance_sizes"]["car"] == pytest.approx(12794.02, abs=0.01)
    assert full.classes.categories[0] == "flat"
    assert full.classes.things[11] is True
    raw = {sample.key: sample for sample in READER.samples(root, "val")}
    for sample in full:
        source = raw[sample.key]
        assert np.array_equal(sample.hard, READER.decode_label(source.label.read_bytes(), "x"))
        ids = np.asarray(Image.open(source.instances))
        kept = (ids >= 1000) & (sample.hard != IGNORE)
        assert np.array_equal(sample.instances > 0, kept)
        assert sample.instances.max() == len(np.unique(ids[kept]))
    test = shards.open(tmp_path / "out", split="test", scale="1/2")
    assert not test.manifest.splits["test"].labelled
    assert set(test.members(0)) == {"png", "json"}


def test_averages_equal_cityscapesscripts() -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling

    sizes = READER.protocol["instance_sizes"]
    assert sizes == {name: evalPixelLevelSemanticLabeling.args.avgClassSize[name] for name in sizes}
    table = READER.classes
    assert set(sizes) == {name for name, thing in zip(table.names, table.things, strict=True) if thing}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: shutil.rmtree(root / "leftImg8bit"),
            "leftImg8bit/ not found under .*expected the Cityscapes layout",
        ),
        (
            lambda root: shutil.rmtree(root / "gtFine"),
            r"no \*_gtFine_labelIds.png under .*unpack gtFine_trainvaltest.zip",
        ),
        (lambda root: shutil.rmtree(root / "leftImg8bit/train/aachen"), r"no \*_leftImg8bit.png under"),
    ],
)
def test_a_wrong_layout_is_named(root: Path, damage: object, message: str) -> None:
    damage(root)
    with pytest.raises(LayoutError, match=message):
        list(READER.samples(root, READER.splits(root)[0]))


def test_no_splits_are_named(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(LayoutError, match="none of the splits train, val, test"):
        READER.splits(tmp_path)


def test_an_unknown_id_names_dataset_key_and_id(root: Path, tmp_path: Path) -> None:
    label = min((root / "gtFine/val/frankfurt").glob("*labelIds.png"))
    save(np.full((64, 128), 200, np.uint8), label)
    run_build("cityscapes", root, tmp_path / "out", splits=("val",))
    (bad,) = quarantine(tmp_path / "out")
    assert bad["key"].startswith("frankfurt/frankfurt_000000")
    assert "unknown label id 200" in bad["reason"]
    assert "cityscapes" in bad["reason"]


def test_a_real_frame(tmp_path: Path) -> None:
    source = real_data("layouts/mmseg-cityscapes-1frame")
    stem = "frankfurt_000000_000294"
    for kind, suffix in (("leftImg8bit", ("leftImg8bit",)), ("gtFine", ("gtFine_labelIds", "gtFine_instanceIds"))):
        place = tmp_path / "cs" / kind / "val" / "frankfurt"
        place.mkdir(parents=True)
        for name in suffix:
            shutil.copy(source / kind / f"{stem}_{name}.png", place)
    run_build("cityscapes", tmp_path / "cs", tmp_path / "out")
    sample = shards.open(tmp_path / "out", split="val", scale="1")[f"frankfurt/{stem}"]
    official = np.asarray(Image.open(source / "gtFine" / f"{stem}_gtFine_labelTrainIds.png")).astype(np.uint16)
    official[official == 255] = IGNORE
    # The fixture's two label files were shrunk apart from each other: 77 of 32,768 pixels at borders differ.
    assert np.count_nonzero(sample.hard != official) == 77
    ids = np.asarray(Image.open(source / "gtFine" / f"{stem}_gtFine_instanceIds.png"))
    assert np.array_equal(sample.instances > 0, (ids >= 1000) & (sample.hard != IGNORE))


def test_the_flat_one_frame_sample_is_refused_with_a_reason() -> None:
    with pytest.raises(LayoutError, match="none of the splits"):
        READER.splits(real_data("layouts/mmseg-cityscapes-1frame"))


def test_a_release_without_label_ids_is_refused_with_a_reason() -> None:
    root = real_data("layouts/datumaro/cityscapes_dataset/dataset")
    assert [sample.key for sample in READER.samples(root, "test")] == [
        "defaultcity/defaultcity_000001_000031",
        "defaultcity/defaultcity_000001_000032",
    ]
    with pytest.raises(LayoutError, match="labelIds"):
        list(READER.samples(root, "train"))


def test_without_scale_1_instance_maps_are_not_read(tmp_path: Path) -> None:
    root = fake_cityscapes(tmp_path / "cs", {"val": 2})
    for path in (root / "gtFine").rglob("*_gtFine_instanceIds.png"):
        path.write_bytes(b"damaged")
    assert run_build("cityscapes", root, tmp_path / "half", scales="1/2").bad == []
