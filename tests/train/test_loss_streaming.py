"""The exact loss against a dense float64 softmax, what the losses hold in memory, and the approximation's error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shards.errors import SettingsError
from tests.train.embedding_oracle import Case, brute_force, case, expected
from train.losses import nearest_cross_entropy, streaming_cross_entropy
from train.losses.approximation import approximation, worst_case

DISTANCES = ["squared", "plain"]
distances = pytest.mark.parametrize("distance", DISTANCES)


@distances
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4), st.integers(2, 5))
def test_value_and_gradients_equal_the_formula(distance: str, seed: int, classes: int, planes: int, d: int) -> None:
    mine, theirs = (case(seed, 7, classes, d, planes).leaves() for _ in range(2))
    tau, warm = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    got = streaming_cross_entropy(*mine.args(), tau, distance, tile=3 * classes)
    want = expected(theirs, None, distance, tau=warm)
    got.backward()
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mine.pixels.grad, theirs.pixels.grad)
    torch.testing.assert_close(mine.table.grad, theirs.table.grad)
    torch.testing.assert_close(tau.grad, torch.zeros_like(tau) if warm.grad is None else warm.grad)


def dense(given: Case, distance: str, tau: Tensor) -> Tensor:
    """The whole N x C softmax in float64."""
    apart = torch.cdist(given.pixels, given.table, compute_mode="donot_use_mm_for_euclid_dist")
    logits = -(apart.square() if distance == "squared" else apart) / tau
    shares = torch.zeros_like(logits).scatter_add_(1, given.ids.clamp(max=len(given.table) - 1), given.weights)
    return -(shares * logits.log_softmax(1)).sum() / given.weights.sum()


@distances
def test_float32_is_within_1e_5_of_the_dense_softmax(distance: str) -> None:
    some = case(0, rows=600, classes=1284, d=12)
    noise = torch.tensor([0.1, 1e-3, 1e-5]).repeat(200)[:, None] * torch.randn(600, 12)
    trained = torch.nn.functional.normalize(
        some.table[some.ids.clamp(max=1283)[:, 0]] + noise
    )  # half are near, or very
    pixels = torch.where(torch.arange(600)[:, None] % 2 == 0, some.pixels, trained)
    mine = replace(some, pixels=pixels.float(), table=some.table.float(), weights=some.weights.float()).leaves()
    theirs = replace(mine.wide(), pixels=mine.pixels.detach().double(), table=mine.table.detach().double()).leaves()
    tau = torch.tensor(0.05, requires_grad=True)
    warm = tau.detach().double().requires_grad_()
    got, want = streaming_cross_entropy(*mine.args(), tau, distance), dense(theirs, distance, warm)
    got.backward()
    want.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for one, two in ((mine.pixels, theirs.pixels), (mine.table, theirs.table), (tau, warm)):
        assert one.grad is not None
        assert two.grad is not None
        assert (one.grad - two.grad).abs().max() <= 1e-5 * two.grad.abs().max()


@distances
def test_gaps_beyond_the_exponentials_range_stay_finite(distance: str) -> None:
    some = case(1)
    few = replace(some, pixels=some.pixels.float(), table=some.table.float()).leaves()
    got = streaming_cross_entropy(*few.args(), 1e-3, distance)
    got.backward()
    assert got.item() == pytest.approx(expected(some, None, distance, tau=torch.tensor(1e-3).double()).item(), rel=1e-4)
    assert bool(few.pixels.grad.isfinite().all())
    assert bool(few.table.grad.isfinite().all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton runs there")
def test_engines() -> None:
    some = case(4)
    cost = streaming_cross_entropy(*some.args())
    assert cost == streaming_cross_entropy(*some.args(), engine="torch")
    with pytest.raises(SettingsError, match='engine "triton" needs CUDA'):
        streaming_cross_entropy(*some.args(), engine="triton")
    with pytest.raises(SettingsError, match='engine is "cuda"'):
        streaming_cross_entropy(*some.args(), engine="cuda")  # type: ignore[arg-type]


class Largest(TorchDispatchMode):
    """Remembers the most entries of any tensor that an operation made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.untyped_storage().nbytes() // value.element_size())
        return out


