"""A mapping as a table: rows, the TSV files, what is printed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from prep.class_file import read_rows
from prep.mapping.rules import FURTHER, ORDER
from shards.errors import FormatError, naming

_WNID = re.compile(r"n[0-9]{8}")
NEEDED = ("wnid", "class", "rule", "confidence")


@dataclass(frozen=True)
class Pair:
    """One row of a mapping; the fields are the columns (`class_` is written as class).

    Attributes:
        wnid: the ImageNet folder; no wnid stands in two rows.
        class_: the class's name in the target's table.
        rule: how the pair was found (`prep.mapping.rules`); `also` and `descendant` mark further wnids of a class.
        confidence: 0 to 1, by rule.
        class_id: index of the class.
        synset: readable name of the wnid's synset.
        lemmas: its words.
        note: why, where there is something to say.
    """

    wnid: str
    class_: str
    rule: str
    confidence: float
    class_id: int
    synset: str
    lemmas: str
    note: str = ""


@dataclass(frozen=True)
class Doubt:
    """One meaning of a class that a person should look at.

    Attributes:
        reason: why the class is listed.
        chosen: 1 for the synset that the mapping uses, else 0.
        images: 1 where the source has the synset, else 0.
        cost: as in `prep.mapping.meaning`; empty where the synset was not found by its name.
        gloss: its definition, where it is among the 21,841.
        note: what the rules or a person say of the class.
    """

    class_id: int
    class_: str
    reason: str
    wnid: str
    chosen: int
    images: int
    cost: str
    synset: str
    lemmas: str
    gloss: str
    note: str


@dataclass(frozen=True)
class Mapping:
    """Synsets of a source for the classes of a target.

    Attributes:
        source, target: as they were asked for.
        classes: the target's class names, by index.
        pairs: ordered by class, a class's own pair before its descendants.
        doubts: for a person, ordered by class.
    """

    source: str
    target: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    doubts: tuple[Doubt, ...]

    @property
    def covered(self) -> int:
        """How many classes have at least one synset."""
        return len({pair.class_id for pair in self.pairs})

    @property
    def class_of(self) -> dict[str, int]:
        """wnid -> class index, for a class-mapped subset."""
        return {pair.wnid: pair.class_id for pair in self.pairs}


def review_path(path: Path) -> Path:
    """Where the doubts go: "a/map.tsv" -> "a/map.review.tsv"."""
    return path.with_name(f"{path.stem}.review.tsv")


def write_mapping(mapping: Mapping, path: Path) -> None:
    """Write ``path`` (the pairs) and its review table beside it; same mapping, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, Pair, mapping.pairs)
    write_table(review_path(path), Doubt, mapping.doubts)


def write_table(path: Path, kind: type[object], lines: Sequence[object]) -> None:
    """Write dataclass instances as TSV: UTF-8, LF, one column a field, a field's closing underscore dropped."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    with naming(path), open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(name.rstrip("_") for name in names) + "\n")
        file.writelines("\t".join(_cell(getattr(line, name)) for name in names) + "\n" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())  # no tab or line end leaves its cell


def read_mapping(path: Path) -> dict[str, str]:
    """wnid -> class name from a mapping's TSV, ours or a person's (only the columns wnid and class are needed).

    Raises:
        UserError: not text in UTF-8.
        FormatError: not such a table, what is no wnid, or a wnid that stands in it twice.
    """
    found: dict[str, str] = {}
    for number, row in read_rows(path):
        wnid, name = row.get("wnid"), row.get("class")
        if not wnid or not name:
            raise FormatError(path, f"line {number} lacks wnid or class; expected a TSV with these columns")
        if not _WNID.fullmatch(wnid):
            raise FormatError(path, f"line {number}: {wnid[:40]!r} is no WordNet id; expected n and eight digits")
        if wnid in found:
            raise FormatError(path, f"line {number}: {wnid} stands in the table twice; a wnid leads to one class")
        found[wnid] = name
    if not found:
        raise FormatError(path, "no rows found; expected a TSV with the columns wnid and class")
    return found


def describe_mapping(mapping: Mapping) -> str:
    """Coverage, pairs by rule, and how many classes wait for a person, as lines for the terminal."""
    own = [pair for pair in mapping.pairs if pair.rule not in FURTHER]
    rules = Counter(pair.rule for pair in mapping.pairs)
    doubtful = Counter(reason for _, reason in dict.fromkeys((d.class_id, d.reason) for d in mapping.doubts))
    lines = [
        f"{mapping.source} -> {mapping.target}: {mapping.covered} of {len(mapping.classes)} classes covered, "
        f"{len(own)} pairs of a class with its synset"
        + (f", {len(mapping.pairs) - len(own)} further" if len(mapping.pairs) > len(own) else ""),
        *_table((rule, rules[rule], _confidence(mapping.pairs, rule)) for rule in ORDER if rules[rule]),
    ]
    if mapping.doubts:
        lines.append("classes without a plain pair, listed with their meanings for a person:")
        lines += [f"  {count:>5} {reason}" for reason, count in sorted(doubtful.items())]
    return "\n".join(lines)


def _table(lines: Iterable[tuple[str, int, str]]) -> list[str]:
    return [f"  {count:>5} {rule:<11} confidence {confidence}" for rule, count, confidence in lines]


def _confidence(pairs: Sequence[Pair], rule: str) -> str:
    values = sorted({pair.confidence for pair in pairs if pair.rule == rule})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
