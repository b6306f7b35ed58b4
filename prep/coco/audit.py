"""`merge-audit.json`: what the merge did, summed over a split's usable images, for people to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from prep.coco.merge import TABLE, lookup
from prep.taxonomy import load_classes, rows
from shards import IGNORE

KINDS = ("LVIS-LVIS", "stuff-stuff", "LVIS-stuff")
FIRST_STUFF_CLASS = 1203
NO_LABEL, NO_LVIS, NO_STUFF = "no label", "no LVIS record", "no stuff record"


Groups = dict[str, list[tuple[list[str], int]]]


def describe_merge(tally: Mapping[str, int]) -> dict[str, Any]:
    """One split's sums as JSON values."""
    groups: Groups = defaultdict(list)
    for key, count in sorted(tally.items()):
        head, *rest = key.split("|")
        groups[head].append((rest, count))
    return {
        "images": tally.get("images", 0),
        "images_without_lvis_record": tally.get(NO_LVIS, 0),
        "images_without_stuff_record": tally.get(NO_STUFF, 0),
        "images_without_any_label": sorted(int(image) for (image,), _ in groups[NO_LABEL]),
        "annotations": {name: tally.get(f"annotations|{name}", 0) for name in ("LVIS", "stuff")},
        "annotations_skipped": _skipped(groups),
        "pixels": tally.get("pixels", 0),
        "pixels_void": tally.get("pixels void", 0),
        "pixels_claimed_twice": {kind: _contested(groups, kind) for kind in KINDS},
        "ids_changed": _changed(groups),
    }


def _skipped(groups: Groups) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {"LVIS": {}, "stuff": {}}
    for (name, why), count in groups["skipped"]:
        found[name][why] = count
    return found


def _contested(groups: Groups, kind: str) -> dict[str, Any]:
    """Pixels claimed by two annotations: the sum, and by pair of who keeps them and who does not."""
    counts = {(int(kept), int(lost)): n for (which, kept, lost), n in groups["contested"] if which == kind}
    pairs = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = {int(row["id"]): row["name"] for row in rows(TABLE)}
    return {
        "pixels": sum(counts.values()),
        "same_class": sum(n for (kept, lost), n in counts.items() if lookup("to")[kept] == lookup("to")[lost]),
        "pairs": [{"kept": names[kept], "lost": names[lost], "pixels": n} for (kept, lost), n in pairs],
    }


def _changed(groups: Groups) -> list[dict[str, Any]]:
    """COCO stuff ids that occur, the class that each became, and what the published labels have for its pixels."""
    counts = {(int(id), what): count for (id, what), count in groups["stuff"]}
    found = []
    for row in rows(TABLE):
        id, to = int(row["source_id"]), lookup("to")[int(row["id"])]
        if row["source"] == "cocostuff" and (id, "annotations") in counts:
            entry = {
                "coco_id": id,
                "name": row["name"],
                "class": None if to == IGNORE else to,
                "joined_with_lvis": to < FIRST_STUFF_CLASS,
                "annotations": counts[id, "annotations"],
                "pixels": counts.get((id, "pixels"), 0),
                "pixels_published_otherwise": _published(groups, id),
            }
            found.append(entry)
    return found


def _published(groups: Groups, id: int) -> dict[str, int]:
    """{class name in the published labels: pixels} where it is not ours."""
    names = load_classes("cocolvis-1284").names
    found = [(int(to), count) for (source, to), count in groups["published"] if int(source) == id]
    return {"void" if to == IGNORE else names[to]: count for to, count in sorted(found)}
