"""A union as `--classes` files: for each of its tables, which class of the union each of its classes is.

    seg-prep union cocostuff ade20k --maps maps
    seg-prep cocostuff --root DIR --out data/c171 --classes maps/cocostuff-171.tsv
    seg-prep ade20k --root DIR --out data/ade20k --classes maps/ade20k-150.tsv --weak

The shard sets then call a class by one name, which is how a training run joins them (train/label_space.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prep.mapping.table import write_table
from prep.mapping.tables import table_rows
from prep.mapping.union import Union


@dataclass(frozen=True)
class Renamed:
    """One row: a class of a table by its own name and by the union's; the fields are the columns from and to."""

    from_: str
    to_: str


def renamed(union: Union, table: str) -> list[Renamed]:
    """Every class of one of the union's tables, in the order of the union's classes."""
    own = {int(row["id"]): row["name"] for row in table_rows(table)}
    place = re.compile(rf"(?:^| ){re.escape(table)}:([0-9,]+)(?: |$)")
    found = [(one.name, place.search(one.ids)) for one in union.classes]
    return [Renamed(own[int(i)], name) for name, ids in found if ids for i in ids[1].split(",")]


def write_maps(union: Union, folder: Path) -> list[Path]:
    """Write a file for each table into an existing folder, named as the table is; returns their paths."""
    paths = []
    for table in union.tables:
        path = folder / f"{Path(table).stem}.tsv"
        write_table(path, Renamed, renamed(union, table))
        paths.append(path)
    return paths
