"""Which meaning of its name a class has: the candidates of WordNet, and what each costs.

A class table names things that are seen in pictures and often gives several synonyms. So, in this order of weight:

1. a synset that holds more of the name's synonyms is better (ADE's names were taken from WordNet's synsets);
2. a synset of visible things is better than one of acts, states or numbers (COST of its category);
3. the commoner sense of the word is better (a step of cost for each sense number);
4. a synonym further down the list, an unlike spelling or a plural counts a little less;
5. a synset that ImageNet has is a little better than one that it lacks: pictures were looked for where they exist.

`candidates` gives all meanings with their cost, best first; the lead of the best over the next says how sure it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from prep.mapping.names import singulars, terms
from prep.mapping.wordnet import Synset, WordNet

# What a meaning costs by WordNet's category; what is not listed cannot be seen.
COST = {
    "artifact": 0.0,
    "animal": 0.5,
    "plant": 0.5,
    "food": 0.5,
    "object": 0.5,
    "body": 1.5,
    "substance": 1.0,
    "phenomenon": 1.5,
    "communication": 2.0,
    "location": 2.0,
    "person": 2.5,
    "group": 2.5,
    "shape": 2.5,
    "Tops": 1.0,
}
UNSEEN = 5.0
STEP = 1.0  # each sense number after the first, up to MOST_STEPS
MOST_STEPS = 3.0
MORE = 3.0  # each further synonym of the name that the synset holds
LATER = 1.0  # the name's first synonym is not in the synset
SPELLED = 0.25  # plural
ABSENT = 0.75  # not in the source


@dataclass(frozen=True)
class Candidate:
    """One meaning that a class may have.

    Attributes:
        matched: the synonyms of the class's name that are lemmas of the synset.
        sense: the lowest sense number among them.
        cost: lower is likelier.
    """

    synset: Synset
    matched: tuple[str, ...]
    sense: int
    cost: float

    @property
    def visible(self) -> bool:
        """Whether its category is one of things that are seen."""
        return self.synset.category in COST


def candidates(words: WordNet, name: str, source: Collection[str]) -> list[Candidate]:
    """Every meaning that a synonym in ``name`` may have, likeliest first; ties fall to the lower wnid."""
    synonyms = terms(name)
    hits: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
    for term in synonyms:
        for sense, synset, extra in _readings(words, term):
            known = hits[synset.wnid].get(term)
            if known is None or (extra, sense) < (known[1], known[0]):
                hits[synset.wnid][term] = (sense, extra)
    found = [_candidate(words[wnid], by_term, synonyms, wnid in source) for wnid, by_term in hits.items()]
    return sorted(found, key=lambda c: (c.cost, c.synset.wnid))


def _readings(words: WordNet, term: str) -> list[tuple[int, Synset, float]]:
    """(sense, synset, extra cost) of a term as it stands and as a plural."""
    found = [(sense, synset, 0.0) for sense, synset in words.senses(term)]
    for single in singulars(term):
        found += [(sense, synset, SPELLED) for sense, synset in words.senses(single)]
    return [reading for reading in found if not reading[1].instance_of]


def _candidate(
    synset: Synset, by_term: dict[str, tuple[int, float]], synonyms: tuple[str, ...], there: bool
) -> Candidate:
    sense = min(sense for sense, _ in by_term.values())
    cost = COST.get(synset.category, UNSEEN)
    cost += min(STEP * (sense - 1), MOST_STEPS)
    cost += min(extra for _, extra in by_term.values())
    cost -= MORE * (len(by_term) - 1)
    cost += 0.0 if synonyms[0] in by_term else LATER
    cost += 0.0 if there else ABSENT
    return Candidate(synset, tuple(by_term), sense, cost)
