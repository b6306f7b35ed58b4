"""A union as --classes files: shard sets of different datasets that call a class by one name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from prep.taxonomy import load_classes
from tests.fakes_imagenet import fake_folders
from tests.prep.builds import SegPrep

# COCO-Stuff's names as the release of LarvSeg writes them, by hand: see PAPERS.md, section 3.
KNOWN = {"tv": "television receiver", "wine glass": "glass", "dirt": "dirt track", "window-other": "windowpane"}


def pairs(path: Path) -> dict[str, str]:
    with open(path, encoding="utf-8", newline="") as file:
        return {row["from"]: row["to"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def test_tables_of_one_union_have_common_names(tmp_path: Path, seg_prep: SegPrep) -> None:
    assert seg_prep("union", "cocostuff", "ade20k", "--maps", tmp_path / "maps", "--quiet")[0] == 0
    coco, ade = pairs(tmp_path / "maps" / "cocostuff-171.tsv"), pairs(tmp_path / "maps" / "ade20k-150.tsv")
    assert sorted(coco) == sorted(load_classes("cocostuff-171").names)
    assert sorted(ade) == sorted(load_classes("ade20k-150").names)
    assert (len(set(coco.values())), len(set(ade.values())), len({*coco.values(), *ade.values()})) == (160, 150, 247)
    assert len(set(coco.values()) & set(ade.values())) == 63
    assert sum(name == "wall" for name in coco.values()) == 7
    assert KNOWN.items() <= coco.items()


def folder_dataset(root: Path, names: list[str]) -> None:
    """One photo whose label has each class once, in the layout of `seg-prep folder`."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    label = np.arange(len(names), dtype=np.uint8)[None].repeat(8, 0).repeat(4, 1)
    Image.fromarray(label).save(root / "labels" / "train" / "a.png")
    Image.fromarray(np.stack([label * 20] * 3, 2)).save(root / "images" / "train" / "a.png")


def test_shard_sets_built_with_the_files_share_their_names(tmp_path: Path, seg_prep: SegPrep) -> None:
    """Two tables of a person's own, by first synonyms: "sofa, couch" and "sofa" are one class, by one name."""
    for name, names in (("one", ["sofa", "wall"]), ("two", ["wall", "lamp", "sofa, couch"])):
        folder_dataset(tmp_path / name, names)
        (tmp_path / f"{name}.txt").write_text("\n".join(names) + "\n")
    tables = (tmp_path / "one.txt", tmp_path / "two.txt")
    assert seg_prep("union", *tables, "--way", "first", "--maps", tmp_path / "maps", "--quiet")[0] == 0
    for name in ("one", "two"):
        where = ("--root", tmp_path / name, "--out", tmp_path / "out" / name, "--scales", "1", "--quiet")
        assert seg_prep("folder", *where, "--classes", tmp_path / "maps" / f"{name}.tsv")[0] == 0
    one, two = (shards.open(tmp_path / "out" / name, split="train", scale="1") for name in ("one", "two"))
    assert set(one.classes.names) == {"sofa", "wall"}
    assert set(two.classes.names) == {"sofa", "wall", "lamp"}
    hard = two[0].hard
    assert hard is not None
    assert [two.classes.names[hard[0, x]] for x in (0, 4, 8)] == ["wall", "lamp", "sofa"]


@pytest.mark.parametrize(
    ("maps", "message"),
    [("names.txt", "is a file"), ("there", "would overwrite")],
)
def test_no_file_is_overwritten(tmp_path: Path, seg_prep: SegPrep, maps: str, message: str) -> None:
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.tsv").write_text("name\ndog\n")
    table = tmp_path / "there" / "mine.tsv"
    assert message in seg_prep.refused("union", "cocostuff", table, "--maps", tmp_path / maps)
    assert table.read_text() == "name\ndog\n"


def test_two_tables_of_one_name_are_refused(tmp_path: Path, seg_prep: SegPrep) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "names.txt").write_text("dog\ncat\n")
    tables = (tmp_path / "a" / "names.txt", tmp_path / "b" / "names.txt")
    assert "two tables are called names" in seg_prep.refused("union", *tables, "--maps", tmp_path / "maps")


def test_a_part_of_imagenet_takes_the_file_of_all_its_classes(tmp_path: Path, seg_prep: SegPrep) -> None:
    """By synset: the folder of all dogs is COCO's dog, and is called so; ImageNet's bird keeps apart from the toy."""
    assert seg_prep("union", "cocostuff", "imagenet21k", "--maps", tmp_path / "maps", "--quiet")[0] == 0
    imagenet, coco = (pairs(tmp_path / "maps" / f"{n}.tsv") for n in ("imagenet21k-21841", "cocostuff-171"))
    assert imagenet["dog"] == coco["dog"] == "dog"
    assert imagenet["kite"] != coco["kite"] == "kite"
    fake_folders(tmp_path / "in", {"n02084071": 2, "n02121808": 1})
    maps = ("--classes", tmp_path / "maps" / "imagenet21k-21841.tsv")
    assert seg_prep("imagenet21k", "--root", tmp_path / "in", "--out", tmp_path / "out", *maps, "--quiet")[0] == 0
    opened = shards.open(tmp_path / "out", split="train", scale="1")
    shown = {opened[i].key[:9]: [opened.classes.names[c] for c in opened[i].weak or ()] for i in range(len(opened))}
    assert shown["n02084071"] == ["dog"]
    assert len(opened.classes) == len(set(imagenet.values())) > 21_800


def test_a_mapped_imagenet_knows_the_targets_classes_alone(tmp_path: Path, seg_prep: SegPrep) -> None:
    fake_folders(tmp_path / "in", {"n02084071": 2})
    (tmp_path / "dogs.tsv").write_text("wnid\tclass\nn02084071\tdog\n")
    (tmp_path / "map.tsv").write_text("name\ngoldfish\n")
    given = ("--map-to", tmp_path / "dogs.tsv", "--classes", tmp_path / "map.tsv")
    assert "is no class of" in seg_prep.refused(
        "imagenet21k", "--root", tmp_path / "in", "--out", tmp_path / "out", *given
    )
