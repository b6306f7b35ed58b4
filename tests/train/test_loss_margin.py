"""The regulariser of class embeddings (eq. 7) against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shards.errors import SettingsError
from tests.train.embedding_oracle import brute_force
from train.losses import margin_regulariser


def table(seed: int, classes: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(classes, d, generator=torch.Generator().manual_seed(seed)).double()
    return torch.nn.functional.normalize(values).to(dtype).requires_grad_()


def formula(values: Tensor, margin: float) -> Tensor:
    """Eq. 7 by the whole C x C matrix."""
    apart = (values[:, None] - values[None]).square().sum(2)
    distances = torch.where(torch.eye(len(values)).bool(), 9e9, apart).sqrt()
    return (margin - distances.min(dim=1).values).clamp(min=0).mean()


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 5), st.sampled_from([0.2, 1.0, 3.0]))
def test_value_and_gradient_equal_the_formula(seed: int, classes: int, d: int, margin: float) -> None:
    mine, theirs = table(seed, classes, d), table(seed, classes, d)
    got, want = margin_regulariser(mine, margin), formula(theirs, margin)
    got.backward()
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_both_ends_of_a_near_pair_are_pushed_apart_and_far_ones_rest() -> None:
    values = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, 0.0]], requires_grad=True)
    cost = margin_regulariser(values)
    cost.backward()
    assert cost.item() == pytest.approx(2 * 0.1 / 3)
    torch.testing.assert_close(values.grad, torch.tensor([[2 / 3, 0], [-2 / 3, 0], [0, 0]]))


def test_gradient_equals_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda values: margin_regulariser(values, 1.0), (table(1, 12, 3),))


def test_classes_on_one_spot_pay_the_margin_and_have_a_finite_gradient() -> None:
    values = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    cost = margin_regulariser(values)
    cost.backward()
    assert cost.item() == pytest.approx(3 * 0.2 / 4)
    assert bool((values.grad == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_class_and_one_dimension(dtype: torch.dtype, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for values in (table(0, 1, 4, dtype), table(0, 6, 1, dtype)):
            cost = margin_regulariser(values)
            cost.backward()
            assert cost.dtype == torch.float32
            assert bool(cost.isfinite())
            assert values.grad is not None
            assert values.grad.dtype == dtype
            assert bool(values.grad.isfinite().all())
            if len(values) == 1:
                assert cost.item() == 0


def test_order_of_classes_does_not_matter_and_runs_agree_to_the_bit() -> None:
    values, order = table(3, 300, 3), torch.randperm(300)
    other = values.detach()[order].requires_grad_()
    costs = [margin_regulariser(which, 0.3) for which in (values, other, values)]
    gradients = [
        torch.autograd.grad(cost, which)[0] for cost, which in zip(costs, (values, other, values), strict=True)
    ]
    assert costs[0].item() > 0
    torch.testing.assert_close(costs[0], costs[1])
    torch.testing.assert_close(gradients[0][order], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_the_search_is_asked_for_two_and_no_matrix_is_made() -> None:
    asked: list[tuple[int, int, int]] = []

    def watched(queries: Tensor, values: Tensor, k: int) -> Tensor:
        asked.append((len(queries), len(values), k))
        return brute_force(queries, values, k)

    margin_regulariser(table(4, 7, 3), search=watched)
    assert asked == [(7, 7, 2)]


def test_broken_tables() -> None:
    values = table(5, 6, 3).detach().clone()
    values[2, 1] = torch.nan

    def strict(queries: Tensor, table: Tensor, k: int) -> Tensor:
        assert bool(queries.isfinite().all() and table.isfinite().all())
        return brute_force(queries, table, k)

    for search in (None, strict):
        assert bool(margin_regulariser(values, search=search).isnan())
    with pytest.raises(SettingsError, match=r"table \[0, 4\]"):
        margin_regulariser(torch.ones(0, 4))
    with pytest.raises(SettingsError, match="margin is -1"):
        margin_regulariser(torch.ones(2, 4), -1)


def test_no_gradient_where_none_is_wanted() -> None:
    values = table(6, 6, 3)
    assert not margin_regulariser(values.detach()).requires_grad
    with torch.no_grad():
        assert not margin_regulariser(values).requires_grad
