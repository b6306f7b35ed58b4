"""`merge-audit.json`: what the merge did, summed over a split's usable images, for people to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prep.coco.merge import STUFF, TABLE, lookup
from prep.taxonomy import load_classes, rows
from shards import IGNORE

KINDS = ("LVIS-LVIS", "stuff-stuff", "LVIS-stuff")
NO_LABEL, NO_LVIS, NO_STUFF = "no label", "no LVIS record", "no stuff record"


def describe_merge(tally: Mapping[str, int]) -> dict[str, Any]:
    """One split's sums as JSON values."""
    return {
        "images": tally.get("images", 0),
        "images_without_lvis_record": tally.get(NO_LVIS, 0),
        "images_without_stuff_record": tally.get(NO_STUFF, 0),
        "images_without_any_label": sorted(rest for (rest,) in _under(tally, NO_LABEL, 1)),
        "annotations": {name: tally.get(f"annotations|{name}", 0) for name in ("LVIS", "stuff")},
        "annotations_skipped": _skipped(tally),
        "pixels": tally.get("pixels", 0),
        "pixels_void": tally.get("pixels void", 0),
        "pixels_claimed_twice": {kind: _contested(tally, kind) for kind in KINDS},
        "ids_changed": _changed(tally),
    }


def _under(tally: Mapping[str, int], first: str, parts: int) -> Iterable[list[str]]:
    """The rest of every key `first|...` with that many further parts."""
    for key in tally:
        head, *rest = key.split("|")
        if head == first and len(rest) == parts:
            yield rest


def _skipped(tally: Mapping[str, int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {"LVIS": {}, "stuff": {}}
    for name, why in sorted(_under(tally, "skipped", 2)):
        found[name][why] = tally[f"skipped|{name}|{why}"]
    return found


def _contested(tally: Mapping[str, int], kind: str) -> dict[str, Any]:
    """Pixels claimed by two annotations: the sum, and by pair of who keeps them and who does not."""
    counts = {
        (int(owner), int(later)): tally[f"contested|{kind}|{owner}|{later}"]
        for which, owner, later in _under(tally, "contested", 3)
        if which == kind
    }
    pairs = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = {int(row["id"]): row["name"] for row in rows(TABLE)}
    return {
        "pixels": sum(counts.values()),
        "same_class": sum(n for (a, b), n in counts.items() if lookup("to")[a] == lookup("to")[b]),
        "pairs": [{"kept": names[a], "lost": names[b], "pixels": n} for (a, b), n in pairs],
    }


def _changed(tally: Mapping[str, int]) -> list[dict[str, Any]]:
    """COCO stuff ids that occur, the class that each became, and what the published labels have for its pixels."""
    classes = load_classes("cocolvis-1284").names
    found = []
    for row in rows(TABLE):
        id = row["source_id"]
        annotations = tally.get(f"stuff|{id}|annotations", 0)
        if int(row["id"]) < STUFF or not annotations:
            continue
        found.append(
            {
                "coco_id": int(id),
                "name": row["name"],
                "class": None if row["to"] == "void" else int(row["to"]),
                "joined_with_lvis": row["to"] != "void" and int(row["to"]) < 1203,
                "annotations": annotations,
                "pixels": tally.get(f"stuff|{id}|pixels", 0),
                "pixels_published_otherwise": _published(tally, id, classes),
            }
        )
    return found


def _published(tally: Mapping[str, int], id: str, classes: tuple[str, ...]) -> dict[str, int]:
    """{class name in the published labels: pixels} where it is not ours."""
    counts: Counter[str] = Counter()
    for source, to in _under(tally, "published", 2):
        if source == id:
            counts["void" if int(to) == IGNORE else classes[int(to)]] += tally[f"published|{id}|{to}"]
    return dict(sorted(counts.items()))
