"""The label space of a mixture: the classes of all its sources, brought together by name when a run begins.

Classes that some source annotates with pixels are base classes and come first; those that images are only tagged with
are novel. run.json keeps the space, so that seg-eval and seg-predict know one from the other. (LarvSeg, section 3.1:
C_all is the union of C_base and the categories of the image-level data.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.classes import MAX_CLASSES, ClassTable, Colour, spread_colour
from shards.errors import UserError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Given:
    """One source's classes.

    Args:
        where: the folder that they come from, for messages.
        classes: its class table.
        pixels: whether it has pixel labels.
        known: whose classes are candidates there: its "own", or "all".
    """

    where: str
    classes: ClassTable
    pixels: bool
    known: Literal["own", "all"] = "own"


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """The classes of a run with several sources.

    Args:
        classes: the union of C classes, base classes first.
        base: bool [C], annotated with pixels by some source; the others are novel.
        known: for each source bool [C], the classes that can be wrong there.
    """

    classes: ClassTable
    base: Mask
    known: tuple[Mask, ...]

    def lookup(self, table: ClassTable) -> npt.NDArray[np.uint16]:
        """The id in the union of each class of a source's table, uint16 [len(table)]."""
        places = {name: place for place, name in enumerate(self.classes.names)}
        return np.array([places[name] for name in table.names], np.uint16)

    def to_dict(self) -> dict[str, Any]:
        """What run.json keeps beside the class table: how many classes are base, and what each source knows."""
        known = ["all" if mask.all() else np.flatnonzero(mask).tolist() for mask in self.known]
        return {"base": int(self.base.sum()), "known": known}

    @classmethod
    def from_dict(cls, values: dict[str, Any], classes: ClassTable) -> LabelSpace:
        """The inverse of `to_dict`; raises ValueError for anything that is not such a dict."""
        count, base = len(classes), values.get("base")
        if type(base) is not int or not 1 <= base <= count or not isinstance(values.get("known"), list):
            raise ValueError(
                f"label space with base = {base!r} of {count} classes; expected a number of them and lists"
            )
        known = tuple(_mask(ids, count) for ids in values["known"])
        return cls(classes, np.arange(count) < base, known)


def _mask(ids: object, count: int) -> Mask:
    """bool [count], True at `ids`, or everywhere for "all"."""
    if ids == "all":
        return np.ones(count, bool)
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < count for i in ids):
        raise ValueError(f'label space with known classes that are neither "all" nor ids below {count}')
    mask = np.zeros(count, bool)
    mask[ids] = True
    return mask


def unite(given: Sequence[Given]) -> LabelSpace:
    """The label space of some sources: classes of pixel sources first, in the order of sources and of their tables.

    What one table does not say of a class (wnid, category, thing) the next one that has it may. A colour that another
    table's class has already taken is replaced.

    Raises:
        UserError: one name stands for two WordNet synsets, or there are too many classes.
    """
    ordered = [one for one in given if one.pixels] + [one for one in given if not one.pixels]
    union = _Union()
    for one in ordered:
        union.add(one)
    if len(union.places) > MAX_CLASSES:
        raise UserError(f"the sources have {len(union.places):,} classes together; expected at most {MAX_CLASSES:,}")
    classes, places = union.table(), union.places
    base = np.zeros(len(places), bool)
    known = []
    for one in given:
        own = np.zeros(len(places), bool)
        own[[places[name] for name in one.classes.names]] = True
        base |= own & one.pixels
        known.append(own | (one.known == "all"))
    return LabelSpace(classes, base, tuple(known))


class _Union:
    """A class table that grows by one source after the other."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}  # by name
        self.colours: list[Colour] = []
        self.taken: set[Colour] = set()  # by the tables before
        self.facts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])  # wnid, category, thing
        self.told: list[str] = []  # where each class's wnid comes from

    def add(self, one: Given) -> None:
        """Take in a source's classes; raises UserError where a name has another wnid already."""
        table, new = one.classes, len(self.places)
        columns = zip(table.names, table.colours, table.wnids, table.categories, table.things, strict=True)
        for name, colour, *facts in columns:
            place = self.places.setdefault(name, len(self.places))
            if place == len(self.colours):
                self._append(colour, facts, one.where)
            else:
                self._fill(name, place, facts, one.where)
        self.taken.update(self.colours[new:])

    def _append(self, colour: Colour, facts: list[Any], where: str) -> None:
        self.colours.append(spread_colour(len(self.colours)) if colour in self.taken else colour)
        for column, fact in zip(self.facts, facts, strict=True):
            column.append(fact)
        self.told.append(where)

    def _fill(self, name: str, place: int, facts: list[Any], where: str) -> None:
        """Add to a class that is there what is not known of it."""
        wnid = self.facts[0][place]
        if facts[0] is not None and wnid is None:
            self.told[place] = where
        elif facts[0] not in (None, wnid):
            raise UserError(
                f"class {name!r} is {wnid} in {self.told[place]} and {facts[0]} in {where}: expected one synset for "
                "one name; rename it in one of them (seg-prep DATASET ... --classes FILE)"
            )
        for column, fact in zip(self.facts, facts, strict=True):
            column[place] = fact if column[place] is None else column[place]

    def table(self) -> ClassTable:
        """What has come together."""
        wnids, categories, things = (tuple(column) for column in self.facts)
        return ClassTable(tuple(self.places), tuple(self.colours), wnids, categories, things)
