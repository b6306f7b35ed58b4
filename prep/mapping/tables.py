"""Class tables by name or file, and the reviewed tables of `prep/taxonomies/mapping`."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from prep.class_file import is_void, read_rows
from prep.mapping.rules import Override, Target
from prep.taxonomy import rows
from shards.errors import FormatError, SettingsError, UserError

SOURCE = "imagenet21k"
NOTHING = "none"
_COUNTED = re.compile(r"(.+)-\d+")
_WNID = re.compile(r"n\d{8}")
_ID = re.compile(r"[0-9]{1,9}")


@cache
def table_names() -> tuple[str, ...]:
    """The class tables that ship with us, such as "ade20k-150"; remaps are not among them."""
    folder = resources.files("prep") / "taxonomies"
    names = (entry.name.removesuffix(".tsv") for entry in folder.iterdir() if entry.name.endswith(".tsv"))
    return tuple(sorted(name for name in names if _COUNTED.fullmatch(name) and "_to_" not in name))


def find_table(name: str) -> str:
    """The class table of a dataset: "ade20k" -> "ade20k-150"; a table's own name stays.

    Raises:
        SettingsError: none of that name, or several.
    """
    if name in table_names():
        return name
    found = [table for table in table_names() if re.fullmatch(rf"{re.escape(name)}-\d+", table)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(found or table_names())
    how = "several class tables" if found else "no class table and no file"
    raise SettingsError(f"{name!r}: {how} of that name; expected one of {known}, or a file of classes")


def table_rows(name: str) -> list[dict[str, str]]:
    """The rows of a class table: columns id and name, more where it has them.

    Args:
        name: a dataset or table of ours, or a file: a TSV with a header that holds `name` (and perhaps `id`, `wnid`
            or `wordnet`), or a plain list, one name a line. Classes are numbered as `folder` numbers those of its
            classes.txt and classes.tsv: by id where there are ids, else in their order, `void` left out.

    Raises:
        SettingsError: no such table.
        FormatError: a file that is neither, that has no names, or one name twice.
    """
    path = Path(name)
    return _file_rows(path) if path.is_file() else rows(find_table(name))


def _file_rows(path: Path) -> list[dict[str, str]]:
    """A person's classes, numbered."""
    lines = [line.split("\t") for line in _text(path).split("\n") if line.strip()]
    header = [cell.strip() for cell in lines[0]] if lines else []
    table = [row for _, row in read_rows(path)] if "name" in header else _listed(path, lines)
    if "id" in header and "name" in header:
        table = sorted(table, key=lambda row: _id(path, row["id"]))
    table = [row for row in table if not is_void(row["name"], str(path))]
    seen: set[str] = set()
    for number, row in enumerate(table):
        row["id"] = str(number)
        if not row["name"] or row["name"] in seen:
            raise FormatError(path, f"class {number}: name {row['name']!r} is empty or stands there twice")
        seen.add(row["name"])
    if not table:
        raise FormatError(path, "no class names found; expected one a line, or a TSV with a column `name`")
    return table


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None


def _listed(path: Path, lines: list[list[str]]) -> list[dict[str, str]]:
    """A list of names, each perhaps with a colour after a tab."""
    near = next((cell.strip() for cell in lines[0] if cell.strip().casefold() == "name"), None) if lines else None
    if near:
        raise FormatError(path, f"first line with {near!r} found; expected the column `name`, in lower case")
    return [{"name": line[0].strip()} for line in lines]


def _id(path: Path, text: str) -> int:
    if not _ID.fullmatch(text):
        raise FormatError(path, f"id {text[:40]!r} found; expected a number")
    return int(text)


def load_targets(name: str) -> list[Target]:
    """The classes of a table as the rules want them; FormatError for a synset id that is none."""
    found = []
    for row in table_rows(name):
        wnid = row.get("wnid") or row.get("wordnet") or None
        if wnid is not None and not _WNID.fullmatch(wnid):
            raise FormatError(name, f"class {row['name']!r}: {wnid!r} is no WordNet id; expected n and eight digits")
        found.append(Target(int(row["id"]), row["name"], wnid))
    return found


def load_overrides(name: str) -> dict[str, Override]:
    """Class name -> what a person decided, for one of our tables; {} for a file."""
    if Path(name).is_file():
        return {}
    table = find_table(name)
    return {
        row["class"]: Override(tuple(row["wnids"].replace(NOTHING, "").split()), row["near"], row["why"])
        for row in rows("mapping/overrides")
        if table in row["taxonomy"].split()
    }


def load_source(name: str) -> frozenset[str]:
    """The wnids that a source has images of."""
    if name != SOURCE:
        raise SettingsError(f"source {name!r} found: expected {SOURCE}")
    return frozenset(row["wnid"] for row in rows(find_table(name)))
