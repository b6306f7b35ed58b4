"""The cocolvis reader on fakes of the published files: protocols, labels, meta, audit, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

import shards
from prep.datasets import load_reader
from prep.raw import Reader
from shards import IGNORE
from shards.errors import SettingsError
from tests.fakes import taxonomy_rows
from tests.fakes_cocolvis import SIZE, FakeCoco, box, code, small_coco
from tests.prep.builds import quarantine, run_build, tree
from tests.real import real_data

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pycocotools
COCO2017 = {"protocol": "coco2017"}


def bound(root: Path, **options: str) -> Reader:
    return load_reader("cocolvis").bind(root, options)


def listed(root: Path, split: str, **options: str) -> dict[int, Any]:
    """{image id: sample} of a split."""
    return {sample.facts.image: sample for sample in bound(root, **options).samples(root, split)}


def built(root: Path, out: Path, **options: str) -> dict[str, Any]:
    """{key: sample} over all splits of a build, and nothing quarantined."""
    run_build("cocolvis", root, out, scales="1", given=options)
    assert quarantine(out) == []
    splits = json.loads((out / "manifest.json").read_text())["splits"]
    return {sample.key: sample for split in splits for sample in shards.open(out, split=split, scale="1")}


def test_labels_are_painted_from_both_files(tmp_path: Path) -> None:
    found = built(small_coco().write(tmp_path / "coco"), tmp_path / "out", protocol="coco2017", overlap="first")
    assert sorted(found) == [f"{id:012d}" for id in (9, 25, 30, 31, 42, 43)]
    want = np.full(SIZE, 1203)
    want[:12] = 180
    want[4:14, 6:16] = 4
    want[2:9, 2:10] = 6
    assert np.array_equal(found["000000000009"].hard, want)
    assert np.array_equal(found["000000000043"].hard, np.where(box(0, 0, 5, 5), 1107, IGNORE))
    assert set(np.unique(found["000000000030"].hard)) == {7, 1216}
    assert set(np.unique(found["000000000025"].hard)) == {99, IGNORE}


def test_the_smallest_mask_keeps_its_pixels_by_default(tmp_path: Path) -> None:
    root = small_coco().write(tmp_path / "coco")
    default, first, largest = (
        built(root, tmp_path / name, protocol="coco2017", **options)["000000000009"].hard
        for name, options in (("a", {}), ("b", {"overlap": "first"}), ("c", {"overlap": "largest"}))
    )
    assert default[6, 8] == first[6, 8] == 6
    assert largest[6, 8] == 4
    fake = small_coco()
    fake.lvis(25, 3, code(box(2, 0, 2, 2)))
    root = fake.write(tmp_path / "other")
    for overlap, kept in (("smallest", 2), ("first", 99), ("largest", 99)):
        hard = built(root, tmp_path / f"other-{overlap}", protocol="coco2017", overlap=overlap)["000000000025"].hard
        assert hard[0, 3] == kept
    assert bound(root).protocol["overlap"] == "smallest"


def test_protocol_essnet_is_the_default_and_takes_lvis_splits(tmp_path: Path) -> None:
    fake = small_coco()
    fake.image("train", 429995)
    root = fake.write(tmp_path / "coco")
    assert list(listed(root, "train")) == [9, 25]
    val = listed(root, "val")
    assert list(val) == [30, 42]
    assert [sample.image.relative_to(root).as_posix() for sample in val.values()] == [
        "train2017/000000000030.jpg",
        "val2017/000000000042.jpg",
    ]
    assert [len(sample.label) for sample in val.values()] == [2, 2]
    assert bound(root).protocol["name"] == "essnet"
    assert bound(root).protocol["left_out"] == [429995]


def test_protocol_coco2017_takes_every_image_of_a_folder(tmp_path: Path) -> None:
    fake = small_coco()
    fake.image("train", 429995)
    fake.image("train", 50, stuff=False)
    root = fake.write(tmp_path / "coco")
    assert list(listed(root, "train", **COCO2017)) == [9, 25, 30, 31, 50, 429995]
    assert list(listed(root, "val", **COCO2017)) == [42, 43]
    assert "left_out" not in bound(root, **COCO2017).protocol


def test_meta_says_what_lvis_checked(tmp_path: Path) -> None:
    found = built(small_coco().write(tmp_path / "coco"), tmp_path / "out", **COCO2017)
    meta = found["000000000009"].meta
    assert meta["lvis"] is True
    assert meta["pos_classes"] == [4, 6]
    assert meta["neg_classes"] == [2, 1202]
    assert meta["not_exhaustive_classes"] == [6]
    assert found["000000000030"].meta["neg_classes"] == [10]
    assert found["000000000031"].meta["lvis"] is False
    assert "neg_classes" not in found["000000000031"].meta


def test_the_audit_counts_what_the_merge_did(tmp_path: Path) -> None:
    fake = small_coco()
    fake.image("train", 60)
    fake.lvis(25, 3, code(box(0, 0, 4, 4)), iscrowd=1)
    fake.lvis(25, 3, [[90.0, 90, 99, 90, 99, 99]])
    fake.stuff(25, 183, code(box(0, 0, 32, 24)))
    out = tmp_path / "out"
    built(fake.write(tmp_path / "coco"), out, overlap="first")
    audit = json.loads((out / "merge-audit.json").read_text())
    assert audit["protocol"]["overlap"] == "first"
    train = audit["splits"]["train"]
    assert train["images"] == 3
    assert train["images_without_any_label"] == [60]
    assert train["annotations"] == {"LVIS": 5, "stuff": 3}
    assert train["annotations_skipped"] == {
        "LVIS": {"covers no pixel": 1, "crowd": 1},
        "stuff": {"other or unlabelled": 1},
    }
    twice = train["pixels_claimed_twice"]
    name = {
        row["source_id"]: row["name"] for row in taxonomy_rows("cocolvis-1296_to_1284") if row["source"] == "lvis-v1"
    }
    overlap = box(2, 2, 8, 7) & box(6, 4, 10, 10)
    assert twice["LVIS-LVIS"]["pixels"] == int(overlap.sum())
    assert twice["LVIS-LVIS"]["pairs"] == [{"kept": name["7"], "lost": name["5"], "pixels": int(overlap.sum())}]
    things = box(2, 2, 8, 7) | box(6, 4, 10, 10)
    assert twice["LVIS-stuff"]["pixels"] == int(things.sum())
    assert twice["stuff-stuff"] == {"pixels": 0, "same_class": 0, "pairs": []}
    changed = {entry["name"]: entry for entry in train["ids_changed"]}
    assert set(changed) == {"cabinet", "branch"}
    kept = int((box(0, 0, 32, 12) & ~things).sum())
    assert changed["cabinet"] == {
        "coco_id": 98,
        "name": "cabinet",
        "class": 180,
        "joined_with_lvis": True,
        "annotations": 1,
        "pixels": kept,
        "pixels_published_otherwise": {"window-other": kept},
    }
    assert changed["branch"]["joined_with_lvis"] is False
    assert train["pixels"] == 3 * SIZE[0] * SIZE[1]
    assert audit["splits"]["val"]["pixels_claimed_twice"]["LVIS-LVIS"]["pixels"] == 0


def test_the_audit_lists_the_most_contested_pairs_first(tmp_path: Path) -> None:
    fake = FakeCoco()
    fake.image("train", 9)
    fake.image("val", 42)
    for category, side in ((1, 10), (2, 2), (3, 5)):
        fake.lvis(9, category, code(box(0, 0, side, side)))
    built(fake.write(tmp_path / "coco"), tmp_path / "out", overlap="first")
    audit = json.loads((tmp_path / "out/merge-audit.json").read_text())
    twice = audit["splits"]["train"]["pixels_claimed_twice"]["LVIS-LVIS"]
    assert [pair["pixels"] for pair in twice["pairs"]] == [25, 4]
    assert twice["pixels"] == 29


def test_images_in_one_file_alone_are_counted(tmp_path: Path) -> None:
    fake = small_coco()
    fake.image("train", 50, stuff=False)
    out = tmp_path / "out"
    found = built(fake.write(tmp_path / "coco"), out, **COCO2017)
    train = json.loads((out / "merge-audit.json").read_text())["splits"]["train"]
    assert train["images_without_lvis_record"] == 1
    assert train["images_without_stuff_record"] == 1
    assert (found["000000000050"].hard == IGNORE).all()


def test_published_labels_say_so(tmp_path: Path) -> None:
    root, out = small_coco().write(tmp_path / "coco"), tmp_path / "out"
    found = built(root, out, labels="essnet-published")
    hard = found["000000000009"].hard
    assert hard[0, 0] == 1282  # cabinet is window-other
    assert found["000000000030"].hard[20, 20] == (1217 & 255) - 1  # one stuff annotation: 8 bits
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["protocol"]["labels"] == "essnet-published"
    assert manifest["protocol"]["overlap"] == "first"
    assert "window-other" in manifest["protocol"]["label_errors"]
    assert "for comparison only" in (out / "README.md").read_text()
    assert "for comparison only" not in bound(root).title
    with pytest.raises(SettingsError, match="--overlap smallest found with --labels essnet-published: expected first"):
        bound(root, labels="essnet-published", overlap="smallest")


@pytest.mark.parametrize(("name", "value"), [("overlap", "last"), ("protocol", "lvis"), ("labels", "theirs")])
def test_unknown_values_of_options_are_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"--{name} {value} found: expected one of"):
        bound(tmp_path, **{name: value})


def test_the_bound_reader_is_small_and_crosses_processes(tmp_path: Path) -> None:
    root = small_coco().write(tmp_path / "coco")
    reader = bound(root, **COCO2017)
    list(reader.samples(root, "train"))
    data = pickle.dumps(reader)
    assert len(data) < 1000
    assert pickle.loads(data) == reader  # noqa: S301


def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    root = small_coco().write(tmp_path / "coco")
    for name, workers in (("one", 1), ("two", 2)):
        run_build("cocolvis", root, tmp_path / name, given=COCO2017, workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize(("images", "indent"), [("images", None), ("", 2)])
def test_other_forms_of_the_layout(tmp_path: Path, images: str, indent: int | None) -> None:
    plain = built(small_coco().write(tmp_path / "a"), tmp_path / "a-out")
    other = built(small_coco().write(tmp_path / "b", images, indent), tmp_path / "b-out")
    assert {key: sample.hard.tolist() for key, sample in plain.items()} == {
        key: sample.hard.tolist() for key, sample in other.items()
    }


def test_real_images_and_masks_are_read(tmp_path: Path) -> None:
    """COCO's instances as LVIS annotations of the same synset; crowds are skipped; nothing is quarantined."""
    data = real_data("coco")
    content = json.loads((data / "annotations/instances_val2017.json").read_text())
    synsets = json.loads(real_data("taxonomies/coco-to-synset.json").read_text())
    lvis = {row["synset"]: int(row["id"]) for row in tsv(real_data("taxonomies/lvis-v1-1203.tsv"))}
    ids = {entry["coco_cat_id"]: lvis.get(entry["synset"]) for entry in synsets.values()}
    fake = FakeCoco()
    for image in content["images"]:
        fake.image("val", image["id"], stuff=False)
        fake.lvis_files["val"]["images"][-1] |= {"height": image["height"], "width": image["width"]}
    for raw in content["annotations"]:
        if ids[raw["category_id"]]:
            fake.lvis_files["val"]["annotations"].append({**raw, "category_id": ids[raw["category_id"]]})
    root = fake.write(tmp_path / "coco")
    for image in content["images"]:
        (root / f"val2017/{image['file_name']}").write_bytes(
            (data / "images/val2017" / image["file_name"]).read_bytes()
        )
    for name in ("lvis_v1_train", "stuff_train2017"):
        (root / f"annotations/{name}.json").unlink()
    found = built(root, tmp_path / "out", overlap="first", protocol="coco2017")
    for image in content["images"]:
        want = np.zeros((image["height"], image["width"]), np.int64)
        for raw in fake.lvis_files["val"]["annotations"]:
            if raw["image_id"] == image["id"] and not raw["iscrowd"]:
                mask = decoded(raw["segmentation"], image["height"], image["width"])
                want[(mask > 0) & (want == 0)] = raw["category_id"]
        assert np.array_equal(found[f"{image['id']:012d}"].hard, np.where(want == 0, IGNORE, want - 1))


def decoded(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    code = coco.frPyObjects(segmentation, height, width)
    return coco.decode(coco.merge(code))


def tsv(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
