"""Class names taken apart for WordNet: synonyms, spelling, plurals.

    terms("door, double door")  -> ("door", "double door")
    terms("bow_(weapon)")       -> ("bow",)
    terms("wall-brick")         -> ("brick wall",)
    terms("desk-stuff")         -> ("desk",)

Spelling is compared by `key`: case, spaces, hyphens, dots and apostrophes do not count, so that "dish washer",
"dish-washer" and "dishwasher" are one.
"""

from __future__ import annotations

import re

_NOISE = re.compile(r"[\s\-_.'’/]+")  # noqa: RUF001 - the typographic apostrophe occurs in users' lists
_HINT = re.compile(r"[\s_]*\([^)]*\)")
_EMPTY = {"other", "stuff", "merged"}  # COCO's suffixes that say nothing about the thing
_PLURALS = (  # (ending, singular ending), the first that gives a known word wins
    ("ves", "f"),
    ("ves", "fe"),
    ("ies", "y"),
    ("men", "man"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("xes", "x"),
    ("zes", "z"),
    ("oes", "o"),
    ("s", ""),
)
_NOT_PLURAL = ("ss", "us", "is")


def key(text: str) -> str:
    """What two spellings of one word have in common."""
    return _NOISE.sub("", text.lower())


def first(name: str) -> str:
    """The first synonym of a name, in lower case with single spaces: "Door,  double door" -> "door"."""
    return " ".join(name.lower().replace("_", " ").split(",")[0].split())


def terms(name: str) -> tuple[str, ...]:
    """The synonyms in a class name, in order and without repeats; a hint in brackets is dropped."""
    found = [_term(part) for part in _HINT.sub("", name).split(",")]
    return tuple(dict.fromkeys(term for term in found if term))


def _term(part: str) -> str:
    """One synonym in lower case; COCO's "wall-brick" is a brick wall, its "wall-other" a wall."""
    words = part.strip().lower().replace("_", " ")
    head, dash, kind = words.partition("-")
    if dash and " " not in words and kind in _EMPTY:
        words = head
    return " ".join(words.split())


def turned(term: str) -> str | None:
    """ "wall-brick" -> "brick wall": COCO writes the general word first; None where there is nothing to turn."""
    head, dash, kind = term.partition("-")
    return f"{kind} {head}" if dash and kind and "-" not in kind else None


def singulars(term: str) -> tuple[str, ...]:
    """What the last word may be the plural of: "file cabinets" -> ("file cabinet",); () where it is no plural."""
    if term.endswith(_NOT_PLURAL) or len(term) < 4:
        return ()
    found = (term[: -len(end)] + single for end, single in _PLURALS if term.endswith(end))
    return tuple(dict.fromkeys(found))
