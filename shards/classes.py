"""The class table: names, colours and what is known of each class; the index in the table is the class id."""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shards.errors import SettingsError

MAX_CLASSES = 65_534
IGNORE = 65_535  # what stands for void where a class id is expected
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """C classes; every field has C entries.

    Args:
        names: distinct, not empty.
        colours: RGB, 0 to 255.
        wnids: WordNet ids (``n02084071``), None where unknown.
        categories: coarser groups (Cityscapes: flat, human, ...), None where there are none.
        things: whether instances of the class are told apart, None where unknown.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    wnids: tuple[str | None, ...]
    categories: tuple[str | None, ...]
    things: tuple[bool | None, ...]

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 1 <= count <= MAX_CLASSES:
            raise SettingsError(f"{count} classes found; expected 1 to {MAX_CLASSES}")
        if any(len(field) != count for field in (self.colours, self.wnids, self.categories, self.things)):
            raise SettingsError(f"class table columns differ in length; expected {count} entries in each")
        if len(set(self.names)) != count or not all(self.names):
            twice = next((n for n in self.names if self.names.count(n) > 1), "")
            raise SettingsError(f"class name {twice!r} found twice or empty; expected distinct names")
        if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in self.colours):
            raise SettingsError("class colour found that is not three values of 0 to 255")

    @classmethod
    def make(
        cls,
        names: Sequence[str],
        colours: Sequence[Colour] | None = None,
        wnids: Sequence[str | None] | None = None,
        categories: Sequence[str | None] | None = None,
        things: Sequence[bool | None] | None = None,
    ) -> ClassTable:
        """A table with what is not given filled in: distinct colours, None elsewhere."""
        nothing: tuple[None, ...] = (None,) * len(names)
        return cls(
            tuple(names),
            tuple(colours) if colours else tuple(map(spread_colour, range(len(names)))),
            tuple(wnids) if wnids else nothing,
            tuple(categories) if categories else nothing,
            tuple(things) if things else nothing,
        )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """sha256 hex over the canonical JSON of the table: equal tables, equal digests."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists, ready for JSON."""
        return {
            "names": list(self.names),
            "colours": [list(c) for c in self.colours],
            "wnids": list(self.wnids),
            "categories": list(self.categories),
            "things": list(self.things),
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> ClassTable:
        """The inverse of ``to_dict``; raises SettingsError for anything that is not such a dict."""
        try:
            names, colours = tuple(table["names"]), tuple((int(r), int(g), int(b)) for r, g, b in table["colours"])
            columns = tuple(table["wnids"]), tuple(table["categories"]), tuple(table["things"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SettingsError("class table lacks names, colours, wnids, categories or things") from error
        texts = [*names, *(v for column in columns[:2] for v in column if v is not None)]
        if not all(isinstance(v, str) for v in texts) or not all(v is None or type(v) is bool for v in columns[2]):
            raise SettingsError("class table holds a value of the wrong type; expected names as strings")
        return cls(names, colours, *columns)


def spread_colour(index: int) -> Colour:
    """A colour for class ``index``, far from its neighbours': hues by the golden ratio, three lightnesses."""
    hue, light = (index * 0.618033988749895) % 1.0, (0.5, 0.35, 0.68)[index % 3]
    r, g, b = colorsys.hls_to_rgb(hue, light, 0.75)
    return round(r * 255), round(g * 255), round(b * 255)
