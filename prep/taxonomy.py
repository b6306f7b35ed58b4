"""Class tables and label-id mappings, read from the TSV files in `prep/taxonomies/`.

File names carry the counts and tests hold them: `cityscapes-19.tsv` is a class table with 19 rows,
`cityscapes-34_to_19.tsv` maps 34 source ids to 19 class indices. A mapping is applied as ONE lookup table: mapping
ids one after the other lets remaps chain (1 -> 2, then 2 -> 3 turns 1 into 3).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import SampleError

VOID = "void"
_UNKNOWN = 65534  # a class table holds at most 65,534 classes (0..65533), so this index is free


def rows(name: str) -> list[dict[str, str]]:
    """The rows of `prep/taxonomies/<name>.tsv` as dictionaries, by column name."""
    text = (resources.files("prep") / "taxonomies" / f"{name}.tsv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def parse_colour(text: str) -> tuple[int, int, int]:
    """ "128,64,0" -> (128, 64, 0)."""
    red, green, blue = (int(part) for part in text.split(","))
    return red, green, blue


@cache
def load_classes(name: str) -> ClassTable:
    """The class table in `<name>.tsv`: columns id and name and, where known, colour, category, thing (0 or 1), wordnet.

    `wordnet` is the WordNet 3.0 id of the class ("n02084071"), or empty; tables in which every class has one of its
    own call the column `wnid`. Where no row has a colour, colours are spread.
    """
    table = rows(name)
    if [int(row["id"]) for row in table] != list(range(len(table))):
        raise ValueError(f"{name}.tsv: ids are not 0..{len(table) - 1} in order")
    things = [{"0": False, "1": True}.get(row.get("thing") or "") for row in table]
    return ClassTable.make(
        tuple(row["name"] for row in table),
        colours=tuple(parse_colour(row["colour"]) for row in table) if table[0].get("colour") else None,
        wnids=tuple(row.get("wnid") or row.get("wordnet") or None for row in table),
        categories=tuple(row.get("category") or None for row in table),
        things=tuple(things),
    )


@dataclass(frozen=True)
class Remap:
    """Source ids -> class indices by one lookup table.

    Attributes:
        dataset: named in errors.
        table: uint16 [largest id + 1]; class index, IGNORE for void, or a marker for ids that the source never has.
    """

    dataset: str
    table: NDArray[np.uint16]
    whole: bool  # every id below the table's length is defined

    @classmethod
    def from_pairs(cls, dataset: str, pairs: Mapping[int, int]) -> Remap:
        """Build the table from {source id: class index or IGNORE}."""
        table = np.full(max(pairs) + 1, _UNKNOWN, np.uint16)
        table[list(pairs)] = list(pairs.values())
        return cls(dataset, table, len(pairs) == len(table))

    def apply(self, ids: NDArray[np.uint8] | NDArray[np.uint16], where: str) -> NDArray[np.uint16]:
        """Map ids [H, W] to class indices uint16 [H, W].

        Raises:
            SampleError: an id that the dataset does not define; names the sample, the id and its first pixel.
        """
        if int(ids.max(initial=0)) >= len(self.table):
            raise self._unknown(ids, where)
        hard = self.table[ids]
        if not self.whole and bool((hard == _UNKNOWN).any()):
            raise self._unknown(ids, where)
        return hard

    def _unknown(self, ids: NDArray[np.uint8] | NDArray[np.uint16], where: str) -> SampleError:
        known = np.flatnonzero(self.table != _UNKNOWN)
        bad = ~np.isin(ids, known)
        y, x = (int(v) for v in np.argwhere(bad)[0])
        return SampleError(
            f"{where}: unknown label id {int(ids[y, x])} at row {y}, column {x} ({int(bad.sum())} such pixels); "
            f"{self.dataset} defines {len(known)} ids from {known[0]} to {known[-1]}"
        )


@dataclass(frozen=True)
class ColourRemap:
    """Label colours -> class indices by one lookup table over all 24-bit colours.

    The table is a zero-initialised 32 MiB array of which only the few pages that hold a colour are ever touched.
    """

    dataset: str
    table: NDArray[np.uint16]  # [2^24]; 0 = unknown colour, else class index + 1, IGNORE for void

    @classmethod
    def from_pairs(cls, dataset: str, pairs: Mapping[tuple[int, int, int], int]) -> ColourRemap:
        """Build the table from {(red, green, blue): class index or IGNORE}."""
        table = np.zeros(1 << 24, np.uint16)
        for (red, green, blue), index in pairs.items():
            table[red << 16 | green << 8 | blue] = index if index == IGNORE else index + 1
        return cls(dataset, table)

    def apply(self, rgb: NDArray[np.uint8], where: str) -> NDArray[np.uint16]:
        """Map colours uint8 [H, W, 3] to class indices uint16 [H, W]; SampleError names an unknown colour."""
        code = np.left_shift(rgb[..., 0], 16, dtype=np.uint32)
        code |= np.left_shift(rgb[..., 1], 8, dtype=np.uint32)
        code |= rgb[..., 2]
        hard = self.table[code]
        bad = hard == 0
        if bad.any():
            y, x = (int(v) for v in np.argwhere(bad)[0])
            colour = ",".join(str(int(v)) for v in rgb[y, x])
            raise SampleError(
                f"{where}: unknown label colour {colour} at row {y}, column {x} ({int(bad.sum())} such pixels); "
                f"{self.dataset} defines {int((self.table != 0).sum())} colours"
            )
        return np.where(hard == IGNORE, np.uint16(IGNORE), hard - np.uint16(1))


def _target(text: str) -> int:
    return IGNORE if text == VOID else int(text)


@cache
def load_remap(name: str, dataset: str) -> Remap:
    """The mapping in `<name>.tsv`: columns id and to (a class index, or the word void)."""
    return Remap.from_pairs(dataset, {int(row["id"]): _target(row["to"]) for row in rows(name)})


@cache
def load_colour_remap(name: str, dataset: str) -> ColourRemap:
    """The mapping in `<name>.tsv`: columns colour and to (a class index, or the word void)."""
    return ColourRemap.from_pairs(dataset, {parse_colour(row["colour"]): _target(row["to"]) for row in rows(name)})
