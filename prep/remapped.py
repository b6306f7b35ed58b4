"""`--classes FILE|NAME`: a dataset with other classes, its labels mapped by one lookup after they are decoded.

    seg-prep vistas --root DIR --out DIR --classes cityscapes19     a table that ships with us
    seg-prep ade20k --root DIR --out DIR --classes my-classes.tsv   one's own

FILE is UTF-8 text with tabs between columns and the columns' names in its first line; one of

    from, to        every class of the dataset by name, and the class that it becomes, or `void`. Several may become
                    one. A row with an empty `from` names a class that this dataset does not show, so that several
                    datasets can share one table. A part of ImageNet-21K takes a file of all its classes.
    name            the classes to keep, by their own names; all others become void.

Optional columns: `colour` (R,G,B) and, beside `from` and `to`, `id` (0..N-1); without it classes are numbered in the
order in which they first appear. The class table depends on FILE alone: files that list the same classes in the same
order give different datasets equal tables.

NAME is a class table in `prep/taxonomies/` that some remap there leads to: `<source>_to_<target>.tsv` maps the class
indices of `<source>.tsv` to those of `<target>.tsv`; `cityscapes19` is `cityscapes-19`. `rob39` is the table of the
Robust Vision Challenge 2018: the 19 classes of Cityscapes, then the 20 of ScanNet, whose wall stays apart.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from prep.class_file import Rows, is_void, read_colour, read_rows
from prep.raw import DecodedLabel, RawSample, Reader, UInt16
from prep.taxonomy import VOID, load_classes, load_remap
from shards import IGNORE
from shards.classes import ClassTable, Colour, spread_colour
from shards.errors import SettingsError

_BETWEEN_TABLES = re.compile(r"(.+-\d+)_to_(.+-\d+)\.tsv")
_SHOWN = 5  # names that an error lists


@dataclass(frozen=True)
class ClassMap:
    """The classes of a source -> those of another table.

    Attributes:
        classes: the other table.
        targets: for each class of the source its index there, or IGNORE where it becomes void.
        title: how people call it ("cityscapes19", "my-classes.tsv").
    """

    classes: ClassTable
    targets: tuple[int, ...]
    title: str

    @property
    def digest(self) -> str:
        """sha256 hex over the table and the targets."""
        return hashlib.sha256(json.dumps([self.classes.digest, self.targets]).encode()).hexdigest()


@dataclass(frozen=True)
class Remapped:
    """A reader whose labels have other classes; all else is the inner reader's."""

    inner: Reader
    map: ClassMap

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def title(self) -> str:
        return f"{self.inner.title}, mapped to {len(self.classes)} classes by {self.map.title}"

    @property
    def layout(self) -> str:
        return self.inner.layout

    @property
    def source(self) -> str:
        return self.inner.source

    @property
    def terms(self) -> str:
        return self.inner.terms

    @property
    def classes(self) -> ClassTable:
        return self.map.classes

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The inner reader's; of the instance sizes only those of classes that keep their name."""
        protocol = dict(self.inner.protocol)
        sizes = protocol.pop("instance_sizes", {})
        same = {
            name
            for name, target in zip(self.inner.classes.names, self.map.targets, strict=True)
            if target != IGNORE and self.classes.names[target] == name
        }
        kept = {name: size for name, size in sizes.items() if name in same}
        return {**protocol, "instance_sizes": kept} if kept else protocol

    @property
    def possible(self) -> tuple[str, ...]:
        return ()

    @property
    def options(self) -> tuple[str, ...]:
        return self.inner.options

    @property
    def default_scales(self) -> str:
        return self.inner.default_scales

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.inner.identity, "class_map": self.map.digest}

    def bind(self, root: Path, options: Mapping[str, str]) -> Reader:
        """Itself: the map holds for the classes of an inner reader that is bound already."""
        return self

    def splits(self, root: Path) -> tuple[str, ...]:
        return self.inner.splits(root)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        """The inner reader's, with their weak labels and the class indices in their meta mapped."""
        merged = Counter(self.map.targets)
        for sample in self.inner.samples(root, split):
            meta = self._map_meta(sample.meta, merged)
            weak = None if sample.weak is None else tuple(self._shown(sample.weak))
            yield replace(sample, weak=weak, meta=meta)

    def _shown(self, indices: Iterable[int]) -> list[int]:
        """What classes become, ascending, each once, without void."""
        return sorted({self.map.targets[index] for index in indices} - {IGNORE})

    def _map_meta(self, meta: Mapping[str, Any], merged: Counter[int]) -> Mapping[str, Any]:
        """Meta with its lists of class indices mapped.

        A class is outlined (`pos_classes`) where one of the classes that become it is, and not exhaustively so
        (`not_exhaustive_classes`) where one of them is not; it is known to be absent (`neg_classes`) only where all
        of them are.
        """
        mapped = dict(meta)
        if "neg_classes" in mapped:
            absent = Counter(self.map.targets[index] for index in set(mapped["neg_classes"]))
            mapped["neg_classes"] = sorted(t for t in absent if t != IGNORE and absent[t] == merged[t])
        for name in ("pos_classes", "not_exhaustive_classes"):
            if name in mapped:
                mapped[name] = self._shown(mapped[name])
        return mapped

    def decode_label(self, data: bytes, where: str, facts: Any) -> UInt16 | DecodedLabel:
        found = self.inner.decode_label(data, where, facts)
        table = np.full(1 << 16, IGNORE, np.uint16)
        table[: len(self.map.targets)] = self.map.targets
        if isinstance(found, DecodedLabel):
            return replace(found, hard=table[found.hard])
        return table[found]

    def decode_instances(self, data: bytes, hard: UInt16, where: str) -> UInt16:
        return self.inner.decode_instances(data, hard, where)

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        return self.inner.reports(tallies)


