"""WordNet 3.0's nouns, from the table that ships with us (`prep/taxonomies/wordnet`, terms in its licence file).

    words = load_wordnet()
    [synset.name for synset in words.lemmas("dog")]     # in WordNet's order, commonest sense first
    words.below("n02084071", depth=1)

A synset is a meaning: its id (wnid) is the byte offset in WordNet's data file, which is what ImageNet names folders by.
Loading takes under a second and about 75 MB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from sys import intern

from prep.mapping.names import key
from prep.taxonomy import rows


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning.

    Attributes:
        wnid: "n02084071".
        category: WordNet's lexicographer file: animal, artifact, act, ... ("Tops" for the topmost).
        lemmas: the words for it, as spelled there.
        senses: for each lemma its sense number, 1 = the commonest meaning of that word.
        hypernyms: wnids of what it is a kind of.
        instance_of: wnids of what it is an instance of (proper names only).
    """

    wnid: str
    category: str
    lemmas: tuple[str, ...]
    senses: tuple[int, ...]
    hypernyms: tuple[str, ...]
    instance_of: tuple[str, ...]

    @property
    def name(self) -> str:
        """The unique readable name: "dog.n.01"."""
        return f"{self.lemmas[0].lower().replace(' ', '_')}.n.{self.senses[0]:02d}"


class WordNet:
    """The nouns and their order."""

    def __init__(self, synsets: Iterable[Synset]) -> None:
        self._synsets = {synset.wnid: synset for synset in synsets}
        self._words: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._below: dict[str, list[str]] = defaultdict(list)
        for synset in self._synsets.values():
            for lemma, sense in zip(synset.lemmas, synset.senses, strict=True):
                self._words[key(lemma)].append((sense, synset.wnid))
            for parent in synset.hypernyms:
                self._below[parent].append(synset.wnid)

    def __len__(self) -> int:
        return len(self._synsets)

    def __contains__(self, wnid: str) -> bool:
        return wnid in self._synsets

    def __getitem__(self, wnid: str) -> Synset:
        return self._synsets[wnid]

    def senses(self, word: str) -> list[tuple[int, Synset]]:
        """(sense number, meaning) of a word however it is spelled, commonest first; [] for an unknown word."""
        return [(sense, self._synsets[wnid]) for sense, wnid in sorted(self._words.get(key(word), ()))]

    def above(self, wnid: str, depth: int) -> dict[str, int]:
        """What a synset is a kind of: wnid -> steps up (1..depth)."""
        return self._walk(wnid, depth, lambda at: self._synsets[at].hypernyms)

    def below(self, wnid: str, depth: int) -> dict[str, int]:
        """The kinds of a synset: wnid -> steps down (1..depth); instances, which are proper names, are not kinds."""
        return self._walk(wnid, depth, lambda at: self._below.get(at, ()))

    @staticmethod
    def _walk(start: str, depth: int, step: Callable[[str], Iterable[str]]) -> dict[str, int]:
        found = {start: 0}
        edge = [start]
        for far in range(1, depth + 1):
            edge = [there for at in edge for there in step(at)]
            edge = [there for there in dict.fromkeys(edge) if there not in found]
            found.update((there, far) for there in edge)
        del found[start]
        return found


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _synset(line: str) -> Synset:
    wnid, category, lemmas, senses, hypernyms, instance_of = line.split("\t")
    numbers = tuple(map(int, senses.split(",")))
    return Synset(wnid, intern(category), tuple(lemmas.split(", ")), numbers, _list(hypernyms), _list(instance_of))


@cache
def load_wordnet() -> WordNet:
    """WordNet 3.0's 82,115 noun synsets; read once a process."""
    table = resources.files("prep") / "taxonomies" / "wordnet" / "nouns-82115.tsv"
    with table.open(encoding="utf-8") as file:  # line by line: its rows as dictionaries would take twice the memory
        next(file)
        return WordNet(_synset(line.rstrip("\n")) for line in file)


@cache
def load_glosses() -> dict[str, str]:
    """The definition of each of ImageNet-21K's 21,841 synsets."""
    return {row["wnid"]: row["gloss"] for row in rows("wordnet/glosses-21841")}
