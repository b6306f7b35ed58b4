"""The ordered rules that lead from a class to one ImageNet synset, each with its confidence.

    override    a reviewed line of `prep/taxonomies/mapping/overrides.tsv`; rule 1 of all where there is one
    exact       the target table names the class's synset, and the source has it
    synonyms    two or more synonyms of the name are lemmas of one synset, and no other meaning comes near
    only-sense  the name has one meaning in WordNet
    lemma       the name has several meanings and one leads clearly (see `prep.mapping.meaning`)
    close       as lemma, but another meaning comes near: a person should look
    hyponym     the source lacks the meaning, but has a kind of it at most HYPONYM_DEPTH steps below: its images are
                right, though they show a part of the class only
    hypernym    the source has only what the meaning is a kind of, at most HYPERNYM_DEPTH steps above: many of its
                images show something else
    also        further synsets that an override names: "minibike, motorbike" is the minibike, but ADE labels every
                motorcycle so
    descendant  only where asked for: kinds of a class's synset, at any depth, that no nearer class claims

A class gets at most one pair by a rule other than the last two, and no wnid goes to two classes. Where two classes lead
to one synset it goes to the one that it is named after, then by CONTEST, then to the greater lead, then to the earlier
class; the other goes without and is listed for review, since its next meaning would be a wrong one.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prep.mapping.meaning import Candidate, candidates
from prep.mapping.names import key, terms, turned
from prep.mapping.wordnet import WordNet

# The share of pairs right in the hand-checked table of ADE20K's 847 classes, before any override was written (for
# hyponym: of pairs right as far as they go, halved since they show a part of the class).
CONFIDENCE = {
    "override": 1.0,
    "exact": 1.0,
    "synonyms": 0.99,
    "only-sense": 0.99,
    "lemma": 0.8,
    "close": 0.45,
    "hyponym": 0.5,
    "hypernym": 0.1,
    "also": 1.0,
    "descendant": 0.9,
}
ORDER = tuple(CONFIDENCE)
FURTHER = ("also", "descendant")
CONTEST = ("exact", "synonyms", "only-sense", "lemma", "override", "close", "hyponym", "hypernym")
CLEAR = 1.0  # lead in cost from which a meaning is called clear
HYPONYM_DEPTH = 2
HYPERNYM_DEPTH = 1
NO_NOUN = "WordNet has no such noun"
DEEPEST = 20  # no noun lies deeper under entity


@dataclass(frozen=True)
class Target:
    """One class to be mapped: its index, its name, its synset where the table gives one."""

    index: int
    name: str
    wnid: str | None = None


@dataclass(frozen=True)
class Override:
    """What a person decided.

    Attributes:
        wnids: the class's synsets, the one that it means first; (): WordNet has none that fits.
        near: where the source lacks them: the synset to use in their place, "none" for no pair, "" for what the rules
            find near the first.
        why: the evidence.
    """

    wnids: tuple[str, ...]
    near: str = ""
    why: str = ""


@dataclass(frozen=True)
class Option:
    """A synset that a class could get, before classes compete for it.

    Attributes:
        lead: by how much its meaning is likelier than any other (`prep.mapping.meaning`).
        named: whether the class's first name, as it stands, is a word for the synset.
    """

    target: Target
    wnid: str
    rule: str
    lead: float = 0.0
    named: bool = False

    @property
    def rank(self) -> tuple[bool, bool, int, float, int]:
        """Smaller wins a synset that two classes want."""
        return self.rule != "exact", not self.named, CONTEST.index(self.rule), -self.lead, self.target.index


@dataclass(frozen=True)
class Finding:
    """What the rules say of one class.

    Attributes:
        options: best first; the class gets the first that no better claim takes.
        meaning: the synset that the class is taken to mean, whether the source has it or not.
        candidates: the meanings of its name, likeliest first, for a person's eye.
        note: why there is no option, or none that is plain.
        decided: whether a person decided it.
    """

    target: Target
    options: tuple[Option, ...] = ()
    meaning: str | None = None
    candidates: tuple[Candidate, ...] = ()
    note: str = ""
    decided: bool = False


def find(words: WordNet, target: Target, source: Collection[str], override: Override | None = None) -> Finding:
    """Apply the rules to one class."""
    if override is not None:
        return _decided(words, target, source, override)
    if target.wnid is not None:
        return _exact(words, target, source, target.wnid)
    found = _candidates(words, target.name, source)
    if not found:
        return Finding(target, note=NO_NOUN)
    best = _best(found, source)
    wnid = best.synset.wnid
    if wnid not in source:
        note = f"no images of {best.synset.name}"
        return Finding(target, tuple(_near(words, target, wnid, source)), wnid, found, note)
    lead = _lead(best, found)
    rule = _rule(best, found, lead)
    note = "another meaning comes near" if rule == "close" else ""
    return Finding(target, (_option(words, target, wnid, rule, lead),), wnid, found, note)


def _decided(words: WordNet, target: Target, source: Collection[str], override: Override) -> Finding:
    """A class that a person looked at."""
    if not override.wnids:
        return Finding(target, note=override.why, decided=True)
    meaning = override.wnids[0]
    options = tuple(_option(words, target, wnid, "override") for wnid in override.wnids if wnid in source)
    if not options and override.near in source:
        rule = "hyponym" if override.near in words.below(meaning, DEEPEST) else "hypernym"
        options = (_option(words, target, override.near, rule),)
    elif not options and not override.near:
        options = tuple(_near(words, target, meaning, source))
    return Finding(target, options, meaning, note=override.why, decided=True)


def _exact(words: WordNet, target: Target, source: Collection[str], wnid: str) -> Finding:
    """A class whose synset the table gives: that synset, or what is near it."""
    if wnid in source:
        return Finding(target, (_option(words, target, wnid, "exact"),), wnid)
    if wnid not in words:
        return Finding(target, note=f"WordNet 3.0 has no {wnid}")
    return Finding(target, tuple(_near(words, target, wnid, source)), wnid, note=f"no images of {words[wnid].name}")


def _option(words: WordNet, target: Target, wnid: str, rule: str, lead: float = 0.0) -> Option:
    lemmas = {key(lemma) for lemma in words[wnid].lemmas} if wnid in words else set()
    return Option(target, wnid, rule, lead, any(key(term) in lemmas for term in terms(target.name)[:1]))


def _candidates(words: WordNet, name: str, source: Collection[str]) -> tuple[Candidate, ...]:
    """The meanings of a name; where it has none, those of COCO's "wall-brick" turned into "brick wall"."""
    found = candidates(words, name, source)
    if not found:
        swapped = ", ".join(filter(None, map(turned, terms(name))))
        found = candidates(words, swapped, source) if swapped else []
    return tuple(found)