def remapped(reader: Reader, spec: str) -> Reader:
    """The reader with the classes that `--classes` names.

    Args:
        reader: bound already, so that its classes are settled.
        spec: a file, or the name of a table that ships with us.

    Raises:
        SettingsError: no such file or table for this dataset, or a file that does not map its classes.
    """
    names = _shipped(reader.classes)
    near = spec.replace("-", "")
    if near in names:
        return Remapped(reader, _load_shipped(reader, names[near], near))
    path = Path(spec)
    if not path.is_file():
        raise SettingsError(
            f"--classes {spec}: neither a file nor a class table for {reader.name}: expected a file of tab-separated "
            f"columns from and to, or {_describe_shipped(names)}"
        )
    return Remapped(reader, _read_map(reader, path))


def _shipped(classes: ClassTable) -> dict[str, tuple[str, str]]:
    """{name: (source, target)} of the tables that lead on from these classes; a target leads to itself."""
    found = {}
    for source, target in _pairs():
        for table in (source, target):
            if load_classes(table).names == classes.names:
                found[target.replace("-", "")] = (table, target)
    return found


def _pairs() -> list[tuple[str, str]]:
    """(source, target) of every remap between two class tables."""
    files = (path.name for path in (resources.files("prep") / "taxonomies").iterdir())
    matches = (_BETWEEN_TABLES.fullmatch(name) for name in sorted(files))
    return [(match[1], match[2]) for match in matches if match]


def _describe_shipped(names: Mapping[str, tuple[str, str]]) -> str:
    if names:
        return f"one of {', '.join(sorted(names))}"
    pairs = ", ".join(f"{target} from {source}" for source, target in _pairs())
    return f"a dataset for which tables ship ({pairs})"


def _load_shipped(reader: Reader, pair: tuple[str, str], title: str) -> ClassMap:
    source, target = pair
    if source == target:
        return ClassMap(load_classes(target), tuple(range(len(reader.classes))), title)
    table = load_remap(f"{source}_to_{target}", reader.name).table
    return ClassMap(load_classes(target), tuple(int(index) for index in table), title)


