"""A few hundred cases of the corpus of damaged shard sets; `python -m tests.corpus` judges all of them."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest

from tests.corpus.bases import Bases, make_bases
from tests.corpus.case import Case
from tests.corpus.cases import corpus
from tests.corpus.judge import RAISED, RIGHT, Judge

EACH = {"jpeg": 6, "png": 2, "webp": 2, "zarr": 2}  # cases of each class of fault, by base


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return make_bases(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def judge(bases: Bases) -> Judge:
    return Judge(bases)


def chosen(bases: Bases) -> list[Case]:
    """Some of each class of fault, drawn anew for nobody: the same in every run."""
    kinds = defaultdict(list)
    for case in corpus(bases):
        kinds[case.kind, case.base].append(case)
    return [c for (_, base), part in kinds.items() for c in random.Random(7).sample(part, min(EACH[base], len(part)))]


def test_damage_is_found_and_never_passed_on(bases: Bases, judge: Judge, tmp_path: Path) -> None:
    cases = chosen(bases)
    assert len(cases) > 250
    faults = []
    for number, case in enumerate(cases):
        verdict = judge.judge(case, case.make(bases, tmp_path / str(number)))
        faults += [f"{case.name}: {fault}" for fault in verdict.faults]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("base", ["jpeg", "png", "webp", "zarr"])
def test_sound_sets_raise_no_alarm(bases: Bases, judge: Judge, base: str) -> None:
    sound = Case(f"sound/{base}", "sound", base, lambda _: None, harmless=True)
    verdict = judge.judge(sound, bases[base])
    assert verdict.faults == []
    assert (verdict.found, verdict.reader) == (False, RIGHT)


def test_what_png_npz_and_headers_check_never_passes(bases: Bases, judge: Judge, tmp_path: Path) -> None:
    """Flips in members that carry checksums, in tar headers and in indexes: the reader itself sees every one."""
    kinds = ("seg.png data", "inst.png data", "soft.npz data", "png data", "tar headers", "sample index")
    cases = [case for case in corpus(bases) if case.kind in [f"bit flips: {kind}" for kind in kinds]]
    for number, case in enumerate(random.Random(8).sample(cases, 60)):
        verdict = judge.judge(case, case.make(bases, tmp_path / str(number)))
        assert verdict.reader in (RAISED, RIGHT), (case.name, verdict)
