"""A user's class table beside the data: `classes.txt`, or `classes.tsv` where ids have gaps.

    found = read_class_file(Path("my-data"))        # found.classes.names, found.ids, found.colours

classes.txt has one name a line; the line's number, from 0, is the id in the label files:

    road
    car
    void                a line named void is no class: pixels of this id count for nothing

A second column, after a tab, is the class's colour as R,G,B; it colours pictures, and decodes labels that are saved in
colour. A blank line between names, or a comment, would shift every id after it: both are refused.

classes.tsv says the ids: a first line with the columns id, name and (optional) colour, then a line for each id.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from prep.taxonomy import VOID, parse_colour
from shards import IGNORE
from shards.classes import ClassTable, Colour, spread_colour
from shards.errors import LayoutError, UserError

_TEXT, _TABLE = "classes.txt", "classes.tsv"
_COLOUR = re.compile(r"\d{1,3},\d{1,3},\d{1,3}")
_ID = re.compile(r"\d{1,5}")
_MAX_BYTES = 1 << 26
_MAX_ID = 65535

Rows = list[tuple[int, dict[str, str]]]  # (line number, {column: text})


@dataclass(frozen=True)
class ClassFile:
    """What a class table says of label files.

    Attributes:
        name: of the file, "classes.txt".
        classes: in ascending order of their ids.
        ids: (id in the label files, class index, or IGNORE for void).
        colours: (colour in the label files, class index or IGNORE), of the lines that have one.
    """

    name: str
    classes: ClassTable
    ids: tuple[tuple[int, int], ...]
    colours: tuple[tuple[Colour, int], ...]


@dataclass(frozen=True)
class _Entry:
    line: int
    id: int
    name: str
    colour: Colour | None


def read_class_file(root: Path) -> ClassFile:
    """The class table of a folder.

    Raises:
        UserError: none is there, or two; or a line of it cannot be understood.
    """
    found = [root / name for name in (_TEXT, _TABLE) if (root / name).is_file()]
    if not found:
        raise LayoutError(
            f"neither {_TEXT} nor {_TABLE} found under {root}: expected {_TEXT} with one class name a line, whose "
            "number from 0 is the id in the label files; write it there"
        )
    if len(found) > 1:
        raise LayoutError(f"both {_TEXT} and {_TABLE} found under {root}: expected one of them; remove the other")
    path = found[0]
    entries = _entries_of_text(path) if path.name == _TEXT else _entries_of_table(path)
    return _class_file(path, sorted(entries, key=lambda entry: entry.id))


def read_rows(path: Path) -> Rows:
    """The rows of a tab-separated file by its first line's names; UserError where it is not such a file."""
    cells = [[cell.strip() for cell in line.split("\t")] for line in _lines(path)]
    twice = [name for name, count in Counter(cells[0] if cells else ()).items() if name and count > 1]
    if twice:
        raise UserError(f"{path} line 1: column {twice[0][:40]} found twice; expected each once")
    rows: Rows = []
    for number, row in enumerate(cells[1:], 2):
        if len(row) > len(cells[0]):
            raise UserError(f"{path} line {number}: {len(row)} columns; expected {len(cells[0])} as in line 1")
        if any(row):
            rows.append((number, dict.fromkeys(cells[0], "") | dict(zip(cells[0], row, strict=False))))
    return rows


def is_void(name: str, where: str) -> bool:
    """Whether a name says void; UserError where it nearly does, since a class of that name is hardly meant."""
    if name != VOID and name.casefold() == VOID:
        raise UserError(
            f"{where}: '{name}' found; expected {VOID}, in lower case, for what counts for nothing; call a class that "
            "does count by another name"
        )
    return name == VOID


def read_colour(text: str, where: str) -> Colour | None:
    """ "128,64,0" -> (128, 64, 0); None where there is nothing; UserError for anything else."""
    plain = text.replace(" ", "")
    if not plain:
        return None
    if not _COLOUR.fullmatch(plain) or max(parse_colour(plain)) > 255:
        raise UserError(f"{where}: colour '{text[:40]}' found; expected R,G,B with values of 0 to 255")
    return parse_colour(plain)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes are more than the cap of {_MAX_BYTES}")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: unreadable file: {error.strerror}") from None
    return text.rstrip().split("\n") if text.strip() else []  # not splitlines: names may hold odd separators


def _entries_of_text(path: Path) -> list[_Entry]:
    entries = []
    for number, line in enumerate(_lines(path), 1):
        where = f"{path} line {number}"
        if not line.strip() or line.lstrip().startswith("#"):
            what = "a blank line" if not line.strip() else "a comment"
            raise LayoutError(
                f"{where}: {what} found; expected a class name in every line, since line numbers are ids: remove it, "
                f"write {VOID} for an id that is no class, or use {_TABLE}"
            )
        name, *rest = line.split("\t")
        if len(rest) > 1 or not name.strip():
            raise LayoutError(f"{where}: {len(rest) + 1} columns; expected a name and, after one tab, a colour R,G,B")
        entries.append(_Entry(number, number - 1, name.strip(), read_colour(rest[0], where) if rest else None))
    return entries


def _entries_of_table(path: Path) -> list[_Entry]:
    entries = []
    for number, row in read_rows(path):
        where = f"{path} line {number}"
        if not {"id", "name"} <= row.keys():
            raise LayoutError(f"{path}: columns {', '.join(row)} found; expected id, name and, optional, colour")
        if not _ID.fullmatch(row["id"]) or int(row["id"]) > _MAX_ID:
            raise LayoutError(f"{where}: id '{row['id'][:40]}' found; expected a number of 0 to {_MAX_ID}")
        if not row["name"]:
            raise LayoutError(f"{where}: id {row['id']} without a name; expected a class name, or {VOID}")
        entries.append(_Entry(number, int(row["id"]), row["name"], read_colour(row.get("colour", ""), where)))
    return entries


def _class_file(path: Path, entries: list[_Entry]) -> ClassFile:
    """Entries in ascending order of ids -> the table."""
    lines: dict[object, int] = {}
    for entry in sorted(entries, key=lambda entry: entry.line):
        for what in (entry.id, entry.name):
            first = lines.setdefault(what, entry.line)
            if first != entry.line and what != VOID:
                kind = "id" if what == entry.id else "class name"
                raise LayoutError(f"{path} line {entry.line}: {kind} '{what}' is in line {first} too; expected once")
    kept = [entry for entry in entries if not is_void(entry.name, f"{path} line {entry.line}")]
    if not kept:
        raise LayoutError(f"{path}: no class found; expected one class name a line")
    index = {entry.id: number for number, entry in enumerate(kept)}
    targets = [(entry, index.get(entry.id, IGNORE)) for entry in entries]
    return ClassFile(
        path.name,
        ClassTable.make(
            [entry.name for entry in kept],
            [entry.colour or spread_colour(number) for number, entry in enumerate(kept)],
        ),
        tuple((entry.id, target) for entry, target in targets),
        tuple((entry.colour, target) for entry, target in targets if entry.colour is not None),
    )
