"""Label spaces of several datasets made one: one name, one class.

The first table is the base: its classes have pixel labels. Each further table is matched to what is there by one way:

    first    equal first synonyms (the published protocol for ADE20K's 150 classes)
    meaning  equal synsets, be the names equal or not; where a synset is not known, equal first synonyms
    wnid     equal synsets only (ImageNet, whose names collide)

`prep/taxonomies/mapping/union-rules.tsv` says which table takes which way (meaning where it says nothing), and
`union-names.tsv` what classes are called in a union: COCO-Stuff's seven walls are all "wall", which makes one class of
them. Apart from that, two classes of one table stay two, so that its own evaluation stays possible: ADE's "bed" meets
COCO's bed, its "beds" is novel. Synsets are those of `prep.mapping.rules`, overrides included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prep.mapping.build import load_meanings
from prep.mapping.matching import (
    FIRST,
    MEANING,
    RELEASE,
    WAYS,
    WNID,
    Difference,
    Entry,
    Slot,
    by_label,
    compare,
    differ,
    match,
)
from prep.mapping.names import first
from prep.mapping.table import write_table
from prep.mapping.tables import find_table, table_rows
from prep.mapping.wordnet import load_wordnet
from prep.taxonomy import rows
from shards.errors import SettingsError


@dataclass(frozen=True)
class UnionClass:
    """One row of a union's table; the fields are the columns.

    Attributes:
        base: 1 where the first table has the class, else 0.
        sources: the tables that have it, by commas.
        ids: its indices in each: "cocostuff-171:161,159 ade20k-150:0".
        wordnet: its chief synset, "" where unknown.
    """

    id: int
    name: str
    base: int
    sources: str
    ids: str
    wordnet: str


@dataclass(frozen=True)
class Conflict:
    """One first name with two meanings: class, table and synset of each, and whether the union makes them one class."""

    label: str
    one: str
    other: str
    merged: bool


@dataclass(frozen=True)
class Joined:
    """How one further table met the others.

    Attributes:
        way: how it was matched.
        size: its classes.
        base: by each way, how many of them are classes of the base table.
        differences: classes on which the ways differ.
    """

    table: str
    way: str
    size: int
    base: dict[str, int]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Union:
    """A label space over several tables; ``tables[0]`` is the base."""

    tables: tuple[str, ...]
    classes: tuple[UnionClass, ...]
    names: int  # class names in the base table, before equal ones became one class
    joined: tuple[Joined, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def base(self) -> int:
        """How many classes are base."""
        return sum(one.base for one in self.classes)


def unite(names: Sequence[str], way: str | None = None) -> Union:
    """One label space over two or more tables.

    Args:
        names: datasets, class tables or files (`prep.mapping.tables.table_rows`); the first is the base.
        way: match every further table so; None: each by its own way.

    Raises:
        SettingsError: fewer than two tables, one twice, an unknown one, an unknown way.
        FormatError: a file that is no class list.
    """
    if way is not None and way not in WAYS:
        raise SettingsError(f"way of matching {way!r} found: expected one of {', '.join(WAYS)}")
    tables = [name if Path(name).is_file() else find_table(name) for name in names]
    if len(tables) < 2 or len({Path(table).resolve() for table in tables}) < len(tables):
        raise SettingsError(f"tables {', '.join(names) or 'none'} found: expected two or more different ones")
    hows = [way or _ways().get(table, MEANING) for table in tables[1:]]
    slots: list[Slot] = []
    base = _entries(tables[0], FIRST in hows)
    _add(slots, base, {}, base=True)
    joined: list[Joined] = []
    conflicts: list[Conflict] = []
    for table, how in zip(tables[1:], hows, strict=True):
        entries = _entries(table, FIRST in hows)
        found = match(slots, entries, how)
        joined.append(_join(slots, table, entries, how, found))
        conflicts += _conflicts(slots, entries, found) if how != WNID else []
        _add(slots, entries, found, base=False)
    classes = tuple(_row(number, slot, tables) for number, slot in enumerate(slots))
    return Union(tuple(tables), classes, len(base), tuple(joined), tuple(conflicts))


def write_union(union: Union, path: Path) -> None:
    """Write the union's class table as TSV (columns id, name, base, sources, ids, wordnet); same union, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, UnionClass, union.classes)


