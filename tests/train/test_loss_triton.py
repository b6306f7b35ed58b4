"""The fused kernels of the exact loss, in triton's interpreter, against the torch solver and the formula."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.embedding_oracle import Case, case, expected
from train.losses import streaming_cross_entropy
from train.losses.rows import accumulate, full_precision, problem

pytest.importorskip("triton")
DISTANCES = ["squared", "plain"]


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")


@pytest.mark.skipif(INTERPRETED, reason="this is the child")
def test_in_the_interpreter() -> None:
    """The other tests of this file, in a process where triton was imported with its interpreter on."""
    command = [sys.executable, "-m", "pytest", "-x", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """train.losses.triton_streaming with small blocks."""
    module = importlib.import_module("train.losses.triton_streaming")
    for name, value in (("ROWS", 16), ("CLASSES", 16), ("PROGRAMS", 6)):
        monkeypatch.setattr(module, name, value)
    return module


def small(seed: int, **sizes: Any) -> Case:
    some = case(seed, **sizes)
    return replace(some, pixels=some.pixels.float(), table=some.table.float(), weights=some.weights.float())


def solve(engine: Any, some: Case, distance: Any, rows: int, *sets: Any) -> tuple[Tensor, ...]:
    """Cost and gradients by the kernels, `rows` rows a launch."""
    with full_precision(some.pixels.device):
        given = problem(*some.args(), some.tau, distance, *sets)
        found = accumulate(given, rows, engine.TritonSoftmax(given), True)
        without = accumulate(given, rows, engine.TritonSoftmax(given), False)
    torch.testing.assert_close(found.cost, without.cost, equal_nan=True)
    assert found.pixels is not None
    assert found.table is not None
    assert found.tau is not None
    scale = 1 / some.weights.sum()
    spread = torch.zeros_like(some.pixels)
    spread[(some.weights.sum(1) > 0).nonzero()[:, 0]] = found.pixels
    return found.cost * scale, spread * scale, found.table * scale, found.tau * scale


@interpreted
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize(("classes", "d", "rows"), [(1, 3, 100), (33, 2, 10), (17, 17, 100)])
def test_kernels_equal_the_formula(engine: Any, distance: str, sets: bool, classes: int, d: int, rows: int) -> None:
    some = small(classes, rows=20, classes=classes, d=d)
    group = torch.arange(20) % 2
    allowed = torch.rand(2, classes, generator=torch.Generator().manual_seed(1)) < 0.5
    more = (allowed, group) if sets else (None, None)
    wide, tau = some.wide().leaves(), torch.tensor(some.tau, dtype=torch.float64, requires_grad=True)
    want = expected(wide, None, distance, *more, tau=tau)
    want.backward()
    answers = (want, wide.pixels.grad, wide.table.grad, torch.zeros(()) if tau.grad is None else tau.grad)
    for got, value in zip(solve(engine, some, distance, rows, *more), answers, strict=True):
        assert value is not None
        torch.testing.assert_close(got, value.float(), rtol=2e-5, atol=2e-6)


@interpreted
def test_the_public_function_runs_them(engine: Any) -> None:
    some = small(3)
    by_name = streaming_cross_entropy(*some.args(), 0.3, engine="triton")
    torch.testing.assert_close(by_name, streaming_cross_entropy(*some.args(), 0.3, engine="torch"))


@interpreted
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of the interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_broken_rows_break_the_cost_and_repeated_runs_agree(engine: Any) -> None:
    some = small(2, rows=40, classes=20)
    first, second = (solve(engine, some, "squared", 100) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    some.pixels[0] = torch.nan
    some.weights[0, 0] = 1
    some.ids[0, 0] = 0
    assert bool(solve(engine, some, "squared", 100)[0].isnan())
