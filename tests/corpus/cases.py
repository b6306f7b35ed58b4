"""All cases of the corpus, in one fixed order."""

from __future__ import annotations

from collections.abc import Iterator

from tests.corpus import bombs, cuts, flips, manifests, members, places, stores, sums, tars
from tests.corpus.bases import Bases
from tests.corpus.case import Case


def corpus(bases: Bases) -> Iterator[Case]:
    """Every case; names are unique."""
    names = set()
    for room in (flips, cuts, tars, members, bombs, manifests, stores, places, sums):
        for case in room.cases(bases):
            if case.name in names:
                raise AssertionError(f"two cases are called {case.name}")
            names.add(case.name)
            yield case