def _ways() -> dict[str, str]:
    return {row["taxonomy"]: row["match"] for row in rows("mapping/union-rules")}


def _entries(table: str, by_first: bool) -> list[Entry]:
    """A table's classes; where a union goes by first names, those that differ for its sake are shown too."""
    named = {row["class"]: row for row in rows("mapping/union-names") if row["taxonomy"] == table}
    released = {row["class"]: row["name"] for row in rows("mapping/release-names") if row["taxonomy"] == table}
    meanings = load_meanings(table)
    found = []
    for row in table_rows(table):
        name, index = row["name"], int(row["id"])
        called = named[name]["name"] if name in named else name if row.get("wnid") else first(name)
        label = (named[name]["first"] if name in named else "") or called
        release = released.get(name, label.replace(" ", "-")) if released else None
        found.append(Entry(table, index, name, label, label if by_first else called, meanings[index], release))
    return found


def _add(slots: list[Slot], entries: Sequence[Entry], found: dict[Entry, Slot], *, base: bool) -> None:
    """Put a table's classes into the union: the slot that was found, one called the same on purpose, or a new one."""
    taken = {slot.name for slot in slots}
    shared = {(row["taxonomy"], row["class"]) for row in rows("mapping/union-names")}
    fresh: dict[str, Slot] = {}
    for entry in entries:
        slot = found.get(entry)
        if slot is None and (entry.table, entry.name) in shared:
            slot = fresh.get(entry.label)
        if slot is None:
            slot = Slot(_free_name(entry, taken), entry.label, base)
            taken.add(slot.name)
            slots.append(slot)
            fresh.setdefault(entry.label, slot)
        slot.members.append(entry)


def _free_name(entry: Entry, taken: set[str]) -> str:
    """A name that no class has yet: the label, the whole name, the name with its synset, with its table."""
    synset = load_wordnet()[entry.wnids[0]].name if entry.wnids and entry.wnids[0] in load_wordnet() else entry.table
    choices = (entry.called, entry.name, f"{entry.name} ({synset})", f"{entry.name} ({entry.table})")
    return next((name for name in choices if name not in taken), f"{entry.name} ({entry.table} {entry.index})")


def _join(slots: Sequence[Slot], table: str, entries: list[Entry], how: str, found: dict[Entry, Slot]) -> Joined:
    """Count base classes by the way that was taken and, beside it, by those that it could be compared with."""
    base = [slot for slot in slots if slot.base]
    ways = {how: {entry: slot for entry, slot in found.items() if slot.base}}
    if how != WNID:
        others = (FIRST, MEANING, RELEASE) if any(entry.release for entry in entries) else (FIRST, MEANING)
        ways |= {other: match(base, entries, other) for other in others if other != how}
    differences = tuple(compare(base, entries, ways))
    return Joined(table, how, len(entries), {way: len(ways[way]) for way in ways}, differences)


def _conflicts(slots: Sequence[Slot], entries: Sequence[Entry], found: dict[Entry, Slot]) -> Iterator[Conflict]:
    labels = by_label(slots)
    for entry in entries:
        namesake = labels.get(entry.label)
        if namesake is not None and differ(entry.wnids, namesake.wnids):
            one = ", ".join(_meaning(member) for member in namesake.members)
            yield Conflict(entry.label, one, _meaning(entry), found.get(entry) is namesake)


def _meaning(entry: Entry) -> str:
    words = load_wordnet()
    known = [f"{wnid} {words[wnid].name}" if wnid in words else wnid for wnid in entry.wnids[:1]]
    return f"{entry.name!r} of {entry.table} = {known[0] if known else 'unknown'}"


def _row(number: int, slot: Slot, tables: Sequence[str]) -> UnionClass:
    indices = {table: [str(m.index) for m in slot.members if m.table == table] for table in tables}
    present = [table for table in tables if indices[table]]
    return UnionClass(
        number,
        slot.name,
        int(slot.base),
        ",".join(present),
        " ".join(f"{table}:{','.join(indices[table])}" for table in present),
        next(iter(slot.wnids), ""),
    )
