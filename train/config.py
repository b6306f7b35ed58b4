"""Read a recipe: a TOML file, what it extends and what the command line sets, as one checked `Recipe`.

    seg-train --list
    seg-train --shards data/demo --recipe demo --out runs/demo --set optim.lr=0.01

A recipe may say `extends = "other"`: it then starts from that recipe (a shipped name, or a path beside it), whose
description and expected scores it does not inherit. Errors are one line and suggest the nearest known name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shards.errors import SettingsError
from train.schema import Augment, Data, Evaluation, Expected, Jitter, Loop, Optim, Recipe, Schedule
from train.schema_loss import Loss
from train.schema_mixture import Mixture, Source
from train.schema_model import Model

__all__ = [
    "Augment",
    "Data",
    "Evaluation",
    "Expected",
    "Jitter",
    "Loop",
    "Loss",
    "Mixture",
    "Model",
    "Optim",
    "Recipe",
    "Schedule",
    "Source",
    "from_dict",
    "from_stored",
    "load_recipe",
    "recipe_names",
    "recipe_summary",
]

# The order of samples before it was a setting: whole shards, four at a time.
FIRST_ORDER = {"window": 4, "run": None}
FOLDER = Path(__file__).parent / "recipes"
_LISTED: dict[str, type[BaseModel]] = {"expected": Expected, "mixture": Mixture, "sources": Source}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a TOML file, with `key=value` overrides applied.

    Args:
        name_or_path: a shipped recipe's name, or a path (anything that ends in .toml).
        overrides: "optim.lr=0.01" and the like; the value is read as TOML, else as a bare string.

    Raises:
        SettingsError: unknown recipe, section or key (the nearest name is suggested), a value of the wrong type or
            outside of its bounds, values that do not fit each other, a file that is not TOML, `extends` in a circle.
    """
    path = _locate(name_or_path)
    values = _read_chain(path, ())
    for override in overrides:
        _apply(values, override)
    return from_dict({**values, "name": path.stem}, f"recipe {path.stem}")


def recipe_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def recipe_summary(name: str) -> str:
    """The one-line description of a shipped recipe."""
    description = _read_toml(_locate(name)).get("description", "")
    return description if isinstance(description, str) else ""


def from_dict(values: object, where: str = "recipe") -> Recipe:
    """The recipe of plain values, such as `Recipe.to_dict` gives and a checkpoint keeps.

    Raises:
        SettingsError: one line naming the key, what was found and what is expected.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where}: found {type(values).__name__}, expected a table of settings")
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(f"{where}: {_first_problem(error)}") from None


def from_stored(values: object, where: str) -> Recipe:
    """The recipe that a run has stored, also where the order of samples was no setting yet; raises as `from_dict`."""
    stored = values if isinstance(values, Mapping) else {}
    data = stored.get("data", {})
    if isinstance(data, Mapping) and not {"window", "run"} & data.keys():
        values = {**stored, "data": {**data, **FIRST_ORDER}}
    return from_dict(values, where)


def _locate(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise SettingsError(f"recipe file {path} not found; give an existing .toml file or a name of --list")
        return path
    if name_or_path not in recipe_names():
        raise SettingsError(f"no recipe named {name_or_path!r}{_nearest(name_or_path, recipe_names())}; see --list")
    return FOLDER / f"{name_or_path}.toml"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise SettingsError(f"{path}: not a TOML file (nested too deep); correct it") from None
    except ValueError as error:  # not TOML, not UTF-8, a number of thousands of digits
        raise SettingsError(f"{path}: not a TOML file ({error}); correct it") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None


def _read_chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file merged over those of what it extends."""
    seen = (*seen, path.resolve())
    values = _read_toml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise SettingsError(f"{path}: extends = {parent!r}, expected a recipe's name")
    above = _locate(str(path.parent / parent) if parent.endswith(".toml") else parent)
    if above.resolve() in seen:
        raise SettingsError(f"{path}: extends {parent!r}, which extends it in turn; break the circle")
    base = _read_chain(above, seen)
    base.pop("description", None)  # a description and a score belong to one recipe alone
    base.pop("expected", None)
    return _merged(base, values)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`: tables are merged key by key, anything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place."""
    dotted, equals, text = override.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise SettingsError(f"--set {override!r}: expected key=value such as optim.lr=0.01")
    if len(keys) < 2 and keys[0] != "description":
        raise SettingsError(f"--set {override!r}: expected section.key=value such as optim.lr=0.01")
    table = values
    for key in keys[:-1]:
        below = table.get(key, {})
        if not isinstance(below, dict):
            raise SettingsError(f"--set {override!r}: {key} is not a section; see the recipe's file for its keys")
        table[key] = dict(below)
        table = table[key]
    table[keys[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # ValueError: not TOML, or a number of thousands of digits
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _first_problem(error: ValidationError) -> str:
    """One line for the first of pydantic's complaints; unknown keys come first, as they explain the others."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = problem["loc"]
    dotted = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        kind = "key" if len(location) > 1 else "section"
        return f"unknown {kind} {dotted}{_nearest(str(location[-1]), _known_keys(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{dotted} is missing; give it"
    message = str(problem["msg"])
    if problem["type"] == "value_error":
        return message.removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        return f'{dotted} = {problem["input"]!r}: expected a scale such as "1/4" (or one line of text)'
    expected = message.replace("Input should be", "expected").replace("should", "expected to")
    return f"{dotted} = {problem['input']!r}: {expected[:1].lower()}{expected[1:]}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location`."""
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = _LISTED.get(part) or annotation  # type: ignore[assignment]
    return list(model.model_fields)


def _nearest(name: str, known: Sequence[str]) -> str:
    """The ending "; did you mean X?" where a known name is close, else the list of what is known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
