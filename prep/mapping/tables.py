"""Class tables by name or file, and the reviewed tables of `prep/taxonomies/mapping`."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from prep.class_file import read_rows
from prep.mapping.rules import Override, Target
from prep.taxonomy import rows
from shards.errors import FormatError, SettingsError

SOURCE = "imagenet21k"
NOTHING = "none"
_COUNTED = re.compile(r"(.+)-\d+")
_WNID = re.compile(r"n\d{8}")


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
        name: a dataset or table of ours, or a file: a TSV with a header that holds `name` (and perhaps `wnid` or
            `wordnet`), or a plain list, one name a line.

    Raises:
        SettingsError: no such table.
        FormatError: a file that is neither, that has no names, or one name twice.
    """
    path = Path(name)
    return _file_rows(path) if path.is_file() else rows(find_table(name))


def _file_rows(path: Path) -> list[dict[str, str]]:
    """A person's classes; ids are their order, whatever the file says."""
    table = [row for _, row in read_rows(path)]
    if not table or "name" not in table[0]:  # no header line: a list of names
        table = [{"name": line.strip()} for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    seen: set[str] = set()
    for number, row in enumerate(table):
        row["id"] = str(number)
        if not row["name"] or row["name"] in seen:
            raise FormatError(path, f"class {number}: name {row['name']!r} is empty or stands there twice")
        seen.add(row["name"])
    if not table:
        raise FormatError(path, "no class names found; expected one a line, or a TSV with a column `name`")
    return table


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
