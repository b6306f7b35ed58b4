"""The WordNet table that ships: whole, equal to the reference, and walked the right way."""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources

import pytest

from prep.mapping.names import first, key, singulars, terms, turned
from prep.mapping.wordnet import WordNet, load_glosses, load_wordnet
from prep.taxonomy import load_classes, rows
from tests.real import real_data

DOG, CANINE, PUPPY, ENTITY = "n02084071", "n02083346", "n01322604", "n00001740"


@pytest.fixture(scope="module")
def words() -> WordNet:
    return load_wordnet()


def test_it_holds_every_noun_of_wordnet(words: WordNet) -> None:
    assert len(words) == 82115
    table = rows("wordnet/nouns-82115")
    assert len({row["wnid"] for row in table}) == 82115
    assert all(parent in words for row in table for parent in row["hypernyms"].split(",") if parent)
    assert [row["wnid"] for row in table if not row["hypernyms"] and not row["instance_of"]] == [ENTITY]


def test_it_equals_the_reference(words: WordNet) -> None:
    with open(real_data("taxonomies/wordnet30-nouns.tsv"), encoding="utf-8") as file:
        reference = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(reference) == len(words)
    for row in reference:
        synset = words[row["wnid"]]
        assert synset.name == row["synset"]
        assert ", ".join(synset.lemmas) == row["lemmas"]
        assert ",".join(synset.hypernyms) == row["hypernyms"]
        assert ",".join(synset.instance_of) == row["instance_hypernyms"]


def test_senses_come_in_wordnets_order(words: WordNet) -> None:
    crane = [(sense, synset.wnid) for sense, synset in words.senses("crane")]
    assert [sense for sense, _ in crane] == [1, 2, 3, 4, 5]
    assert crane[3] == (4, "n03126707")  # lifts loads
    assert crane[4] == (5, "n02012849")  # has feathers
    assert words["n03126707"].category == "artifact"
    assert words.senses("no such word") == []


def test_spelling_does_not_matter(words: WordNet) -> None:
    assert {synset.wnid for _, synset in words.senses("dish-washer")} >= {"n03207941"}
    assert words.senses("T-Shirt") == words.senses("tshirt") != []


def test_walks_up_and_down(words: WordNet) -> None:
    assert words.above(DOG, 1) == {CANINE: 1, "n01317541": 1}
    assert words.above(DOG, 3)["n02075296"] == 2  # carnivore
    below = words.below(DOG, 1)
    assert below[PUPPY] == 1
    assert DOG not in below
    assert words.below(DOG, 2).keys() > below.keys()
    assert ENTITY in words.above(DOG, 20)


def test_proper_names_are_no_kinds(words: WordNet) -> None:
    hadrian = "n08886814"  # Hadrian's Wall, an instance of wall
    assert words[hadrian].instance_of == ("n04546855",)
    assert hadrian not in words.below("n04546855", 20)


def test_every_imagenet_synset_has_a_definition() -> None:
    glosses = load_glosses()
    classes = load_classes("imagenet21k-21841")
    assert set(glosses) == set(classes.wnids)
    assert all(glosses.values())
    assert glosses[DOG].startswith("a member of the genus Canis")


def test_imagenet_names_are_first_lemmas_told_apart(words: WordNet) -> None:
    with open(real_data("taxonomies/imagenet21k-21841.tsv"), encoding="utf-8") as file:
        reference = [row["wnid"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    classes = load_classes("imagenet21k-21841")
    assert list(classes.wnids) == reference == sorted(reference)
    lemmas = [words[wnid].lemmas[0] for wnid in reference]
    shared = Counter(lemma.lower() for lemma in lemmas)
    for name, lemma, wnid in zip(classes.names, lemmas, reference, strict=True):
        assert name == (lemma if shared[lemma.lower()] == 1 else f"{lemma} ({words[wnid].name})")
    assert "crane (crane.n.04)" in classes.names
    assert len({name.lower() for name in classes.names}) == 21841


def test_the_licence_ships() -> None:
    text = (resources.files("prep") / "taxonomies" / "wordnet" / "LICENCE-WordNet-3.0.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
    assert "Permission to use, copy, modify and distribute" in text


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("door, double door", ("door", "double door")),
        ("bow_(weapon)", ("bow",)),
        ("desk-stuff", ("desk",)),
        ("wall-other", ("wall",)),
        ("wall-brick", ("wall-brick",)),
        ("ash bin, ash-bin, ", ("ash bin", "ash-bin")),
        ("Door,door", ("door",)),
    ],
)
def test_names_are_taken_apart(name: str, want: tuple[str, ...]) -> None:
    assert terms(name) == want


def test_plurals_and_other_forms() -> None:
    assert "shelf" in singulars("shelves")
    assert "knife" in singulars("knives")
    assert "box" in singulars("boxes")
    assert "file cabinet" in singulars("file cabinets")
    assert "berry" in singulars("berries")
    assert singulars("glass") == singulars("bus") == singulars("tennis") == singulars("gas") == ()
    assert turned("wall-brick") == "brick wall"
    assert turned("wall") is None
    assert key("Ash-Bin") == key("ash bin") == "ashbin"
    assert first("Dish_Washer, dishwasher") == "dish washer"
