"""The mapping rules one by one, on a WordNet small enough to see through."""

from __future__ import annotations

from prep.mapping.meaning import candidates
from prep.mapping.rules import Finding, Option, Override, Target, assign, descend, find, further
from prep.mapping.wordnet import Synset, WordNet


def synset(wnid: str, lemmas: str, above: str = "", category: str = "artifact", instance_of: str = "") -> Synset:
    """ "door:1, double door:1" -> a synset; the number after the colon is the sense."""
    pairs = [part.strip().split(":") for part in lemmas.split(",")]
    return Synset(
        wnid,
        category,
        tuple(lemma for lemma, _ in pairs),
        tuple(int(sense) for _, sense in pairs),
        tuple(above.split()),
        tuple(instance_of.split()),
    )


WORDS = WordNet(
    [
        synset("thing", "thing:1"),
        synset("sink", "sink:1, basin:3", "thing"),
        synset("kitchen", "kitchen sink:1", "sink"),
        synset("deep", "deep kitchen sink:1", "kitchen"),
        synset("deeper", "deeper kitchen sink:1", "deep"),
        synset("bar-room", "bar:1, barroom:1", "thing"),
        synset("bar-law", "bar:2", "thing", "group"),
        synset("bar-rod", "bar:3, rod:1", "thing"),
        synset("run", "run:1", "thing", "act"),
        synset("run-track", "run:4", "thing"),
        synset("sprint", "sprint:1", "thing", "act"),
        synset("tap", "tap:1, faucet:1, spigot:1", "thing"),
        synset("tap-blow", "tap:2", "thing"),
        synset("bank-row", "bank:1", "thing"),
        synset("bank-hill", "bank:2", "thing"),
        synset("dog", "dog:1", "thing", "animal"),
        synset("pug", "pug:1", "dog", "animal"),
        synset("puppy", "puppy:1", "dog pet", "animal"),
        synset("pet", "pet:1", "thing", "animal"),
        synset("rex", "Rex:1", "", "animal", "dog"),
        synset("shelf", "shelf:1", "thing"),
        synset("brick wall", "brick wall:1", "thing"),
    ]
)
EVERYTHING = {
    "thing",
    "sink",
    "kitchen",
    "deep",
    "deeper",
    "bar-room",
    "bar-rod",
    "run-track",
    "tap",
    "tap-blow",
    "dog",
    "pug",
    "puppy",
    "pet",
    "sprint",
}


def rule_of(name: str, source: set[str] | None = None, **more: object) -> tuple[str, str] | None:
    """(wnid, rule) of the best option for a class name."""
    options = find(WORDS, Target(0, name, **more), EVERYTHING if source is None else source).options  # type: ignore[arg-type]
    return (options[0].wnid, options[0].rule) if options else None


def test_a_synset_of_the_table_comes_before_any_name() -> None:
    assert rule_of("tap", wnid="sink") == ("sink", "exact")
    assert rule_of("tap, faucet", {"tap", "kitchen"}, wnid="sink") == ("kitchen", "hyponym")
    assert rule_of("tap", wnid="n99999999") is None


def test_synonyms_that_agree_choose_their_synset() -> None:
    assert rule_of("bar, rod") == ("bar-rod", "synonyms")  # though the room is the first sense of bar
    assert rule_of("tap, faucet") == ("tap", "synonyms")


def test_one_meaning_or_several() -> None:
    assert rule_of("pug") == ("pug", "only-sense")
    assert rule_of("tap") == ("tap", "lemma")
    assert rule_of("no such thing") is None


def test_what_can_be_seen_comes_before_the_first_sense() -> None:
    assert rule_of("run") == ("run-track", "lemma")
    assert [c.synset.wnid for c in candidates(WORDS, "bar", EVERYTHING)] == ["bar-room", "bar-rod", "bar-law"]


def test_an_act_alone_is_never_plain() -> None:
    assert rule_of("sprint") == ("sprint", "close")


def test_a_meaning_with_images_that_comes_near_is_taken_and_flagged() -> None:
    assert rule_of("bank", {"bank-hill"}) == ("bank-hill", "close")
    assert rule_of("tap", {"tap"}) == ("tap", "lemma")


def test_plurals_and_spelling() -> None:
    assert rule_of("shelves", {"shelf"}) == ("shelf", "only-sense")
    assert rule_of("Kitchen-Sinks", {"kitchen"}) == ("kitchen", "only-sense")
    assert rule_of("wall-brick", {"brick wall"}) == ("brick wall", "only-sense")


def test_proper_names_are_no_meanings() -> None:
    assert rule_of("rex", {"rex"}) is None


def test_near_synsets_within_the_depths() -> None:
    assert rule_of("sink", {"kitchen", "thing"}) == ("kitchen", "hyponym")
    assert rule_of("sink", {"deep", "thing"}) == ("deep", "hyponym")
    assert rule_of("sink", {"deeper", "thing"}) == ("thing", "hypernym")
    assert rule_of("sink", {"deeper"}) is None
    assert rule_of("deep kitchen sink", {"sink"}) is None  # two steps up


