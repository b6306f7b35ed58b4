"""A mapping made: the rules applied to every class of a table, the result as rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from collections.abc import Mapping as Pairs

from prep.mapping.rules import CONFIDENCE, FURTHER, ORDER, Finding, Option, Override, assign, descend, find, further
from prep.mapping.table import Doubt, Mapping, Pair
from prep.mapping.tables import SOURCE, load_overrides, load_source, load_targets
from prep.mapping.wordnet import WordNet, load_glosses, load_wordnet

PLAIN = ("override", "exact", "synonyms", "only-sense", "lemma")
MOST_MEANINGS = 6  # shown for a class in doubt


def map_classes(source: str, target: str, *, descendants: bool = False, overrides: bool = True) -> Mapping:
    """Find the source's synset of every class of a target.

    Args:
        source: "imagenet21k".
        target: a dataset or class table of ours ("ade20k", "ade20k-150"), or a file (see `table_rows`).
        descendants: also give the kinds of each class's synset to the class (rule `descendant`).
        overrides: apply the reviewed decisions; without them the rules alone speak.

    Raises:
        SettingsError: no such source or target.
        FormatError: a file that is no class list.
    """
    words, wnids = load_wordnet(), load_source(source)
    findings = _find_all(target, wnids, load_overrides(target) if overrides else {})
    chosen = assign(findings)
    pairs = [*chosen.values(), *further(findings, chosen)]
    if descendants:
        pairs += descend(words, findings, pairs, wnids)
    return Mapping(
        source,
        target,
        tuple(finding.target.name for finding in findings),
        tuple(_pairs(words, findings, chosen, pairs)),
        tuple(_doubts(words, findings, chosen, wnids)),
    )


def _find_all(target: str, wnids: Collection[str], decided: Pairs[str, Override]) -> list[Finding]:
    return [find(load_wordnet(), one, wnids, decided.get(one.name)) for one in load_targets(target)]


def load_meanings(target: str) -> list[tuple[str, ...]]:
    """The synsets that each class of a table means, by class index, the chief one first; () where none is known."""
    decided = load_overrides(target)
    found = _find_all(target, load_source(SOURCE), decided)
    return [
        decided[one.target.name].wnids if one.target.name in decided else (one.meaning,) if one.meaning else ()
        for one in found
    ]


def _pairs(
    words: WordNet, findings: Sequence[Finding], chosen: Pairs[int, Option], options: Sequence[Option]
) -> Iterator[Pair]:
    notes = {finding.target.index: finding.note for finding in findings}
    for option in sorted(options, key=lambda o: (o.target.index, ORDER.index(o.rule), o.wnid)):
        name, lemmas = _words(words, option.wnid)
        note = "" if option.rule in FURTHER else notes[option.target.index]
        confidence = _confidence(option, chosen.get(option.target.index))
        yield Pair(option.wnid, option.target.name, option.rule, confidence, option.target.index, name, lemmas, note)


def _confidence(option: Option, own: Option | None) -> float:
    """By rule; a descendant is no surer than the meaning of its class, which a hyponym or hypernym leaves as it is."""
    sure = CONFIDENCE[option.rule]
    if option.rule == "descendant" and own is not None and own.rule not in ("hyponym", "hypernym"):
        return min(sure, CONFIDENCE[own.rule])
    return sure


def _words(words: WordNet, wnid: str) -> tuple[str, str]:
    if wnid not in words:
        return "", ""  # ImageNet's own ids and words outside WordNet 3.0's nouns: none among the 21,841
    return words[wnid].name, ", ".join(words[wnid].lemmas)


def _doubts(
    words: WordNet, findings: Sequence[Finding], chosen: Pairs[int, Option], source: Collection[str]
) -> Iterator[Doubt]:
    """Classes without a pair or with one that is not plain, each with the meanings that it may have."""
    owners = {option.wnid: option.target for option in chosen.values()}
    for finding in findings:
        option = chosen.get(finding.target.index)
        if option is not None and option.rule in PLAIN:
            continue
        reason = _reason(finding, option, owners)
        wnid = option.wnid if option else ""
        meanings = [(c.synset.wnid, f"{c.cost:g}") for c in finding.candidates[:MOST_MEANINGS]]
        shown = {known for known, _ in meanings}
        meanings[:0] = [(known, "") for known in dict.fromkeys((wnid, finding.meaning)) if known and known not in shown]
        for known, cost in meanings or [("", "")]:
            name, lemmas = _words(words, known)
            gloss = load_glosses().get(known, "")
            row = (reason, known, int(known == wnid != ""), int(known in source), cost, name, lemmas, gloss)
            yield Doubt(finding.target.index, finding.target.name, *row, finding.note)


def _reason(finding: Finding, option: Option | None, owners: Pairs[str, object]) -> str:
    if option is not None and finding.decided:
        return "reviewed: a near synset stands in for its own, of which there are no images"
    if option is not None and option.rule == "close":
        return "mapped, but another meaning comes near"
    if option is not None:
        return f"mapped by {option.rule}: no images of its likeliest meaning"
    if any(other.wnid in owners for other in finding.options):
        return "not mapped: another class has its synset"
    if finding.decided:
        return "reviewed: nothing with images fits"
    if finding.meaning is not None:
        return "not mapped: no images of its likeliest meaning or near it"
    return f"not mapped: {finding.note}"
