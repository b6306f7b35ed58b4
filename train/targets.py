"""A split to be scored by a run, opened as a command's options say: which classes, which groups, told in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.classes import ClassTable
from shards.errors import SettingsError
from shards.manifest import load_manifest
from shards.store import Place
from train.class_match import Bools, Missing, Rule, listed
from train.class_names import is_shard_set, known_names, names_at, read_pairs
from train.evaluate import Split, open_for_scoring, open_split
from train.run import Run


@dataclass(frozen=True)
class Choice:
    """What the options of a command say of classes.

    Args:
        classes: "shards", "run", or a path: what may be answered.
        missing: what becomes of classes that cannot be answered.
        mapping: a TSV of further pairs.
        base: a path: which classes are base; None: those of the run's label space, if it has one.
    """

    classes: str = "shards"
    missing: Missing = "refuse"
    mapping: Path | None = None
    base: str | None = None


def open_target(run: Run, shard_set: Place, split: str, input_scale: str, choice: Choice) -> Split:
    """A split to be scored by a run.

    Raises:
        UserError: as `train.evaluate.open_for_scoring`, `train.class_match.match` and `train.class_names`.
        FormatError: as those.
    """
    whose, which = f"run {run.folder}", choice.classes
    allowed: Any = which if which in ("shards", "run") else _names_to_answer(run, which)
    pairs = None
    if choice.mapping is not None:
        pairs = read_pairs(choice.mapping, run.classes, load_manifest(shard_set).class_table)
    rule = Rule(allowed, choice.missing, pairs)
    check = run.recipe.data.check
    target = open_for_scoring(shard_set, split, input_scale, run.classes, whose, rule, base_of(run), check)
    return target if choice.base is None else replace(target, base=_named_base(choice.base, run.classes, target))


def classes_to_answer(run: Run, text: str) -> list[int] | None:
    """The run's classes that an option allows, ascending: None for "run", else those that a path names.

    Raises:
        SettingsError: neither, or names that are no classes of the run.
    """
    if text == "run":
        return None
    names = _names_to_answer(run, text)
    found = [place for place, name in enumerate(run.classes.names) if name in names]
    if not found:
        raise SettingsError(f"--classes {text!r}: none of its {len(names)} names is a class of run {run.folder}")
    return found


def _names_to_answer(run: Run, text: str) -> frozenset[str]:
    """The names at a path; what a person has typed must be the run's, a shard set may have other classes too."""
    names = names_at(text, "--classes")
    if is_shard_set(text):
        return frozenset(names)
    return known_names(names, run.classes, "--classes", f"run {run.folder}")


def open_categories(run: Run, shard_set: Place, split: str, input_scale: str, base: str | None) -> Split:
    """A split whose categories need not be the run's.

    Its base categories are those that `base` names; else those whose names the run has seen with pixel labels: base
    classes of its label space, or all of its classes.

    Raises:
        UserError: as `train.evaluate.open_split` and `train.class_names`.
        FormatError: as those.
    """
    target = open_split(shard_set, split, input_scale, run.recipe.data.check)
    if base is not None:
        return replace(target, base=_named_base(base, run.classes, target))
    known = base_of(run)
    names = {name for place, name in enumerate(run.classes.names) if known is None or known[place]}
    return replace(target, base=np.array([name in names for name in target.classes.names]))


def chosen_classes(target: Split, which: str) -> Bools:
    """bool [C]: "all", "base" or "novel" classes of a target whose base classes are known.

    Raises:
        SettingsError: there is none.
    """
    base = np.zeros(len(target.classes), bool) if target.base is None else target.base
    mask = {"all": np.ones(len(base), bool), "base": base, "novel": ~base}[which]
    if not mask.any():
        raise SettingsError(f"--classes {which}: {target.path} has no such class; expected all, or another --base")
    return mask


def base_of(run: Run) -> Bools | None:
    """bool [R]: the run's classes that some source annotates with pixels; None where the run has no label space."""
    space = getattr(run, "space", None)
    return None if space is None else space.base


def _named_base(text: str, run: ClassTable, target: Split) -> Bools:
    """The base classes of a target by the names at a path, bool [C]."""
    names = set(names_at(text, "--base"))
    mask = np.array([name in names for name in target.classes.names])
    if target.answers is not None:  # pairs lead from a run's class to another name
        mask |= target.answers.of_run(np.array([name in names for name in run.names]), len(mask))
    if not mask.any():
        raise SettingsError(
            f"--base {text!r}: none of its {len(names)} names is a class of {target.path} "
            f"({listed(target.classes.names, 4)}); expected some that are"
        )
    return mask


def facts_of(target: Split, run: ClassTable, choice: Choice) -> dict[str, Any]:
    """What JSON keeps of how classes were matched; nothing where the run's classes are the shard set's."""
    if target.answers is None:
        return {}
    allowed = target.answers.allowed
    return {
        "matched": {
            "classes": choice.classes,
            "run": len(run),
            "allowed": len(run) if allowed is None else len(allowed),
            "missing": choice.missing,
            "missing_classes": list(target.answers.missing),
        }
    }


def told(target: Split, run: ClassTable, choice: Choice) -> Iterator[str]:
    """The same in lines for people."""
    if target.base is not None:
        base = int(target.base.sum())
        yield f"{base} base and {len(target.classes) - base} novel classes"
    if target.answers is None:
        return
    count = len(run) if target.answers.allowed is None else len(target.answers.allowed)
    yield f"answers: {count} of the run's {len(run)} classes ({choice.classes})"
    missing = target.answers.missing
    if missing:
        fate = "pixels left out" if choice.missing == "leave-out" else "pixels count as wrong"
        yield f"{len(missing)} classes cannot be answered, {fate}: {listed(missing)}"