def decided(name: str, override: Override, source: set[str] = EVERYTHING) -> Finding:
    """The finding of a class that a person looked at."""
    return find(WORDS, Target(0, name, "pet"), source, override)


def test_overrides_come_first() -> None:
    assert decided("bar", Override(("bar-rod",))).options[0].rule == "override"
    assert decided("bar", Override(("bar-rod",))).options[0].wnid == "bar-rod"
    nothing = decided("bar", Override((), why="no noun fits"))
    assert (nothing.options, nothing.meaning, nothing.note) == ((), None, "no noun fits")


def test_overrides_say_what_stands_in_for_a_missing_synset() -> None:
    source = {"kitchen", "thing", "pug"}
    assert [(o.wnid, o.rule) for o in decided("bar", Override(("sink",), "pug"), source).options] == [
        ("pug", "hypernym")
    ]
    assert decided("bar", Override(("sink",), "kitchen"), source).options[0].rule == "hyponym"
    assert decided("bar", Override(("sink",), "none"), source).options == ()
    assert decided("bar", Override(("sink",)), source).options[0].wnid == "kitchen"
    assert decided("bar", Override(("pug",), "none"), source).options[0].wnid == "pug"


def assigned(*named: tuple[str, str | None], source: set[str] = EVERYTHING) -> dict[int, tuple[str, str]]:
    """Class index -> (wnid, rule) of classes that compete."""
    found = [find(WORDS, Target(i, name, wnid), source) for i, (name, wnid) in enumerate(named)]
    return {index: (option.wnid, option.rule) for index, option in assign(found).items()}


def test_no_synset_goes_to_two_classes() -> None:
    assert assigned(("pugs", None), ("pug", None)) == {1: ("pug", "only-sense")}  # named after it
    assert assigned(("tap", None), ("tap, faucet", None)) == {1: ("tap", "synonyms")}
    assert assigned(("pug", None), ("Pug", None)) == {0: ("pug", "only-sense")}  # the earlier
    assert assigned(("pug", None), ("a breed", "pug")) == {1: ("pug", "exact")}


def test_a_loser_takes_the_next_synset_only_by_nearness() -> None:
    assert assigned(("tap", None), ("spigot, tap", None)).keys() == {1}  # not the blow, tap's other meaning
    near = assigned(("kitchen sink", None), ("sink", None), source={"kitchen", "deep"})
    assert near == {0: ("kitchen", "only-sense"), 1: ("deep", "hyponym")}


def test_further_synsets_of_overrides_go_to_their_class_where_free() -> None:
    finding = decided("bar", Override(("bar-rod", "sink", "pug")))
    rival = find(WORDS, Target(1, "pug"), EVERYTHING)
    chosen = assign([finding, rival])
    assert {index: option.wnid for index, option in chosen.items()} == {0: "bar-rod", 1: "pug"}
    assert [(o.wnid, o.rule, o.target.index) for o in further([finding, rival], chosen)] == [("sink", "also", 0)]


def descendants(*names: str, source: set[str] = EVERYTHING) -> dict[str, str]:
    """wnid -> class name by the rule `descendant`."""
    found = [find(WORDS, Target(i, name), source) for i, name in enumerate(names)]
    return {o.wnid: o.target.name for o in descend(WORDS, found, list(assign(found).values()), source)}


def test_descendants_go_to_the_nearest_class() -> None:
    assert descendants("dog") == {"pug": "dog", "puppy": "dog"}
    assert descendants("thing", "sink")["deeper"] == "sink"
    assert descendants("thing", "sink")["pug"] == "thing"
    assert "pug" not in descendants("dog", "pug")


def test_descendants_of_two_classes_go_to_neither() -> None:
    assert descendants("dog", "pet") == {"pug": "dog"}


def test_a_class_without_images_still_has_its_kinds() -> None:
    assert descendants("sink", source={"deeper"}) == {"deeper": "sink"}


def test_a_class_by_hypernym_claims_no_kinds_of_it() -> None:
    found = [find(WORDS, Target(0, "sink"), {"thing", "pug"})]
    chosen = assign(found)
    assert chosen[0].rule == "hypernym"
    assert descend(WORDS, found, list(chosen.values()), {"thing", "pug"}) == []


def test_a_class_that_lost_its_synset_claims_no_kinds() -> None:
    assert set(descendants("dogs", "dog").values()) == {"dog"}


def test_ranks_order_options() -> None:
    def option(rule: str, lead: float = 0.0, index: int = 0, named: bool = True) -> Option:
        return Option(Target(index, "x"), "w", rule, lead, named)

    order = [
        option("exact", named=False),
        option("synonyms"),
        option("lemma", 2.0, 1),
        option("lemma", 1.0, 0),
        option("override"),
        option("close"),
        option("synonyms", named=False),
    ]
    assert sorted(order, key=lambda o: o.rank) == order
