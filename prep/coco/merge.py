"""LVIS instances and COCO stuff -> one label map of 1,284 classes.

LVIS instances are painted first and stuff fills what they leave. Among instances, and among stuff, the rule of
overlaps says who keeps a contested pixel: the `smallest` mask, the `first` of the file (the published rule) or the
`largest` mask; ties go to the first of the file.
Class ids come from one lookup table (`cocolvis-1296_to_1284.tsv`).

Skipped and counted: crowds (LVIS has none: a coarse region would hide single objects), COCO's "other" (183) and
unlabelled (255), and masks that cover no pixel. The published pipeline paints crowds and "other"; of the files as
they are published only "other" occurs, which ends as void either way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from prep.coco.annotation import Annotation, annotation_runs
from prep.coco.paint import MOST, Painted, paint
from prep.coco.runs import Runs
from prep.raw import DecodedLabel
from prep.taxonomy import VOID, rows
from shards import IGNORE
from shards.errors import SampleError

TABLE = "cocolvis-1296_to_1284"
OVERLAPS = ("smallest", "first", "largest")  # the default first
STUFF = 10_000  # the table's ids of COCO stuff start above this


@dataclass(frozen=True)
class Claim:
    """An annotation that takes part in the painting.

    Attributes:
        id: in the lookup table: LVIS id, or COCO id + 10,000.
        to: class index that it paints, or IGNORE.
        published: class index that the published label maps have for it, or IGNORE.
        runs: its mask.
        area: pixels of the mask.
    """

    id: int
    to: int
    published: int
    runs: Runs
    area: int


@cache
def lookup(column: str) -> dict[int, int]:
    """A column of the table: {id: class index or IGNORE}; `to`, `published_to` or `published_8bit_to`."""
    return {int(row["id"]): IGNORE if row[column] == VOID else int(row[column]) for row in rows(TABLE)}


def merge(
    annotations: Sequence[Annotation],
    lvis: int,
    size: tuple[int, int],
    where: str,
    overlap: str = OVERLAPS[0],
    published: bool = False,
) -> DecodedLabel:
    """Paint one image.

    Args:
        annotations: all of LVIS, then all of COCO stuff, each in the order of its file.
        lvis: how many of them are LVIS's.
        size: height and width of the image.
        where: names the image in errors.
        overlap: one of `OVERLAPS`.
        published: paint what the published label maps hold, their errors included.

    Raises:
        SampleError: a malformed mask or an unknown category; names the annotation.
    """
    if len(annotations) > MOST:
        raise SampleError(f"{where}: {len(annotations)} annotations; expected at most {MOST}")
    tally: Counter[str] = Counter()
    things = _claims(annotations[:lvis], 0, size, where, published, tally)
    stuff = _claims(annotations[lvis:], STUFF, size, where, published, tally)
    claims = [*things, *stuff]
    order = np.concatenate([_order(things, overlap), _order(stuff, overlap) + len(things)])
    values = [claim.published if published else claim.to for claim in claims]
    painted = paint([claim.runs for claim in claims], order, values, size, IGNORE)
    _count_contested(tally, claims, len(things), painted)
    _count_stuff(tally, stuff, painted.kept[len(things) :])
    tally["annotations|LVIS"] = lvis
    tally["annotations|stuff"] = len(annotations) - lvis
    tally["pixels"] = painted.hard.size
    tally["pixels void"] = int(np.count_nonzero(painted.hard == IGNORE))
    return DecodedLabel(painted.hard, tally)


def _claims(
    annotations: Sequence[Annotation],
    base: int,
    size: tuple[int, int],
    where: str,
    published: bool,
    tally: Counter[str],
) -> list[Claim]:
    """The annotations that paint; what is skipped is counted."""
    name = "stuff" if base else "LVIS"
    release = lookup("published_8bit_to" if base and len(annotations) == 1 else "published_to")
    found = []
    for annotation in annotations:
        which = f"{where}: {name} annotation {annotation.id}"
        id = base + annotation.category_id
        if id not in lookup("to") or (id > STUFF) != (base > 0):
            expected = "92 to 182, 183 (other) and 255" if base else "1 to 1203"
            raise SampleError(f"{which}: unknown category id {annotation.category_id}; cocolvis defines {expected}")
        runs = annotation_runs(annotation, size[0], size[1], which)
        area = int((runs[:, 1] - runs[:, 0]).sum())
        to = lookup("to")[id]
        why = _why_skipped(annotation, to, area, published)
        if why:
            tally[f"skipped|{name}|{why}"] += 1
        else:
            found.append(Claim(id, to, release[id], runs, area))
    return found


def _why_skipped(annotation: Annotation, to: int, area: int, published: bool) -> str:
    if area == 0:
        return "covers no pixel"
    if published:
        return ""
    if annotation.iscrowd:
        return "crowd"
    return "other or unlabelled" if to == IGNORE else ""


def _order(claims: list[Claim], overlap: str) -> NDArray[np.int64]:
    """Positions in the order of painting."""
    if overlap == "first":
        return np.arange(len(claims), dtype=np.int64)
    areas = np.array([claim.area for claim in claims], np.int64)
    return np.argsort(areas if overlap == "smallest" else -areas, kind="stable").astype(np.int64)


def _count_contested(tally: Counter[str], claims: list[Claim], things: int, painted: Painted) -> None:
    """Pixels that were claimed again, by kind and by pair of sources."""
    for owner, later, pixels in painted.contested.tolist():
        kind = "LVIS-LVIS" if later < things else "LVIS-stuff" if owner < things else "stuff-stuff"
        tally[f"contested|{kind}|{claims[owner].id}|{claims[later].id}"] += pixels


def _count_stuff(tally: Counter[str], stuff: list[Claim], kept: NDArray[np.int64]) -> None:
    """Annotations and pixels of every stuff id, and pixels where the published labels say something else."""
    for claim, pixels in zip(stuff, kept.tolist(), strict=True):
        tally[f"stuff|{claim.id - STUFF}|annotations"] += 1
        tally[f"stuff|{claim.id - STUFF}|pixels"] += pixels
        if claim.published != claim.to:
            tally[f"published|{claim.id - STUFF}|{claim.published}"] += pixels
