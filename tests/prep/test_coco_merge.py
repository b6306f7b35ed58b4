"""LVIS over stuff: the lookup table, the rules of overlaps, what is skipped, and the published labels' errors."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prep.coco.annotation import Annotation, parse_annotations
from prep.coco.merge import OVERLAPS, TABLE, merge
from prep.raw import DecodedLabel
from prep.taxonomy import load_classes, rows
from shards import IGNORE
from shards.errors import SampleError
from tests.fakes_cocolvis import box, code
from tests.real import real_data

SIZE = (12, 15)
# The merge as PAPERS.md and the release of ESSNet have it: ten stuff ids become LVIS ids, the others follow in order.
JOINED = {92: 50, 93: 110, 98: 181, 108: 346, 109: 350, 137: 713, 141: 804, 153: 904, 165: 1050, 168: 1108}
FOLLOWING = {id: 1204 + n for n, id in enumerate(id for id in range(92, 183) if id not in JOINED)}
REMAP = {**JOINED, **FOLLOWING, 183: 0, 255: 0}


def annotations(*entries: tuple[int, Any], **more: Any) -> list[Annotation]:
    """(category, mask [H, W] or segmentation) -> annotations with ids 1, 2, ..."""
    lines = [
        {"id": n, "category_id": category, "segmentation": code(mask) if isinstance(mask, np.ndarray) else mask} | more
        for n, (category, mask) in enumerate(entries, 1)
    ]
    return parse_annotations("\n".join(map(json.dumps, lines)).encode(), "x")


def merged(lvis: list[Annotation], stuff: list[Annotation], **options: Any) -> DecodedLabel:
    return merge([*lvis, *stuff], len(lvis), SIZE, "cocolvis 9: a.json", **options)


def published(lvis: list[tuple[int, Any]], stuff: list[tuple[int, Any]]) -> NDArray[np.int64]:
    """The release's arithmetic: id maps added where still zero, stuff remapped in place; 0 = unlabelled."""

    def layered(entries: list[tuple[int, Any]]) -> NDArray[Any]:
        total: NDArray[Any] | None = None
        for category, mask in entries:
            layer = mask.astype(np.uint8 if category < 256 else np.uint16) * np.array(category).astype(np.uint16)
            if total is None:
                total = layer.astype(np.uint8 if category < 256 else np.uint16)  # one annotation: NumPy 1 kept 8 bits
            else:
                total = total.astype(np.int64) + (total == 0) * layer.astype(np.int64)
        assert total is not None
        return total

    ground = layered(stuff)
    for source in sorted(REMAP):
        ground[ground == source] = np.array(REMAP[source]).astype(ground.dtype)
    things = layered(lvis).astype(np.int64)
    return things + (things == 0) * ground.astype(np.int64)


def test_the_table_joins_ten_and_appends_eighty_one() -> None:
    table = rows(TABLE)
    assert [int(row["to"]) for row in table[:1203]] == list(range(1203))
    stuff = {int(row["source_id"]): 0 if row["to"] == "void" else int(row["to"]) + 1 for row in table[1203:]}
    assert stuff == REMAP
    assert [int(row["id"]) for row in table] == [*range(1, 1204), *(10_000 + id for id in REMAP_IDS)]


REMAP_IDS = sorted(REMAP)


