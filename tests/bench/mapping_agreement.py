"""How our ImageNet mapping agrees with the published lists and with the hand-checked table.

    python -m tests.bench.mapping_agreement              prints the tables
    python -m tests.bench.mapping_agreement --write      also writes tests/prep/data/mapping-disagreements.tsv

Published: LarvSeg's 124 wnids for ADE20K's 150 classes and 585 for its 847 (`taxonomies/i124-wnids.tsv`,
`i585-wnids.tsv` of the real data). Hand-checked: tests/prep/data/ade-wnids-checked.tsv, made blind to the rules.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from prep.mapping import Mapping, map_classes
from prep.mapping.table import write_table
from prep.mapping.wordnet import load_glosses, load_wordnet
from tests.bench.timing import markdown
from tests.real import real_root

DATA = Path(__file__).resolve().parents[1] / "prep" / "data"
CHECKED = DATA / "ade-wnids-checked.tsv"
DISAGREEMENTS = DATA / "mapping-disagreements.tsv"
PUBLISHED = {"ade20k": ("i124-wnids.tsv", "ade_idx", 1), "ade20k-full": ("i585-wnids.tsv", "ade_trainId", 0)}
VERDICTS = ("accepted", "kind", "near", "wrong")
NEAR = re.compile(r"near: ((?:n\d{8} ?)+)")


@dataclass(frozen=True)
class Disagreement:
    """One class for which the published list and ours name different synsets.

    Attributes:
        right: which of them the hand-checked table accepts: ours, published, both, neither, or "ours: no pair" where
            the published synset is wrong and ours gives the class none.
        accepted: what it accepts, ImageNet-21K's or not.
    """

    taxonomy: str
    class_id: int
    class_: str
    ours: str
    rule: str
    ours_meaning: str
    published: str
    published_meaning: str
    right: str
    accepted: str
    why: str


def tsv(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated file."""
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def checked(target: str) -> dict[int, dict[str, str]]:
    """The hand-checked rows of a target by class index."""
    return {int(row["class_id"]): row for row in tsv(CHECKED) if row["taxonomy"] == target}


def published(target: str, folder: Path) -> dict[int, str]:
    """The published wnid of each class that has one."""
    name, column, offset = PUBLISHED[target]
    return {int(row[column]) - offset: row["wnid"] for row in tsv(folder / name)}


def judge(mapping: Mapping) -> Counter[tuple[str, str]]:
    """Pairs by (rule, verdict of the hand-checked table): accepted, kind (of an accepted synset), near or wrong."""
    rows, words = checked(mapping.target), load_wordnet()
    found: Counter[tuple[str, str]] = Counter()
    for pair in mapping.pairs:
        accepted = rows[pair.class_id]["accepted"].split()
        near = NEAR.match(rows[pair.class_id]["note"])
        kinds = (words.below(wnid, 20) for wnid in accepted if wnid in words)
        if pair.wnid in accepted:
            verdict = "accepted"
        elif any(pair.wnid in kind for kind in kinds):
            verdict = "kind"
        else:
            verdict = "near" if near and pair.wnid in near[1].split() else "wrong"
        found[pair.rule, verdict] += 1
    return found


def disagreements(mapping: Mapping, folder: Path) -> list[Disagreement]:
    """Every class of the published list whose synset there is not among ours."""
    rows, ours = checked(mapping.target), {}
    owners = {pair.wnid: pair.class_ for pair in mapping.pairs}
    for pair in reversed(mapping.pairs):
        ours[pair.class_id] = pair  # a class's own pair comes first, so it stays
    everything = {(pair.class_id, pair.wnid) for pair in mapping.pairs}
    found = []
    for index, wnid in sorted(published(mapping.target, folder).items()):
        if (index, wnid) in everything:
            continue
        mine, row = ours.get(index), rows[index]
        why = row["note"] or row["gloss"]
        if wnid in owners:
            why += f" (ours: {wnid} is {owners[wnid]!r})"
        found.append(
            Disagreement(
                mapping.target,
                index,
                row["class"],
                mine.wnid if mine else "",
                mine.rule if mine else "",
                meaning(mine.wnid) if mine else "",
                wnid,
                meaning(wnid),
                right(mine.wnid if mine else "", wnid, row["accepted"].split()),
                row["accepted"],
                why,
            )
        )
    return found


def right(ours: str, theirs: str, accepted: list[str]) -> str:
    """Which of two synsets of a class the hand-checked table accepts."""
    if theirs in accepted:
        return "both" if ours in accepted else "published"
    if not ours:
        return "ours: no pair"
    return "ours" if ours in accepted else "neither"


def meaning(wnid: str) -> str:
    """Readable name and definition of a synset."""
    words = load_wordnet()
    return f"{words[wnid].name if wnid in words else '?'}: {load_glosses().get(wnid, 'not among the 21,841')}"


def report(target: str, folder: Path) -> list[Disagreement]:
    """Print the tables of a target."""
    for overrides in (False, True):
        mapping = map_classes("imagenet21k", target, overrides=overrides)
        counts = judge(mapping)
        rules = dict.fromkeys(pair.rule for pair in mapping.pairs)
        table = [[rule, *(counts[rule, verdict] for verdict in VERDICTS)] for rule in rules]
        total = [sum(counts[rule, verdict] for rule in rules) for verdict in VERDICTS]
        print(
            f"\n{target}, {'with' if overrides else 'without'} overrides: {mapping.covered} classes covered, ", end=""
        )
        print(f"{total[0]} of {sum(total)} pairs accepted = {total[0] / sum(total):.1%}\n")
        print(markdown(["rule", *VERDICTS], [*table, ["all", *total]]))
    theirs = published(target, folder)
    found = disagreements(mapping, folder)
    verdicts = Counter(row.right for row in found)
    bad = sum(wnid not in checked(target)[index]["accepted"].split() for index, wnid in theirs.items())
    print(
        f"\n{target}: {len(theirs) - len(found)} of {len(theirs)} published pairs are ours too; of the other ", end=""
    )
    print(
        f"{len(found)} right are {dict(verdicts)}; the hand-checked table accepts {len(theirs) - bad} published pairs"
    )
    return found


def main() -> None:
    """Print everything; write the disagreements where asked."""
    root = real_root()
    if root is None:
        sys.exit("no real data: set SEGSHARDS_DATA to the folder that holds taxonomies/")
    found = [row for target in PUBLISHED for row in report(target, root / "taxonomies")]
    if "--write" in sys.argv[1:]:
        write_table(DISAGREEMENTS, Disagreement, found)


if __name__ == "__main__":
    main()