def _best(found: Sequence[Candidate], source: Collection[str]) -> Candidate:
    """The likeliest meaning, or one with images that comes near it."""
    with_images = next((c for c in found if c.synset.wnid in source), found[0])
    return with_images if with_images.cost - found[0].cost < CLEAR else found[0]


def _lead(best: Candidate, found: Sequence[Candidate]) -> float:
    """By how much the best meaning is cheaper than any other."""
    return min((other.cost - best.cost for other in found if other is not best), default=math.inf)


def _rule(best: Candidate, found: Sequence[Candidate], lead: float) -> str:
    """Which rule a meaning with images falls under."""
    if not best.visible or lead < CLEAR:
        return "close"
    if len(best.matched) > 1:
        return "synonyms"
    return "only-sense" if len(found) == 1 else "lemma"


def _near(words: WordNet, target: Target, wnid: str, source: Collection[str]) -> Iterator[Option]:
    """What the source has close to a meaning that it lacks: kinds of it first, then what it is a kind of."""
    tails = terms(target.name)

    def order(step: tuple[str, int]) -> tuple[int, bool, int, str]:
        named = any(lemma.lower().endswith(tails) for lemma in words[step[0]].lemmas)  # "kitchen sink" for "sink"
        return step[1], not named, -len(words.below(step[0], HYPONYM_DEPTH)), step[0]

    for rule, steps in (
        ("hyponym", words.below(wnid, HYPONYM_DEPTH)),
        ("hypernym", words.above(wnid, HYPERNYM_DEPTH)),
    ):
        for near, _ in sorted(steps.items(), key=order):
            if near in source:
                yield _option(words, target, near, rule)


def assign(findings: Sequence[Finding]) -> dict[int, Option]:
    """Class index -> its synset, no synset twice: better claims choose first, losers take their next option."""
    queue = [(finding.options[0].rank, number, 0) for number, finding in enumerate(findings) if finding.options]
    heapq.heapify(queue)
    taken: set[str] = set()
    chosen: dict[int, Option] = {}
    while queue:
        _, number, at = heapq.heappop(queue)
        options = findings[number].options
        if options[at].wnid not in taken:
            taken.add(options[at].wnid)
            chosen[options[at].target.index] = options[at]
        elif at + 1 < len(options):
            heapq.heappush(queue, (options[at + 1].rank, number, at + 1))
    return chosen


def further(findings: Sequence[Finding], chosen: Mapping[int, Option]) -> list[Option]:
    """The rule `also`: what else overrides name, where no class has it; a synset that two name goes to the earlier."""
    taken = {option.wnid for option in chosen.values()}
    found = []
    for finding in findings:
        for option in finding.options:
            if option.rule == "override" and finding.target.index in chosen and option.wnid not in taken:
                taken.add(option.wnid)
                found.append(Option(finding.target, option.wnid, "also"))
    return found


def descend(
    words: WordNet, findings: Sequence[Finding], pairs: Sequence[Option], source: Collection[str]
) -> list[Option]:
    """The rule `descendant`: kinds of the classes' synsets, each given to the class fewest steps above it.

    A synset that two classes reach in equally few steps contradicts itself and goes to neither. A class that has its
    pair by `hypernym` claims nothing there: below that synset lies mostly what the class is not. A class without a pair
    still claims the kinds of its meaning, unless another class has that meaning.
    """
    targets = {finding.target.index: finding.target for finding in findings}
    paired = {option.target.index for option in pairs}
    edge: dict[str, set[int]] = defaultdict(set)
    for finding in findings:
        if finding.meaning is not None and (finding.meaning not in source or finding.target.index in paired):
            edge[finding.meaning].add(finding.target.index)
    edge.update({option.wnid: {option.target.index} for option in pairs if option.rule != "hypernym"})
    owners = dict(edge)
    while edge:
        below: dict[str, set[int]] = defaultdict(set)
        for wnid, indices in edge.items():
            for child in words.below(wnid, 1) if wnid in words else ():
                if child not in owners:
                    below[child] |= indices
        owners.update(below)
        edge = below
    taken = {option.wnid for option in pairs}
    return [
        Option(targets[min(indices)], wnid, "descendant")
        for wnid, indices in sorted(owners.items())
        if len(indices) == 1 and wnid in source and wnid not in taken
    ]
