"""Bad input of the cross-entropies over class embeddings: each kind a stated behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shards.errors import SettingsError
from tests.train.embedding_oracle import both, case, distances
from train.losses import (
    nearest_cross_entropy,
)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_all_void_costs_nothing_and_has_zero_gradients(
    loss: Callable[..., Tensor], dtype: torch.dtype, autocast: bool
) -> None:
    some = case(0)
    pixels, table = (value.to(dtype).requires_grad_() for value in (some.pixels, some.table))
    tau = torch.tensor(0.05, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(pixels, table, some.ids, torch.zeros_like(some.weights, dtype=dtype), tau)
    value.backward()
    assert value.item() == 0
    assert value.dtype == torch.float32
    for leaf in (pixels, table, tau):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert float(leaf.grad.abs().sum()) == 0


@both
@distances
def test_no_rows_at_all(loss: Callable[..., Tensor], distance: str) -> None:
    table = torch.randn(5, 3, requires_grad=True)
    empty = torch.zeros(0, 2)
    value = loss(torch.zeros(0, 3), table, empty.long(), empty, 0.05, distance)
    value.backward()
    assert value.item() == 0


@both
@distances
def test_one_class_and_one_dimension(loss: Callable[..., Tensor], distance: str) -> None:
    alone = case(0, classes=1, d=3).leaves()
    value = loss(*alone.args(), 0.05, distance)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert float(alone.pixels.grad.abs().max()) == pytest.approx(0, abs=1e-12)
    line = replace(case(0, d=1), tau=0.05).leaves()  # all classes lie at 1 or -1, and pixels on them
    value = loss(*line.args(), 0.05, distance)
    value.backward()
    assert bool(value.isfinite())
    assert bool(line.pixels.grad.isfinite().all())
    assert bool(line.table.grad.isfinite().all())


@both
def test_plain_distance_zero_has_gradient_zero(loss: Callable[..., Tensor]) -> None:
    table = torch.eye(4).requires_grad_()
    pixels = torch.eye(4)[:1].requires_grad_()
    loss(pixels, table, torch.tensor([[0]]), torch.ones(1, 1), 1.0, "plain").backward()
    assert pixels.grad is not None
    assert table.grad is not None
    assert bool(table.grad[0].abs().sum() == 0)
    assert float(pixels.grad.abs().sum()) > 0  # the other classes push
    assert bool(pixels.grad.isfinite().all())


@both
@distances
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["pixels", "table"])
def test_broken_features_break_the_loss(loss: Callable[..., Tensor], distance: str, value: float, where: str) -> None:
    some = case(12, void=0.0)
    getattr(some, where)[2, 1] = value
    leaves = some.leaves()
    cost = loss(*leaves.args(), 0.05, distance)
    cost.backward()
    assert bool(cost.isnan())


@both
def test_a_row_counts_with_the_sum_of_its_weights_over_one_too(loss: Callable[..., Tensor]) -> None:
    some = case(14, rows=2, void=0.0, partial=False)
    single = [
        float(loss(*(value[row : row + 1] if n != 1 else value for n, value in enumerate(some.args()))))
        for row in (0, 1)
    ]
    some.weights[1] *= 3
    assert float(loss(*some.args())) == pytest.approx((single[0] + 3 * single[1]) / 4)


BAD: dict[str, tuple[dict[str, object], str]] = {
    "id of no class": ({"ids": torch.full((23, 3), 9)}, "holds class id 9, but the embedding table has 9 classes"),
    "id below zero": ({"ids": torch.full((23, 3), -1)}, "holds class id -1"),
    "negative weight": ({"weights": torch.tensor([[1.0, -0.1, 0.0]]).repeat(23, 1)}, "weight is negative"),
    "weight that is no number": ({"weights": torch.full((23, 3), torch.nan)}, "not a number"),
    "other d": ({"table": torch.ones(9, 5)}, r"pixels \[23, 4\] and table \[9, 5\]"),
    "no classes": ({"table": torch.ones(0, 4)}, "C above 0"),
    "other rows": ({"ids": torch.zeros(22, 3).long()}, r"ids \[22, 3\]"),
    "tau of zero": ({"tau": 0.0}, "tau is 0; it must be above 0"),
    "learned tau below zero": ({"tau": torch.tensor(-1.0)}, "tau is -1"),
    "distance": ({"distance": "cosine"}, 'distance is "cosine"'),
    "allowed without group": ({"allowed": torch.ones(1, 9).bool()}, "go together"),
    "group of no image": ({"allowed": torch.ones(1, 9).bool(), "group": torch.arange(23)}, "group ids run from 0 to"),
}


@both
@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(loss: Callable[..., Tensor], changes: dict[str, object], message: str) -> None:
    some = case(17, void=0.0)
    good = {"pixels": some.pixels, "table": some.table, "ids": some.ids, "weights": some.weights}
    values = {**good, "tau": 0.05, "distance": "squared", **changes}
    more = {name: values.pop(name) for name in ("allowed", "group") if name in values}
    with pytest.raises(SettingsError, match=message):
        loss(*values.values(), **more)


def test_k_below_zero_is_refused() -> None:
    with pytest.raises(SettingsError, match="k is -1"):
        nearest_cross_entropy(*case(0).args(), -1)


@pytest.mark.parametrize("where", ["pixels", "table"])
def test_a_search_never_meets_what_is_not_finite(where: str) -> None:
    some = case(20, void=0.0)
    getattr(some, where)[2, 1] = torch.nan

    def strict(queries: Tensor, table: Tensor, k: int) -> Tensor:
        assert bool(queries.isfinite().all())
        assert bool(table.isfinite().all())
        return torch.full((len(queries), k), -1)  # so the broken class is no candidate of any row

    some = replace(some, ids=torch.zeros_like(some.ids))
    assert bool(nearest_cross_entropy(*some.args(), 3, search=strict).isnan())
