"""A run's classes and those of a shard set that it is scored on: which answer counts as which class.

    seg-eval --run runs/larvseg --shards data/ade20k                    # answers are restricted to ade20k's classes
    seg-eval --run runs/larvseg --shards data/ade20k --classes run      # any class of the run; others' are wrong

Classes are equal where their names are. A mapping adds pairs of other names: several classes of the run may lead to
one of the shard set (ImageNet's synsets to ADE20K's classes). Nothing is matched by index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from shards.classes import ClassTable
from shards.errors import UserError

Missing = Literal["refuse", "count", "leave-out"]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
SHOWN = 20  # names that a message lists


@dataclass(frozen=True)
class Rule:
    """What may be answered, and what becomes of classes that cannot be.

    Args:
        allowed: "shards": classes that the shard set has as well; "run": all of the run; else names of the run's.
        missing: classes of the shard set that no allowed answer leads to: "refuse" them; "count" their pixels, so that
            their IoU is 0; "leave-out" their pixels as if void, and them from the means.
        pairs: further pairs, a name of the run -> a name of the shard set; they come before equal names.
    """

    allowed: Literal["shards", "run"] | frozenset[str] = "shards"
    missing: Missing = "refuse"
    pairs: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """How answers of a run with R classes count for a shard set with C classes.

    Args:
        allowed: int64 [K], rising: the run's classes that may be answered; None: all.
        place: int64 [R]: the shard set's class of each of the run's; C where there is none.
        missing: names of the shard set's classes that no allowed answer leads to.
        left_out: int64 [n]: those of them whose pixels are not scored.
    """

    allowed: Ints | None
    place: Ints
    missing: tuple[str, ...]
    left_out: Ints

    def of_run(self, mask: Bools, classes: int) -> Bools:
        """A mask [R] over the run's classes as one [C] over the shard set's: any class that leads there counts."""
        out = np.zeros(classes + 1, bool)
        np.logical_or.at(out, self.place, mask)
        return out[:classes]


def match(run: ClassTable, of_set: ClassTable, rule: Rule, whose: str, path: Path | str) -> Answers:
    """How the answers of a run count for a shard set.

    Args:
        run: the run's class table.
        of_set: the shard set's.
        rule: what the user asks for.
        whose: the run in messages.
        path: the shard set in messages.

    Raises:
        UserError: a name that stands for two synsets, a name to allow that the run does not have, classes that cannot
            be answered (rule.missing "refuse"), or nothing in common.
    """
    place = _places(run, of_set, rule.pairs or {}, whose, path)
    may = _allowed(run, place < len(of_set), rule.allowed, whose)
    reached = np.zeros(len(of_set) + 1, bool)
    reached[place[may]] = True
    lacking = np.flatnonzero(~reached[:-1])
    names = tuple(of_set.names[index] for index in lacking)
    if len(names) == len(of_set):
        raise UserError(
            f"{whose} and {path} have no class in common: found {listed(run.names, 4)}; {listed(names, 4)}; expected "
            "equal names, or --map FILE"
        )
    if names and rule.missing == "refuse":
        raise UserError(
            f"{len(names)} of the {len(of_set)} classes of {path} cannot be answers of {whose}: {listed(names)}; "
            "give --missing count to score them as 0, or --missing leave-out"
        )
    left_out = lacking if rule.missing == "leave-out" else lacking[:0]
    return Answers(None if may.all() else np.flatnonzero(may), place, names, left_out)


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Some names in words."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _places(run: ClassTable, of_set: ClassTable, pairs: Mapping[str, str], whose: str, path: Path | str) -> Ints:
    """The shard set's class of each of the run's, int64 [R]; C where there is none."""
    index = {name: place for place, name in enumerate(of_set.names)}
    place = np.full(len(run), len(of_set), np.int64)
    for number, (name, wnid) in enumerate(zip(run.names, run.wnids, strict=True)):
        found = index.get(pairs.get(name, name))
        if found is None:
            continue
        other = of_set.wnids[found]
        if name not in pairs and wnid and other and wnid != other:
            raise UserError(
                f"class {name!r} is {wnid} in {whose} and {other} in {path}: expected one synset for one name; "
                "rename one of them"
            )
        place[number] = found
    return place


def _allowed(run: ClassTable, shared: Bools, allowed: str | frozenset[str], whose: str) -> Bools:
    """Which of the run's classes may be answered, bool [R]."""
    if allowed == "shards":
        return shared
    if allowed == "run":
        return np.ones(len(run), bool)
    may = np.array([name in allowed for name in run.names])
    if not may.any():
        raise UserError(f"--classes: none of its {len(allowed)} names is a class of {whose} ({listed(run.names, 4)})")
    return may