@distances
@pytest.mark.parametrize("k", [8, None])
def test_nothing_of_rows_times_classes_is_made_or_held(distance: str, k: int | None) -> None:
    n, classes, d = 4096, 3000, 3
    pixels, table = torch.randn(n, d), torch.randn(classes, d)
    some = Case(pixels, table, torch.randint(classes, (n, 1)), torch.ones(n, 1)).leaves()
    held: dict[int, int] = {}

    def hold(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    size: dict[str, Any] = {"tile": 1 << 15} if k is None else {"gather": 1 << 12}
    watch = Largest()
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value), watch:
        if k is None:
            cost = streaming_cross_entropy(*some.args(), 0.05, distance, **size)
        else:
            cost = nearest_cross_entropy(*some.args(), k, 0.05, distance, search=first, **size)
        cost.backward()
    limit = max(n * d, (classes + 1) * (d + 1), 17 * classes if k is None else 1 << 12)
    assert watch.entries <= limit
    assert sum(held.values()) <= 4 * (n * d + classes * d) + 100


def first(queries: Tensor, table: Tensor, k: int) -> Tensor:
    return torch.arange(k).expand(len(queries), k)


@distances
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 9))
def test_candidates_only_raise_the_targets_probability(distance: str, seed: int, classes: int, k: int) -> None:
    some = case(seed, 11, classes, planes=1, void=0.0, partial=False)
    found = approximation(*some.args(), k, 0.3, distance, search=brute_force)
    logits = -torch.cdist(some.pixels, some.table).pow(2 if distance == "squared" else 1) / 0.3
    exact = logits.softmax(1).gather(1, some.ids)[:, 0]
    near = torch.zeros_like(logits).scatter_(1, brute_force(some.pixels, some.table, min(k, classes)), 1)
    few = logits.masked_fill(near.scatter_(1, some.ids, 1) == 0, -math.inf).softmax(1).gather(1, some.ids)[:, 0]
    assert found.largest == pytest.approx(float((few - exact).max()), abs=1e-9)
    assert found.mean == pytest.approx(float((few - exact).mean()), abs=1e-9)
    assert -1e-9 <= found.largest <= found.bound + 1e-9
    assert found.exact_loss == pytest.approx(-float(exact.log().mean()))
    assert found.loss == pytest.approx(-float(few.log().mean()))


def test_the_papers_worst_case_is_met_and_then_exceeded() -> None:
    classes, k = 1284, 8
    around = torch.nn.functional.normalize(
        torch.randn(classes, 11, generator=torch.Generator().manual_seed(0)).double()
    )
    pixel = torch.eye(12).double()[:1]

    def at(heights: Tensor) -> Tensor:
        """Unit vectors of given inner products with the pixel."""
        return torch.cat([heights[:, None], (1 - heights[:, None].square()).sqrt() * around], dim=1)

    def error(table: Tensor) -> float:
        return approximation(pixel, table, torch.tensor([[0]]), torch.ones(1, 1).double(), k, 0.05).largest

    paper, bound = worst_case(k, classes)
    level = torch.full((classes,), 0.2).double()
    level[0] += 1e-9  # among the eight
    assert error(at(level)) == pytest.approx(paper, abs=1e-6)
    nearer = level.clone()
    nearer[0] += 0.05 * math.log(7 * 1283) / 4  # half the gap in ||x - e||^2 that makes a = sqrt(7 * 1283)
    assert error(at(nearer)) == pytest.approx(bound, abs=1e-6)
    assert bound == pytest.approx(0.862, abs=1e-3)
    assert paper == pytest.approx(0.124, abs=1e-3)


def test_no_error_over_all_classes_and_none_known_without_rows() -> None:
    some = case(3)
    full = approximation(*some.args(), 9, 0.3, search=brute_force)
    assert full.largest == pytest.approx(0, abs=1e-12)
    assert (full.paper, full.bound) == (0, 0)
    void = approximation(some.pixels, some.table, some.ids, some.weights * 0, 3, search=brute_force)
    assert math.isnan(void.largest)
    assert math.isnan(void.mean)