def test_names_equal_the_published_list() -> None:
    def read(name: str) -> list[dict[str, str]]:
        with open(real_data(f"taxonomies/{name}"), encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    classes = load_classes("cocolvis-1284")
    assert list(classes.names) == [row["name"] for row in read("cocolvis-1284-names.tsv")]
    lvis = read("lvis-v1-1203.tsv")
    ours = rows("lvis-v1-1203")
    assert [(row["lvis_id"], row["name"], row["synset"], row["wordnet"]) for row in ours] == [
        (row["id"], row["name"], row["synset"], row["wnid"]) for row in lvis
    ]
    assert {row["category"][0] + row["lvis_id"] for row in ours} == {row["frequency"] + row["id"] for row in lvis}
    merges = read("cocostuff-to-lvis-merged.tsv")
    assert {int(row["cocostuff_id"]): int(row["lvis_v1_id"]) for row in merges} == JOINED
    names = {int(row["id"]): row["name"] for row in read("cocostuff-182.tsv")}
    for row in rows(TABLE)[1203:-2]:
        assert row["name"] == names[int(row["source_id"])]
    assert classes.names[1282] == "window-other"
    assert classes.names[1216] == "desk-stuff"


def test_lvis_wins_over_stuff_and_stuff_fills_the_rest() -> None:
    label = merged(annotations((3, box(2, 2, 4, 4, SIZE))), annotations((94, box(0, 0, 10, 8, SIZE))))
    want = np.full(SIZE, IGNORE)
    want[:8, :10] = 1203
    want[2:6, 2:6] = 2
    assert np.array_equal(label.hard, want)
    assert label.hard.dtype == np.uint16
    assert label.tally["contested|LVIS-stuff|3|10094"] == 16


@pytest.mark.parametrize(("overlap", "kept"), [("first", 10), ("smallest", 20), ("largest", 30)])
def test_overlaps_among_instances_and_among_stuff(overlap: str, kept: int) -> None:
    shapes = [box(0, 0, 5, 5, SIZE), box(4, 4, 2, 2, SIZE), box(4, 4, 8, 8, SIZE)]
    things = annotations(*((10 * (n + 1), shape) for n, shape in enumerate(shapes)))
    label = merged(things, [], overlap=overlap)
    assert label.hard[4, 4] == kept - 1
    stuff = annotations(*((100 + 10 * (n + 1), shape) for n, shape in enumerate(shapes)))
    label = merged([], stuff, overlap=overlap)
    assert label.hard[4, 4] == REMAP[100 + kept] - 1


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_equal_masks_go_to_the_first(overlap: str) -> None:
    label = merged(annotations((7, box(0, 0, 4, 4, SIZE)), (8, box(0, 0, 4, 4, SIZE))), [], overlap=overlap)
    assert set(np.unique(label.hard)) == {6, IGNORE}
    assert label.tally["contested|LVIS-LVIS|7|8"] == 16


def test_parts_of_one_annotation_do_not_contest_each_other() -> None:
    squares = [[0.0, 0, 6, 0, 6, 6, 0, 6], [3.0, 3, 9, 3, 9, 9, 3, 9], [12.0, 9, 15, 9, 15, 12, 12, 12]]
    label = merged(annotations((7, squares), (8, box(11, 9, 4, 3, SIZE))), [], overlap="first")
    assert int((label.hard == 6).sum()) == 36 + 36 - 9 + 9
    assert {key: n for key, n in label.tally.items() if key.startswith("contested")} == {"contested|LVIS-LVIS|7|8": 9}


def oracle(entries: list[tuple[int, NDArray[np.bool_]]], overlap: str) -> NDArray[np.int64]:
    """Ids by one layer's rule, 0 where nothing is: paint in reverse, so that the first in order ends on top."""
    areas = [int(mask.sum()) for _, mask in entries]
    key = {"first": lambda n: n, "smallest": lambda n: (areas[n], n), "largest": lambda n: (-areas[n], n)}[overlap]
    out = np.zeros(SIZE, np.int64)
    for n in sorted(range(len(entries)), key=key, reverse=True):
        out[entries[n][1]] = entries[n][0]
    return out


BOXES = st.tuples(st.integers(0, 14), st.integers(0, 11), st.integers(1, 9), st.integers(1, 9)).map(
    lambda at: box(*at, SIZE)
)


@settings(max_examples=60, deadline=None)
@given(
    lvis=st.lists(st.tuples(st.integers(1, 1203), BOXES), max_size=6),
    stuff=st.lists(st.tuples(st.sampled_from(range(92, 183)), BOXES), max_size=6),
    overlap=st.sampled_from(OVERLAPS),
)
def test_any_image_equals_layers_painted_one_by_one(lvis: list[Any], stuff: list[Any], overlap: str) -> None:
    label = merged(annotations(*lvis), annotations(*stuff), overlap=overlap)
    things = oracle(lvis, overlap)
    ground = oracle([(REMAP[id], mask) for id, mask in stuff], overlap)
    want = np.where(things > 0, things, ground)
    assert np.array_equal(label.hard, np.where(want == 0, IGNORE, want - 1))
    counted = sum(n for key, n in label.tally.items() if key.startswith("contested"))
    claims = np.sum([mask.astype(int) for _, mask in [*lvis, *stuff]], axis=0) if lvis or stuff else np.zeros(SIZE)
    assert counted == int(np.maximum(claims - 1, 0).sum())


@settings(max_examples=60, deadline=None)
@given(
    lvis=st.lists(st.tuples(st.sampled_from([3, 255, 256, 1203]), BOXES), min_size=1, max_size=4),
    stuff=st.lists(st.tuples(st.sampled_from(range(92, 184)), BOXES), min_size=1, max_size=4),
)
def test_published_labels_equal_the_releases_arithmetic(lvis: list[Any], stuff: list[Any]) -> None:
    label = merged(annotations(*lvis), annotations(*stuff), overlap="first", published=True)
    want = published(lvis, stuff)
    assert np.array_equal(label.hard, np.where(want == 0, IGNORE, want - 1))


@pytest.mark.parametrize("id", range(92, 184))
def test_every_published_id_of_one_and_of_two_annotations(id: int) -> None:
    everywhere, corner = box(0, 0, 15, 12, SIZE), box(0, 0, 1, 1, SIZE)
    for stuff in ([(id, everywhere)], [(id, everywhere), (94, corner)]):
        label = merged([], annotations(*stuff), overlap="first", published=True)
        want = published([(1, np.zeros(SIZE, bool))], stuff)
        assert np.array_equal(label.hard, np.where(want == 0, IGNORE, want - 1))


def test_the_published_chain_and_wrap_are_the_known_ones() -> None:
    names, corner = load_classes("cocolvis-1284").names, (94, box(0, 0, 1, 1, SIZE))
    for id, name in ((98, "window-other"), (93, "desk-stuff")):
        entries = annotations((id, box(5, 5, 3, 3, SIZE)), corner)
        label = merged([], entries, overlap="first", published=True)
        assert names[label.hard[6, 6]] == name
        ours = merged([], entries)
        assert names[ours.hard[6, 6]] == {98: "cabinet", 93: "blanket"}[id]
        assert {key: n for key, n in ours.tally.items() if "published" in key} == {
            f"published|{id}|{label.hard[6, 6]}": 9
        }
    alone = merged([], annotations((110, box(5, 5, 3, 3, SIZE))), overlap="first", published=True)
    assert alone.hard[6, 6] == (1217 & 255) - 1


def test_other_crowds_and_empty_masks_are_skipped_and_counted() -> None:
    outside = [[40.0, 40, 50, 40, 50, 50]]
    lvis = [*annotations((5, box(0, 0, 3, 3, SIZE)), iscrowd=1), *annotations((6, outside))]
    stuff = annotations((183, box(0, 0, 15, 12, SIZE)), (255, box(0, 0, 2, 2, SIZE)), (94, box(6, 6, 2, 2, SIZE)))
    label = merged(lvis, stuff)
    assert set(np.unique(label.hard)) == {1203, IGNORE}
    assert int((label.hard == 1203).sum()) == 4
    assert {key: n for key, n in label.tally.items() if key.startswith("skipped")} == {
        "skipped|LVIS|crowd": 1,
        "skipped|LVIS|covers no pixel": 1,
        "skipped|stuff|other or unlabelled": 2,
    }


@pytest.mark.parametrize(
    ("lvis", "stuff", "why"),
    [
        (1204, None, "LVIS annotation 1: unknown category id 1204; cocolvis defines 1 to 1203"),
        (0, None, "LVIS annotation 1: unknown category id 0"),
        (10_094, None, "LVIS annotation 1: unknown category id 10094"),
        (None, 91, "stuff annotation 1: unknown category id 91; cocolvis defines 92 to 182, 183"),
        (None, 184, "stuff annotation 1: unknown category id 184"),
        (None, -9_995, "stuff annotation 1: unknown category id -9995"),
    ],
)
def test_unknown_ids_are_named(lvis: int | None, stuff: int | None, why: str) -> None:
    whole = box(0, 0, 2, 2, SIZE)
    parts = [[] if id is None else annotations((id, whole)) for id in (lvis, stuff)]
    with pytest.raises(SampleError, match=rf"^cocolvis 9: a\.json: {why}"):
        merged(*parts)


def test_a_bad_mask_names_its_annotation() -> None:
    good, short = box(0, 0, 2, 2, SIZE), [[1.0, 2, 3, 4]]
    with pytest.raises(SampleError, match=r"^cocolvis 9: a\.json: LVIS annotation 2: polygon with 2 points"):
        merged(annotations((1, good), (2, short)), [])
    with pytest.raises(SampleError, match="stuff annotation 1: run-length code of"):
        merged([], annotations((94, {"size": [3, 3], "counts": [9]})))


def test_more_annotations_than_owners_can_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = annotations(*((n + 1, box(n, 0, 1, 1, SIZE)) for n in range(3)))
    monkeypatch.setattr("prep.coco.merge.MOST", 3)
    merged(entries, [])
    with pytest.raises(SampleError, match="4 annotations; expected at most 3"):
        merged(entries, annotations((94, box(0, 0, 1, 1, SIZE))))


def test_an_image_without_annotations_is_void() -> None:
    label = merged([], [])
    assert np.array_equal(label.hard, np.full(SIZE, IGNORE))
    assert label.tally["pixels void"] == 180


def test_many_annotations_contest_each_other() -> None:
    shape = box(3, 3, 5, 5, SIZE)
    label = merged(annotations(*((n + 1, shape) for n in range(200))), [], overlap="first")
    assert int((label.hard == 0).sum()) == 25
    found = {key: n for key, n in label.tally.items() if key.startswith("contested")}
    assert found == {f"contested|LVIS-LVIS|1|{n + 1}": 25 for n in range(1, 200)}