def _read_map(reader: Reader, path: Path) -> ClassMap:
    """A user's file; SettingsError names the file and the line."""
    rows = read_rows(path)
    columns = set(rows[0][1]) if rows else set()
    if {"from", "to"} <= columns:
        return _map_by_pairs(reader, path, rows)
    if "name" in columns and "from" not in columns:
        return _map_by_names(reader, path, rows)
    found = f"columns {', '.join(sorted(columns))}" if columns else "no rows"
    raise SettingsError(
        f"{path}: {found} found: expected a first line with the columns from and to, or name, separated by tabs, "
        "and a line for each class"
    )


def _map_by_names(reader: Reader, path: Path, rows: Rows) -> ClassMap:
    """Target classes are source classes of the same name; others become void."""
    source = reader.classes.names
    chosen = [row["name"] for _, row in rows]
    known = {*source, *reader.possible}
    for number, row in rows:
        _check_known(reader, known, row["name"], f"{path} line {number}")
    _check_once(chosen, path)
    index = {name: number for number, name in enumerate(chosen)}
    return ClassMap(_table(path, rows, chosen, "name"), tuple(index.get(name, IGNORE) for name in source), path.name)


def _map_by_pairs(reader: Reader, path: Path, rows: Rows) -> ClassMap:
    becomes: dict[str, str] = {}
    known = {*reader.classes.names, *reader.possible}
    for number, row in rows:
        if not row["to"]:
            raise SettingsError(f"{path} line {number}: no class in column to: expected a class name, or {VOID}")
        if row["from"]:
            _check_known(reader, known, row["from"], f"{path} line {number}")
            becomes[row["from"]] = row["to"]
    _check_once([row["from"] for _, row in rows if row["from"]], path)
    missing = [name for name in reader.classes.names if name not in becomes]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise SettingsError(
            f"{path}: {len(missing)} of {reader.name}'s {len(reader.classes)} classes are not in column from: {shown}; "
            f"expected each, with {VOID} in column to where it is not wanted"
        )
    kept = [(number, row) for number, row in rows if not is_void(row["to"], f"{path} line {number}")]
    names = _numbered(path, kept)
    index = {name: number for number, name in enumerate(names)} | {VOID: IGNORE}
    targets = tuple(index[becomes[name]] for name in reader.classes.names)
    return ClassMap(_table(path, kept, names, "to"), targets, path.name)


def _check_known(reader: Reader, known: Collection[str], name: str, where: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, reader.classes.names, n=1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'?" if close else f"its classes are {', '.join(reader.classes.names[:3])}, ..."
        raise SettingsError(f"{where}: '{name}' is no class of {reader.name}: {hint}")


def _check_once(names: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SettingsError(f"{path}: class '{twice[0]}' found twice: expected each class in one line")


def _numbered(path: Path, rows: Rows) -> list[str]:
    """The target classes in the order of their ids, or of their first lines where there is no column id."""
    names = list(dict.fromkeys(row["to"] for _, row in rows))
    if not rows or "id" not in rows[0][1]:
        return names
    ids: dict[str, str] = {}
    for number, row in rows:
        if ids.setdefault(row["to"], row["id"]) != row["id"]:
            raise SettingsError(
                f"{path} line {number}: class '{row['to']}' has id '{row['id']}' here and '{ids[row['to']]}' before"
            )
    if set(ids.values()) != {str(index) for index in range(len(names))}:
        raise SettingsError(
            f"{path}: ids {', '.join(list(ids.values())[:_SHOWN])}, ... of {len(names)} classes: expected each of "
            f"0..{len(names) - 1} for one class"
        )
    return sorted(names, key=lambda name: int(ids[name]))


def _table(path: Path, rows: Rows, names: Sequence[str], column: str) -> ClassTable:
    """The target table; colours that are not given are spread."""
    if not names:
        raise SettingsError(f"{path}: every class becomes {VOID}: expected at least one class to keep")
    colours: dict[str, Colour] = {}
    for number, row in rows:
        colour = read_colour(row.get("colour", ""), f"{path} line {number}")
        if colour and colours.setdefault(row[column], colour) != colour:
            before = ",".join(map(str, colours[row[column]]))
            raise SettingsError(f"{path} line {number}: class '{row[column]}' has the colour {before} before")
    return ClassTable.make(names, [colours.get(name) or spread_colour(index) for index, name in enumerate(names)])
