"""Parsers under fire: every input that once broke one, honest ones, and some hundred new ones of each draw."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import fuzz
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import FOUND, TARGETS, Target

KEPT = sorted(path for path in FOUND.rglob("*") if path.is_file())
SECONDS = 5.0  # for one input, on a slow machine


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_inputs_that_once_broke_a_parser(path: Path) -> None:
    began = time.process_time()
    TARGETS[path.parent.name].run(path.read_bytes())
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("name", TARGETS)
def test_honest_inputs_are_taken(name: str) -> None:
    assert any(TARGETS[name].run(data) for data in TARGETS[name].seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(name: str) -> None:
    """Hypothesis draws what is damaged and how, so that it can show the smallest input that breaks a parser."""
    target = TARGETS[name]
    pool = target.seeds()

    @settings(max_examples=60)
    @given(st.sampled_from(pool), st.integers(0, 2**32))
    def attack(data: bytes, seed: int) -> None:
        target.run(mutated(data, random.Random(seed), pool))

    attack()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=30)
    @given(st.binary(max_size=600))
    def attack(data: bytes) -> None:
        target.run(data)

    attack()


def test_a_parser_that_breaks_is_found_and_kept(tmp_path: Path) -> None:
    """The harness bites: an untyped error, a wrong result and an error of two lines are findings."""

    def broken(data: bytes) -> None:
        if b"9" in data:
            raise KeyError(data)

    target = Target(broken, lambda: [b"0123"])
    runs, findings = fuzz(target, "broken", 0.3, 1, tmp_path)
    assert runs > 50
    assert findings == 1
    (kept,) = (tmp_path / "broken").iterdir()
    assert b"9" in kept.read_bytes()
