"""Which class of one label space is which class of another: the ways of `prep.mapping.union`, and why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prep.mapping.wordnet import load_wordnet

FIRST, MEANING, WNID, RELEASE = "first", "meaning", "wnid", "release"
WAYS = (FIRST, MEANING, WNID)
SAYS = {FIRST: "first names", MEANING: "meaning", WNID: "synsets", RELEASE: "the release's names"}


@dataclass(frozen=True)
class Entry:
    """One class of one table.

    Attributes:
        label: the name by which first names are compared.
        called: its name in a union, if that is free.
        wnids: the synsets that it means, the chief one first; () where unknown.
        release: its name in LarvSeg's release, None where that has no list.
    """

    table: str
    index: int
    name: str
    label: str
    called: str
    wnids: tuple[str, ...]
    release: str | None = None


@dataclass
class Slot:
    """One class of a union while it is made; ``members`` are the classes that it joins."""

    name: str
    label: str
    base: bool
    members: list[Entry] = field(default_factory=list)

    @property
    def wnids(self) -> tuple[str, ...]:
        """The synsets of all members, chief ones first."""
        chief = [member.wnids[0] for member in self.members if member.wnids]
        return tuple(dict.fromkeys([*chief, *(wnid for member in self.members for wnid in member.wnids)]))


@dataclass(frozen=True)
class Difference:
    """A class that is base by one way of matching and novel by another."""

    name: str
    base_by: tuple[str, ...]
    novel_by: tuple[str, ...]
    reason: str


def match(slots: Sequence[Slot], entries: Sequence[Entry], way: str) -> dict[Entry, Slot]:
    """The slot of each entry of one table; entries that match nothing are absent.

    A slot takes one entry of a table, the first in order; by `wnid` it takes all.
    """
    if way == WNID:
        return _by_synset(slots, entries)
    if way == RELEASE:
        return _once(entries, {e: slot for e in entries if e.release and (slot := by_label(slots).get(e.release))})
    labels = by_label(slots)
    named = {entry: labels[entry.label] for entry in entries if entry.label in labels}
    if way == FIRST:
        return _once(entries, named)
    found = _once(entries, {e: s for e, s in named.items() if not differ(e.wnids, s.wnids)})
    taken = {id(slot) for slot in found.values()}
    others = {e: s for e, s in _by_synset(slots, entries).items() if e not in found and id(s) not in taken}
    return found | _once(entries, others)


def differ(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether both meanings are known and have no synset in common."""
    return bool(one) and bool(other) and not set(one) & set(other)


def by_label(slots: Sequence[Slot]) -> dict[str, Slot]:
    """Slots by the name that first names are compared with; of two, the first."""
    found: dict[str, Slot] = {}
    for slot in slots:
        found.setdefault(slot.label, slot)
    return found


def _by_synset(slots: Sequence[Slot], entries: Sequence[Entry]) -> dict[Entry, Slot]:
    """Each entry's slot by its synsets, chief ones before others on both sides."""
    owners: dict[str, Slot] = {}
    for rank in (slice(1), slice(1, None)):
        for slot in slots:
            for member in slot.members:
                for wnid in member.wnids[rank]:
                    owners.setdefault(wnid, slot)
    return {entry: owners[wnid] for entry in entries for wnid in reversed(entry.wnids) if wnid in owners}


def _once(entries: Sequence[Entry], found: Mapping[Entry, Slot]) -> dict[Entry, Slot]:
    """Of the entries that want one slot, the first."""
    taken: set[int] = set()
    kept = {}
    for entry in entries:
        if entry in found and id(found[entry]) not in taken:
            taken.add(id(found[entry]))
            kept[entry] = found[entry]
    return kept


def compare(
    slots: Sequence[Slot], entries: Sequence[Entry], ways: Mapping[str, Mapping[Entry, Slot]]
) -> list[Difference]:
    """The entries that are base by one way and novel by another, with the reason."""
    labels = by_label(slots)
    found = []
    for entry in entries:
        base_by = tuple(way for way in ways if entry in ways[way])
        novel_by = tuple(way for way in ways if entry not in ways[way])
        if base_by and novel_by:
            reason = _reasons(entry, labels.get(entry.label), ways)
            found.append(Difference(entry.name, base_by, novel_by, reason))
    return found


def _reasons(entry: Entry, namesake: Slot | None, ways: Mapping[str, Mapping[Entry, Slot]]) -> str:
    why = []
    meant = ways.get(MEANING, {}).get(entry)
    if meant is not None and meant is not namesake:
        why.append(f"same synset as {meant.name!r}: {_names(set(entry.wnids) & set(meant.wnids) or entry.wnids)}")
    if namesake is not None and meant is None:
        if differ(entry.wnids, namesake.wnids):
            why.append(f"{_names(entry.wnids)} here, but {namesake.name!r} is {_names(namesake.wnids)}")
        else:
            why.append(f"{namesake.name!r} is taken by another class")
    if RELEASE in ways and entry.release is not None and entry.release != entry.label:
        why.append(f"the release calls it {entry.release!r}")
    return "; ".join(why)


def _names(wnids: Sequence[str] | set[str]) -> str:
    words = load_wordnet()
    return " ".join(f"{wnid} {words[wnid].name}" if wnid in words else wnid for wnid in sorted(wnids))
