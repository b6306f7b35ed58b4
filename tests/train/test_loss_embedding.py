"""Cross-entropy over targets and nearest classes against a float64 oracle, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.train.embedding_oracle import LOSSES, Case, both, brute_force, case, distances, expected, nearest_loss
from train.losses import (
    embedding,
    nearest_cross_entropy,
    nearest_cross_entropy_sums,
    streaming_cross_entropy,
    streaming_cross_entropy_sums,
)
from train.losses.rows import wants_gradients
from train.neighbors import build_index


@distances
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4), st.integers(0, 10), st.integers(1, 5))
def test_value_and_gradients_equal_the_formula(
    distance: str, seed: int, classes: int, planes: int, k: int, d: int
) -> None:
    mine, theirs = (case(seed, 7, classes, d, planes).leaves() for _ in range(2))
    tau, warm = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    got = nearest_loss(*mine.args(), k, tau, distance, gather=40)
    want = expected(theirs, k, distance, tau=warm)
    got.backward()
    want.backward()
    torch.testing.assert_close(got, want)
    # at d = 1 a pixel may lie on a class, where the root of autograd's own formula has no gradient
    if distance == "squared" or d > 1:
        torch.testing.assert_close(mine.pixels.grad, theirs.pixels.grad)
        torch.testing.assert_close(mine.table.grad, theirs.table.grad)
        torch.testing.assert_close(tau.grad, torch.zeros_like(tau) if warm.grad is None else warm.grad)


@both
@distances
def test_gradients_equal_finite_differences(loss: Callable[..., Tensor], distance: str) -> None:
    some = case(3, rows=6, classes=6).leaves()
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda pixels, table, tau: loss(pixels, table, some.ids, some.weights, tau, distance),
        (some.pixels, some.table, tau),
    )


@distances
def test_a_target_among_its_neighbours_counts_once(distance: str) -> None:
    """The ESSNet release swaps such a target for class id - 1, which may be a neighbour itself, and class 0 for 0."""
    table = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    for target in (0, 1, 2):
        pixel = table[target][None] + 0.1
        got = nearest_loss(pixel, table, torch.tensor([[target]]), torch.ones(1, 1), 3, 1.0, distance)
        apart = (table[:3, 0] - pixel[0, 0]).abs() ** (2 if distance == "squared" else 1)
        want = -torch.log_softmax(-apart, 0)[target]
        assert got.item() == pytest.approx(want.item(), abs=1e-12)


def test_a_class_in_two_slots_is_one_class_with_both_shares() -> None:
    some = case(0, rows=5, classes=7, planes=1, void=0.0)
    twice = replace(some, ids=some.ids.repeat(1, 3), weights=some.weights * torch.tensor([0.5, 0.2, 0.3]))
    for k in (0, 2, 7):
        one, two = some.leaves(), twice.leaves()
        losses = [nearest_loss(*which.args(), k, 0.3) for which in (one, two)]
        for value in losses:
            value.backward()
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(one.pixels.grad, two.pixels.grad)
        torch.testing.assert_close(one.table.grad, two.table.grad)


@pytest.mark.parametrize("k", [9, 10, 1000])
def test_all_classes_and_hard_targets_are_the_dense_cross_entropy(k: int) -> None:
    some = case(5, rows=40, planes=1, partial=False).leaves()
    hard = torch.where(some.weights[:, 0] > 0, some.ids[:, 0], -100)
    logits = -torch.cdist(some.pixels, some.table).square() / 0.05
    want = torch.nn.functional.cross_entropy(logits, hard)
    torch.testing.assert_close(nearest_cross_entropy(*some.args(), k, 0.05), want)


def test_the_search_meets_labelled_rows_alone() -> None:
    some = case(1)
    met: list[Tensor] = []

    def watched(queries: Tensor, table: Tensor, k: int) -> Tensor:
        met.append(queries)
        return brute_force(queries, table, k)

    nearest_cross_entropy(*some.args(), 3, search=watched, gather=50)
    labelled = some.pixels[some.weights.sum(1) > 0]
    assert len(labelled) < len(some.pixels)
    torch.testing.assert_close(torch.cat(met), labelled)
    assert len(met) > 1


def test_no_search_for_no_neighbours() -> None:
    def never(queries: Tensor, table: Tensor, k: int) -> Tensor:
        raise AssertionError

    soft, hard = case(1), case(1, planes=1)
    assert float(nearest_cross_entropy(*soft.args(), 0, search=never)) > 0  # between the targets alone
    assert float(nearest_cross_entropy(*hard.args(), 0, search=never)) == pytest.approx(0, abs=1e-12)
    nearest_cross_entropy(*soft.args(), 9, search=never)


def test_ids_below_zero_from_a_search_are_no_candidates() -> None:
    some = case(2)

    def short(queries: Tensor, table: Tensor, k: int) -> Tensor:
        return torch.cat([brute_force(queries, table, k - 1), torch.full((len(queries), 1), -1)], dim=1)

    torch.testing.assert_close(nearest_cross_entropy(*some.args(), 4, search=short), nearest_loss(*some.args(), 3))


@both
@distances
def test_order_of_classes_rows_and_slots_does_not_matter(loss: Callable[..., Tensor], distance: str) -> None:
    some = case(7)
    renamed = torch.randperm(9)
    rows, slots = torch.randperm(23), torch.randperm(3)
    table = torch.empty_like(some.table)
    table[renamed] = some.table
    ids = torch.where(some.weights > 0, renamed[some.ids.clamp(max=8)], 99)
    other = Case(some.pixels[rows], table, ids[rows][:, slots], some.weights[rows][:, slots])
    torch.testing.assert_close(loss(*some.args(), 0.3, distance), loss(*other.args(), 0.3, distance))


@both
@distances
def test_void_rows_change_nothing_wherever_they_stand(loss: Callable[..., Tensor], distance: str) -> None:
    some = case(8, void=0.0)
    place = torch.randperm(40)[:23].sort().values
    spread = Case(
        torch.full((40, 4), torch.nan).double().index_copy(0, place, some.pixels),  # what lies there is not looked at
        some.table,
        torch.full((40, 3), -1).index_copy(0, place, some.ids),
        torch.zeros(40, 3).double().index_copy(0, place, some.weights),
    )
    one, two = some.leaves(), spread.leaves()
    losses = [loss(*which.args(), 0.3, distance) for which in (one, two)]
    for value in losses:
        value.backward()
    assert two.pixels.grad is not None
    for first, second in (losses, (one.table.grad, two.table.grad), (one.pixels.grad, two.pixels.grad[place])):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)  # where rows lie decides on last bits
    assert bool((two.pixels.grad.index_fill(0, place, 0) == 0).all())


@pytest.mark.parametrize("name", LOSSES)
@distances
def test_the_size_of_a_chunk_does_not_matter(name: str, distance: str) -> None:
    key = {"nearest": "gather", "streaming": "tile"}[name]
    found = []
    for size in (1, 150, 1 << 20):
        some = case(9, rows=100).leaves()
        value = LOSSES[name](*some.args(), 0.3, distance, **{key: size})
        value.backward()
        found.append([value, some.pixels.grad, some.table.grad])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


@both
@distances
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeated_runs_agree_to_the_bit(loss: Callable[..., Tensor], distance: str, dtype: torch.dtype) -> None:
    some = case(10, rows=5000)
    found = []
    for _ in range(2):
        leaves = replace(some, pixels=some.pixels.to(dtype), table=some.table.float()).leaves()
        loss(*leaves.args(), 0.05, distance).backward()
        found.append((leaves.pixels.grad, leaves.table.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@both
@distances
def test_allowed_classes_of_a_group(loss: Callable[..., Tensor], distance: str) -> None:
    mine, theirs = (case(11).leaves() for _ in range(2))
    group = torch.arange(23) % 3
    allowed = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    allowed[1] = False  # then there are the targets alone
    assert int(allowed[0].sum()) > 3
    got = loss(*mine.args(), 0.3, distance, allowed=allowed, group=group.int())
    want = expected(theirs, None if loss is streaming_cross_entropy else 3, distance, allowed, group)
    got.backward()
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mine.pixels.grad, theirs.pixels.grad)
    torch.testing.assert_close(mine.table.grad, theirs.table.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both
@distances
def test_half_inputs_are_computed_in_float32_also_under_autocast(
    loss: Callable[..., Tensor], distance: str, dtype: torch.dtype
) -> None:
    some = case(13)
    half = replace(some, pixels=some.pixels.to(dtype), weights=some.weights.to(dtype)).leaves()
    full = replace(some, pixels=half.pixels.detach().double(), weights=half.weights.double()).leaves()
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(half.pixels, half.table.float(), half.ids, half.weights, 0.05, distance)
    want = loss(*full.args(), 0.05, distance)
    got.backward()
    want.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    assert half.pixels.grad is not None
    assert half.pixels.grad.dtype == dtype
    torch.testing.assert_close(half.pixels.grad, full.pixels.grad.to(dtype))
    torch.testing.assert_close(half.table.grad, full.table.grad, rtol=1e-4, atol=1e-4)


def test_sums_add_up_over_parts() -> None:
    some = case(15)
    for sums in (partial(nearest_cross_entropy_sums, k=3, search=brute_force), streaming_cross_entropy_sums):
        whole = sums(*some.args())
        parts = [
            sums(some.pixels[part], some.table, some.ids[part], some.weights[part])
            for part in (slice(0, 9), slice(9, None))
        ]
        for n in range(2):
            torch.testing.assert_close(whole[n], parts[0][n] + parts[1][n])
        assert float(whole[1]) == pytest.approx(float(some.weights.sum()))


@both
def test_gradients_follow_what_is_wanted(loss: Callable[..., Tensor]) -> None:
    some = case(16)
    assert not loss(*some.args()).requires_grad
    leaves = some.leaves()
    with torch.no_grad():
        assert not loss(*leaves.args()).requires_grad
    table_only = loss(some.pixels, leaves.table, some.ids, some.weights)
    (2 * table_only).backward(retain_graph=True)
    first = leaves.table.grad.clone()
    (2 * table_only).backward()  # the held gradients are not used up
    torch.testing.assert_close(leaves.table.grad, 2 * first)
    loss(*leaves.args()).backward()
    torch.testing.assert_close(leaves.table.grad, 2.5 * first)


def test_the_search_is_that_of_train_neighbors_unless_one_is_given() -> None:
    some = case(18)
    group = torch.arange(23) % 2
    allowed = torch.arange(18).view(2, 9) % 3 > 0
    for extra in ({}, {"allowed": allowed, "group": group}):
        got = nearest_cross_entropy(*some.args(), 3, **extra)
        torch.testing.assert_close(got, nearest_loss(*some.args(), 3, **extra))


def test_one_index_serves_all_chunks_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def counted(table: Tensor, *args: Any, **options: Any) -> Any:
        built.append(len(table))
        return build_index(table, *args, **options)

    monkeypatch.setattr(embedding, "build_index", counted)
    some, group = case(19), torch.arange(23) % 2
    nearest_cross_entropy(*some.args(), 3, gather=50)
    assert built == [9]
    nearest_cross_entropy(*some.args(), 3, gather=50, allowed=torch.arange(18).view(2, 9) % 9 > 1, group=group)
    assert built == [9, 7, 7]


def test_float32_products_are_full_while_a_loss_is_computed_and_no_longer() -> None:
    met: list[str] = []

    def watched(queries: Tensor, table: Tensor, k: int) -> Tensor:
        met.append(torch.get_float32_matmul_precision())
        assert not torch.is_autocast_enabled("cpu")
        raise KeyError

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16):
            nearest_cross_entropy(*case(21).args(), 3, search=watched)
        assert met == ["highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_gradients_are_computed_where_nobody_asks() -> None:
    leaf = torch.zeros(1, requires_grad=True)
    assert wants_gradients(0.05, leaf)
    assert not wants_gradients(0.05, leaf.detach())
    with torch.no_grad():
        assert not wants_gradients(leaf)
