"""The taxonomies of VOC, ADE20K and COCO: agreement with the published lists, name by name and id by id."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from prep.taxonomy import load_classes, load_remap, rows
from shards import IGNORE
from tests.fakes_voc_ade_coco import COCO_IDS, DROPPED_COCO_IDS, voc_palette
from tests.real import real_data

VOC_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def reference(name: str) -> list[dict[str, str]]:
    """Rows of a published list."""
    path: Path = real_data(f"taxonomies/{name}.tsv")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def pairs(name: str, dataset: str = "x") -> dict[int, int]:
    """{source id: class index or IGNORE} as the lookup table has it."""
    remap = load_remap(name, dataset)
    ids = sorted(int(row["id"]) for row in rows(name))
    return dict(zip(ids, remap.apply(np.array([ids], np.uint16), "x")[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "things"), [("voc-21", 20), ("ade20k-150", None), ("cocostuff-171", 80), ("coco-panoptic-133", 80)]
)
def test_tables_say_what_is_a_thing(name: str, things: int | None) -> None:
    classes = load_classes(name)
    assert all(thing is not None for thing in classes.things)
    assert things is None or sum(map(bool, classes.things)) == things
    assert all(wnid is None or re.fullmatch(r"n\d{8}", wnid) for wnid in classes.wnids)


def test_voc() -> None:
    classes = load_classes("voc-21")
    assert list(classes.names) == VOC_NAMES
    assert classes.things[0] is False
    palette = np.array(voc_palette()).reshape(-1, 3)
    assert np.array_equal(classes.colours, palette[:21])
    assert pairs("voc-22_to_21") == {**{i: i for i in range(21)}, 255: IGNORE}
    colours = {int(row["id"]): row["colour"] for row in rows("voc-22_to_21")}
    assert colours == {i: ",".join(map(str, palette[i])) for i in (*range(21), 255)}


def test_voc_against_the_published_list() -> None:
    lines = real_data("taxonomies/voc-21.txt").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in lines] == list(load_classes("voc-21").names)


def test_ade20k() -> None:
    assert pairs("ade20k-151_to_150") == {0: IGNORE, **{i: i - 1 for i in range(1, 151)}}
    classes, source = load_classes("ade20k-150"), reference("ade20k-150")
    assert list(classes.names) == [row["name"] for row in source]
    assert [",".join(map(str, colour)) for colour in classes.colours] == [row["colour"] for row in source]
    assert [bool(thing) for thing in classes.things] == [row["is_stuff"] == "0" for row in source]
    assert classes.names[0] == "wall"
    assert classes.names[149] == "flag"


def test_ade20k_full() -> None:
    source = reference("ade20k-full-847")
    assert list(load_classes("ade20k-full-847").names) == [row["name"] for row in source]
    want = {int(row["id"]): int(row["trainId"]) for row in source}
    release = pairs("ade20k-full-3689_to_847")
    assert sorted(release) == list(range(3689))
    assert {i: to for i, to in release.items() if to != IGNORE} == want
    assert pairs("ade20k-full-848_to_847") == {**{i: i for i in range(847)}, 65535: IGNORE}


def test_ade20k_full_ids_are_those_of_the_real_release() -> None:
    """name_ndx of the release's own JSON files names the same class as our table does."""
    table = {int(row["release_id"]): row["name"] for row in rows("ade20k-full-847")}
    seen = set()
    for path in real_data("layouts/ade20k-full-3images").rglob("*.json"):
        for thing in json.loads(path.read_bytes().decode("latin-1"))["annotation"]["object"]:
            if thing["parts"]["part_level"] == 0 and thing["name_ndx"] in table:
                assert table[thing["name_ndx"]] == thing["name"]
                seen.add(thing["name_ndx"])
    assert len(seen) >= 20


def test_cocostuff() -> None:
    classes = load_classes("cocostuff-171")
    kept = [row for row in reference("cocostuff-182") if row["train_id_171"]]
    assert [int(row["id"]) for row in kept] == COCO_IDS
    kept.sort(key=lambda row: int(row["train_id_171"]))
    assert list(classes.names) == [row["name"] for row in kept]
    assert [bool(thing) for thing in classes.things] == [row["kind"] == "thing" for row in kept]
    order = {int(row["id"]): int(row["train_id_171"]) for row in kept}
    assert pairs("cocostuff-172_to_171") == {**{i - 1: to for i, to in order.items()}, 255: IGNORE}
    assert pairs("cocostuff10k-172_to_171") == {0: IGNORE, **order}
    assert not DROPPED_COCO_IDS & order.keys()


def test_coco_panoptic() -> None:
    source = json.loads(real_data("taxonomies/coco-panoptic-133.json").read_text())
    classes = load_classes("coco-panoptic-133")
    assert list(classes.names) == [category["name"] for category in source]
    assert [list(colour) for colour in classes.colours] == [category["color"] for category in source]
    assert list(classes.categories) == [category["supercategory"] for category in source]
    assert [int(bool(thing)) for thing in classes.things] == [category["isthing"] for category in source]
    assert pairs("coco-panoptic-133_to_133") == {category["id"]: index for index, category in enumerate(source)}
    annotated = json.loads(real_data("coco/annotations/panoptic_val2017.json").read_text())["categories"]
    assert [category["name"] for category in annotated] == list(classes.names)


@pytest.mark.parametrize("name", ["cocostuff-171", "coco-panoptic-133"])
def test_wordnet_ids_of_coco_things_are_the_published_synsets(name: str) -> None:
    synsets = {row["synset"]: row["wnid"] for row in reference("wordnet30-nouns")}
    published = json.loads(real_data("taxonomies/coco-to-synset.json").read_text()).values()
    want = {entry["coco_cat_id"]: synsets.get(entry["synset"]) for entry in published}
    found = {int(row["coco_id"]): row["wordnet"] or None for row in rows(name) if row["thing"] == "1"}
    assert found == want
    assert [i for i, wnid in found.items() if wnid is None] == [13]  # stop_sign.n.01 is not in WordNet 3.0
    assert not any(row["wordnet"] for row in rows(name) if row["thing"] == "0")
