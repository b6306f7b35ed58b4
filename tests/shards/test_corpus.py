"""A few hundred cases of the corpus of damaged shard sets; `python -m tests.corpus` judges all of them."""

from __future__ import annotations

import random
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.corpus.bases import Bases, make_bases
from tests.corpus.case import Case
from tests.corpus.cases import corpus
from tests.corpus.guarded import HEADROOM, Guard, TooLongError
from tests.corpus.judge import RAISED, RIGHT, Judge

EACH = {"jpeg": 6, "png": 2, "webp": 2, "zarr": 2}  # cases of each class of fault, by base
WORST = {  # they claim, or unpack to, gigabytes
    "bomb/npz/base claims TBs/soft.npz",
    "bomb/npz/base that unpacks to 3 GB/soft.npz",
    "bomb/png/data beyond its rows/seg.png",
    "bomb/png/claims 2147483647x2147483647/seg.png",
    "bomb/jpeg/claims 65535x65535/jpg",
    "store/soft.npz/data: shape of 2^60",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return make_bases(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def judge(bases: Bases) -> Judge:
    return Judge(bases)


def chosen(bases: Bases) -> list[Case]:
    """Some of each class of fault, the same in every run; no bombs."""
    kinds = defaultdict(list)
    for case in corpus(bases):
        if not case.bomb:
            kinds[case.kind, case.base].append(case)
    return [c for (_, base), part in kinds.items() for c in random.Random(7).sample(part, min(EACH[base], len(part)))]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """What reads a pipe waits for ever: let it end as a failure."""

    def ring(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_damage_is_found_and_never_passed_on(bases: Bases, judge: Judge, tmp_path: Path) -> None:
    cases = chosen(bases)
    assert len(cases) > 200
    faults = []
    for number, case in enumerate(cases):
        with within(120):
            verdict = judge.judge(case, case.make(bases, tmp_path / str(number)))
        faults += [f"{case.name}: {fault}" for fault in verdict.faults]
    assert not faults, "\n".join(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bombs_do_not_go_off(bases: Bases) -> None:
    """In a child whose memory is capped, as the command judges all of them: three of each class, and the worst."""
    kinds = defaultdict(list)
    for case in corpus(bases):
        if case.bomb:
            kinds[case.kind].append(case)
    cases = {case.name: case for part in kinds.values() for case in random.Random(9).sample(part, min(3, len(part)))}
    cases |= {case.name: case for part in kinds.values() for case in part if case.name in WORST}
    assert len(cases) > 3 * len(kinds) > 20
    assert cases.keys() >= WORST
    guard = Guard(bases, peers=False)
    try:
        found = {name: guard.judge(case) for name, case in cases.items()}
    finally:
        guard.close()
    assert not [(name, verdict.faults) for name, (verdict, _, _) in found.items() if verdict.faults]
    # A label or image within the caps may cost what it says; a claim beyond them costs nothing.
    assert max(memory for *_, memory in found.values()) < HEADROOM
    assert max(found[name][2] for name in WORST if "claims" in name) < 50 << 20


@pytest.mark.parametrize("base", ["jpeg", "png", "webp", "zarr"])
def test_sound_sets_raise_no_alarm(bases: Bases, judge: Judge, base: str) -> None:
    sound = Case(f"sound/{base}", "sound", base, lambda _: None, harmless=True)
    verdict = judge.judge(sound, bases[base])
    assert verdict.faults == []
    assert (verdict.found, verdict.reader) == (False, RIGHT)


def test_what_carries_checksums_never_passes(bases: Bases, tmp_path: Path) -> None:
    """Flips in headers, indexes and members with checksums, and swapped shards: seen without hashing whole files."""
    judge = Judge(bases, check=False)
    kinds = ("seg.png data", "inst.png data", "soft.npz data", "png data", "tar headers", "sample index")
    cases = [case for case in corpus(bases) if case.kind in [f"bit flips: {kind}" for kind in kinds]]
    swaps = [case for case in corpus(bases) if case.kind in ("swapped shards", "shards of another build")]
    for number, case in enumerate([*random.Random(8).sample(cases, 60), *swaps]):
        verdict = judge.judge(case, case.make(bases, tmp_path / str(number)))
        assert verdict.reader in (RAISED, RIGHT), (case.name, verdict)
