"""The taxonomy files hold what their names say, and mappings are one lookup."""

from __future__ import annotations

import re
from importlib import resources

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, labels, trainId2label

from prep.taxonomy import ColourRemap, Remap, load_classes, load_colour_remap, load_remap, rows
from shards import IGNORE
from shards.errors import SampleError
from tests.real import real_data

NAMES = sorted(
    path.name.removesuffix(".tsv") for path in (resources.files("prep") / "taxonomies").iterdir() if ".tsv" in path.name
)


@pytest.mark.parametrize("name", NAMES)
def test_counts_in_names_hold(name: str) -> None:
    match = re.search(r"-(\d+)(?:_to_(.*-)?(\d+))?$", name)
    assert match, f"{name} carries no count"
    table = rows(name)
    assert len(table) == int(match[1])
    if not match[3]:
        assert len(load_classes(name)) == int(match[1])
        return
    reached = {int(row["to"]) for row in table if row["to"] != "void"}
    if match[2]:  # into the table of another dataset, which may show more
        assert reached <= set(range(len(load_classes(f"{match[2]}{match[3]}"))))
    else:
        assert reached == set(range(int(match[3])))


def test_the_union_of_the_robust_vision_challenge_is_reached_whole() -> None:
    reached = [int(row["to"]) for name in ("cityscapes-19_to_rob-39", "scannet-20_to_rob-39") for row in rows(name)]
    assert sorted(reached) == list(range(39))


def test_cityscapes_equals_cityscapesscripts() -> None:
    classes = load_classes("cityscapes-19")
    for index in range(19):
        label = trainId2label[index]
        assert classes.names[index] == label.name
        assert classes.colours[index] == label.color
        assert classes.categories[index] == label.category
        assert classes.things[index] == label.hasInstances
    remap = load_remap("cityscapes-34_to_19", "cityscapes")
    ids = np.array([[label.id for label in labels if label.id >= 0]], np.uint8)
    want = [[id2label[int(i)].trainId if id2label[int(i)].trainId != 255 else IGNORE for i in ids[0]]]
    assert remap.apply(ids, "x").tolist() == want


def test_camvid_grouping_equals_the_shared_table() -> None:
    source = real_data("taxonomies/camvid-32-to-11.tsv").read_text().splitlines()[1:]
    want = {}
    for line in source:
        _, name, colour, _, group, _ = line.split("\t")
        want[name] = (colour, "void" if group == "11" else group)
    assert {row["name"]: (row["colour"], row["to"]) for row in rows("camvid-32_to_11")} == want
    # the groups that MSeg's column would lose
    assert want["Truck_Bus"][1] == "8"
    assert want["LaneMkgsDriv"][1] == "3"


def test_a_mapping_does_not_chain() -> None:
    remap = Remap.from_pairs("toy", {0: 1, 1: 2, 2: 0, 3: IGNORE})
    assert remap.apply(np.array([[0, 1, 2, 3]], np.uint8), "x").tolist() == [[1, 2, 0, IGNORE]]


@pytest.mark.parametrize(("pairs", "bad"), [({0: 0, 1: 1}, 77), ({0: 0, 1: 1}, 2), ({0: 0, 2: 1}, 1)])
def test_an_unknown_id_is_named(pairs: dict[int, int], bad: int) -> None:
    ids = np.zeros((4, 5), np.uint8)
    ids[2, 3] = bad
    with pytest.raises(SampleError, match=rf"toy key: a\.png: unknown label id {bad} at row 2, column 3 \(1 such.*toy"):
        Remap.from_pairs("toy", pairs).apply(ids, "toy key: a.png")


def test_colours_map_to_indices_and_unknown_ones_are_named() -> None:
    remap = ColourRemap.from_pairs("toy", {(0, 0, 0): IGNORE, (255, 254, 253): 0, (1, 0, 0): 3})
    rgb = np.array([[[0, 0, 0], [255, 254, 253], [1, 0, 0]]], np.uint8)
    assert remap.apply(rgb, "x").tolist() == [[IGNORE, 0, 3]]
    rgb[0, 1] = (0, 0, 1)
    with pytest.raises(SampleError, match=r"unknown label colour 0,0,1 at row 0, column 1"):
        remap.apply(rgb, "x")


def test_every_camvid_colour_is_known() -> None:
    remap = load_colour_remap("camvid-32_to_11", "camvid")
    table = rows("camvid-32_to_11")
    rgb = np.array([[[int(v) for v in row["colour"].split(",")] for row in table]], np.uint8)
    want = [IGNORE if row["to"] == "void" else int(row["to"]) for row in table]
    assert remap.apply(rgb, "x")[0].tolist() == want
