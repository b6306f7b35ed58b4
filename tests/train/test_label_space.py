"""The union of class tables by name, base before novel, and what is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from prep.taxonomy import load_classes
from shards.classes import ClassTable, spread_colour
from shards.errors import UserError
from train.label_space import Given, LabelSpace, unite

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def given(table: ClassTable, pixels: bool = True, known: Any = "own", where: str = "x") -> Given:
    return Given(where, table, pixels, known)


def test_base_classes_come_first_whatever_the_order_of_sources() -> None:
    tags = ClassTable.make(["cat", "sky", "lamp"])
    one, two = ClassTable.make(["sky", "road"]), ClassTable.make(["tree", "road"])
    space = unite([given(tags, pixels=False), given(one), given(two)])
    assert space.classes.names == ("sky", "road", "tree", "cat", "lamp")
    assert space.base.tolist() == [True, True, True, False, False]
    assert [np.flatnonzero(mask).tolist() for mask in space.known] == [[0, 3, 4], [0, 1], [1, 2]]
    assert space.lookup(tags).tolist() == [3, 0, 4]
    assert space.lookup(two).tolist() == [2, 1]
    assert space.lookup(two).dtype == np.uint16


def test_all_is_all() -> None:
    space = unite([given(ClassTable.make(["a"]), known="all"), given(ClassTable.make(["b"]), False)])
    assert [mask.tolist() for mask in space.known] == [[True, True], [False, True]]


def test_one_source_keeps_its_table_to_the_last_bit() -> None:
    table = ClassTable.make(["a", "b", "c"], colours=[RED, RED, BLUE], wnids=["n00000001", None, None])
    space = unite([given(table), given(table, pixels=False)])
    assert space.classes == table
    assert space.classes.digest == table.digest


def test_what_one_table_lacks_the_other_adds() -> None:
    one = ClassTable.make(["a", "b"], wnids=[None, "n00000002"], things=[True, None])
    two = ClassTable.make(["b", "a"], wnids=[None, "n00000001"], categories=["g", "h"], things=[False, False])
    union = unite([given(one), given(two)]).classes
    assert union.wnids == ("n00000001", "n00000002")
    assert union.categories == ("h", "g")
    assert union.things == (True, False)


def test_a_colour_is_replaced_only_where_another_table_has_taken_it() -> None:
    one = ClassTable.make(["a", "b"], colours=[RED, RED])
    two = ClassTable.make(["c", "d", "e", "a"], colours=[RED, GREEN, GREEN, BLUE])
    union = unite([given(one), given(two)]).classes
    assert union.colours == (RED, RED, spread_colour(2), GREEN, GREEN)


def test_one_name_for_two_synsets_is_refused() -> None:
    """The message shows both synsets and both folders, also where the first one came from a later table."""
    kite = ClassTable.make(["kite"], wnids=["n03621473"])
    bird = ClassTable.make(["hen", "kite"], wnids=["n01514859", "n01608432"])
    unsaid = ClassTable.make(["kite"])
    for sources in (
        [given(kite, where="data/coco"), given(bird, False, where="data/i21k")],
        [given(unsaid, where="z"), given(kite, where="data/coco"), given(bird, False, where="data/i21k")],
    ):
        with pytest.raises(UserError) as caught:
            unite(sources)
        told = str(caught.value)
        assert told.startswith("class 'kite' is n03621473 in data/coco and n01608432 in data/i21k: expected one synset")
        assert "\n" not in told


def test_too_many_classes_are_refused() -> None:
    halves = [ClassTable.make([f"{side}{n}" for n in range(40_000)], colours=[RED] * 40_000) for side in "ab"]
    with pytest.raises(UserError, match="80,000 classes together; expected at most 65,534"):
        unite([given(table) for table in halves])


def test_coco_stuff_and_imagenet_21k_are_united_quickly() -> None:
    """Five names of the two stand for different synsets; renamed, the union is made in well under a second."""
    coco, net = load_classes("cocostuff-171"), load_classes("imagenet21k-21841")
    with pytest.raises(UserError, match=r"class '(kite|carrot|toilet|keyboard|mouse)' is n"):
        unite([given(coco), given(net, False)])
    theirs = dict(zip(net.names, net.wnids, strict=True))
    pairs = zip(coco.names, coco.wnids, strict=True)
    names = [f"{name} (coco)" if wnid and theirs.get(name, wnid) != wnid else name for name, wnid in pairs]
    renamed = ClassTable(tuple(names), coco.colours, coco.wnids, coco.categories, coco.things)
    began = time.process_time()
    space = unite([given(renamed), given(net, False)])
    lookup = space.lookup(net)
    assert time.process_time() - began < 2
    assert len(space.classes) == len(set(names) | set(net.names)) == 21_953
    assert space.base.sum() == 171
    assert all(space.classes.names[place] == name for name, place in zip(net.names, lookup.tolist(), strict=True))


# --- run.json ----------------------------------------------------------------------------------------------------


def test_a_space_survives_json() -> None:
    space = unite([given(ClassTable.make(["a", "b"])), given(ClassTable.make(["b", "c"]), False, "all")])
    again = LabelSpace.from_dict(json.loads(json.dumps(space.to_dict())), space.classes)
    assert again.base.tolist() == space.base.tolist()
    assert [mask.tolist() for mask in again.known] == [mask.tolist() for mask in space.known]
    assert again.to_dict() == space.to_dict()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"base": 3, "known": []},
        {"base": 0, "known": []},
        {"base": True, "known": []},
        {"base": 1, "known": "all"},
        {"base": 1, "known": [[2]]},
        {"base": 1, "known": [[-1]]},
        {"base": 1, "known": [["a"]]},
        {"base": 1, "known": [5]},
    ],
)
def test_a_broken_space_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="label space"):
        LabelSpace.from_dict(values, ClassTable.make(["a", "b"]))
