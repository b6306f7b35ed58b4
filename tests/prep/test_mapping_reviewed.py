"""Reviewed meanings of COCO's and LVIS's classes: what a person chose, and what is no picture of its class."""

from __future__ import annotations

from functools import cache

import pytest

from prep.mapping import map_classes


@cache
def wnids_of(target: str) -> dict[str, set[str]]:
    """Class name -> its wnids."""
    found: dict[str, set[str]] = {}
    for pair in map_classes("imagenet21k", target).pairs:
        found.setdefault(pair.class_, set()).add(pair.wnid)
    return found


@pytest.mark.parametrize(
    ("target", "name", "wnid"),
    [
        ("cocostuff", "carrot", "n07730207"),  # the root that is eaten
        ("cocostuff", "hot dog", "n07697537"),  # in its bun
        ("cocostuff", "fruit", "n07705931"),  # edible fruit
        ("cocolvis", "carrot", "n07730207"),
        ("cocolvis", "celery", "n07730406"),
        ("cocolvis", "green_bean", "n07727868"),
        ("cocolvis", "lettuce", "n07723559"),
        ("cocolvis", "radish", "n07735687"),
        ("cocolvis", "slide", "n04238128"),  # of a playground
        ("cocolvis", "igniter", "n03666591"),  # lighter
    ],
)
def test_classes_lead_to_what_they_show(target: str, name: str, wnid: str) -> None:
    assert wnid in wnids_of(target)[name]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bush", "n12246232"),  # blueberry
        ("cone", "n00021939"),  # artifact
        ("pipe_bowl", "n03094503"),  # container
        ("mattress", "n03668803"),  # an inflatable float
        ("pad", "n03040229"),  # for cleaning
        ("slide", "n03056215"),  # for coal
        ("tape_(sticky_cloth_or_paper)", "n03572107"),  # a linen trimming
    ],
)
def test_what_merely_lies_near_is_no_picture_of_a_class(name: str, wrong: str) -> None:
    assert wrong not in wnids_of("cocolvis").get(name, set())
