"""Class names that a user gives: a text file with one name a line, a shard set's folder, or a mapping between two.

    seg-eval ... --classes data/ade20k --base data/cocostuff --map i150.tsv

Nothing here knows a dataset: a shard set's manifest carries its class table.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path

from shards.classes import ClassTable
from shards.errors import FormatError, SettingsError
from shards.manifest import MANIFEST, load_manifest
from shards.store import as_place, is_url

MOST_BYTES = 1 << 26
COLUMNS = (("wnid", "class"), ("from", "to"))  # of `seg-prep map`; of names


def names_at(text: str, option: str) -> tuple[str, ...]:
    """The class names that an option's value stands for, in order.

    Args:
        text: the folder or URL of a shard set, or the path of a file with one name a line (blank lines are left aside).
        option: the option in messages.

    Raises:
        SettingsError: neither of the two, or a file without a name.
        FormatError: the shard set's manifest is broken, or the file is no text.
    """
    if is_shard_set(text):
        return load_manifest(as_place(text)).class_table.names
    path = Path(text)
    if not path.is_file():
        raise SettingsError(
            f"{option} {text!r}: found neither a shard set nor a file there; expected a shard set's folder or a file "
            "with one class name a line"
        )
    names = tuple(dict.fromkeys(line.strip() for line in _text(path).splitlines() if line.strip()))
    if not names:
        raise SettingsError(f"{option} {text!r}: found no name in it; expected one class name a line")
    return names


def is_shard_set(text: str) -> bool:
    """Whether an option's value is a shard set: a URL, or a folder with a manifest."""
    return is_url(text) or (Path(text) / MANIFEST).is_file()


def known_names(names: Sequence[str], classes: ClassTable, option: str, whose: str) -> frozenset[str]:
    """The names as a set; raises SettingsError where one is no class of the table (the nearest is suggested)."""
    known = set(classes.names)
    wrong = [name for name in names if name not in known]
    if wrong:
        close = difflib.get_close_matches(wrong[0], classes.names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "expected names of its class table"
        raise SettingsError(f"{option}: {len(wrong)} names are no classes of {whose}, first {wrong[0]!r}; {hint}")
    return frozenset(names)


def read_pairs(path: Path, run: ClassTable, of_set: ClassTable) -> dict[str, str]:
    """Pairs of a mapping, a name of the run's -> a name of the shard set's.

    Args:
        path: a TSV with the columns `wnid` and `class`, as `seg-prep map` writes it, or `from` and `to` (names).
            Rows whose first value is none of the run's classes are left aside: the run has fewer.
        run: the run's class table.
        of_set: the shard set's.

    Raises:
        FormatError: not such a file, a class that the shard set does not have, one class of the run with two goals, or
            no row that says anything of the run.
        SettingsError: there is no such file.
    """
    if not path.is_file():
        raise SettingsError(
            f"--map {path}: no such file; expected a TSV with the columns wnid and class, or from and to"
        )
    reader = csv.DictReader(_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = next((pair for pair in COLUMNS if set(pair) <= set(reader.fieldnames or ())), None)
    if columns is None:
        raise FormatError(
            path, f"found columns {list(reader.fieldnames or ())}, expected wnid and class, or from and to"
        )
    keys = run.wnids if columns[0] == "wnid" else run.names
    names, goals = {key: name for key, name in zip(keys, run.names, strict=True) if key}, set(of_set.names)
    pairs: dict[str, str] = {}
    for number, row in enumerate(reader, 2):
        source, goal = (row[column] or "" for column in columns)
        if goal not in goals:
            raise FormatError(path, f"line {number}: {goal!r} is no class of the shard set; expected one of its names")
        name = names.get(source)
        if name is not None and pairs.setdefault(name, goal) != goal:
            raise FormatError(path, f"line {number}: {source!r} leads to {pairs[name]!r} already; expected one class")
    if not pairs:
        raise FormatError(path, f"none of its rows names a class of the run by {columns[0]}; expected one at least")
    return pairs


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise FormatError(path, f"larger than {MOST_BYTES} bytes; expected a list of classes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError(path, "not text in UTF-8; expected a list of classes") from None
    if any(len(line) > csv.field_size_limit() for line in text.splitlines()):
        raise FormatError(path, f"a line of more than {csv.field_size_limit()} characters; expected a list of classes")
    return text
