"""Losses on sparse targets against torch's own on dense ones, and the invariances that they must have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.config import Loss
from train.losses import build_loss, single_class_only, soft_cross_entropy, soft_kl

EMPTY = 65535


def target(
    seed: int, classes: int = 7, planes: int = 4, size: tuple[int, int, int] = (2, 5, 6), void: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Random sparse shares: distinct classes in a cell, some slots empty, some cells void; float64 weights."""
    generator = torch.Generator().manual_seed(seed)
    batch, h, w = size
    planes = min(planes, classes)
    ids = torch.rand(batch, classes, h, w, generator=generator).argsort(1)[:, :planes].int()
    weights = torch.rand(batch, planes, h, w, generator=generator, dtype=torch.float64)
    weights[:, 1:] *= torch.rand(batch, planes - 1, h, w, generator=generator) < 0.5
    weights /= weights.sum(1, keepdim=True)
    weights *= torch.rand(batch, 1, h, w, generator=generator) >= void
    return torch.where(weights > 0, ids, EMPTY), weights


def logits(seed: int, classes: int = 7, size: tuple[int, int, int] = (2, 5, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    batch, h, w = size
    return 3 * torch.randn(batch, classes, h, w, generator=generator, dtype=torch.float64)


def dense(ids: Tensor, weights: Tensor, classes: int) -> Tensor:
    """[B, K, H, W] sparse -> [B, C, H, W]."""
    batch, _, h, w = ids.shape
    out = torch.zeros(batch, classes, h, w, dtype=weights.dtype)
    return out.scatter_add_(1, ids.long().clamp(max=classes - 1), weights)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 5))
def test_cross_entropy_equals_torch_on_dense_probabilities(seed: int, classes: int, planes: int) -> None:
    ids, weights = target(seed, classes, planes)
    mine, theirs = (logits(seed, classes).requires_grad_() for _ in range(2))
    loss_sum, weight_sum = soft_cross_entropy(mine, ids, weights)
    want = F.cross_entropy(theirs, dense(ids, weights, classes), reduction="sum")
    loss_sum.backward()
    want.backward()
    torch.testing.assert_close(loss_sum, want)
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert float(weight_sum) == pytest.approx(float(weights.sum()))


@given(st.integers(0, 10_000))
def test_hard_labels_are_one_plane_and_equal_ignore_index(seed: int) -> None:
    ids, weights = target(seed, planes=1)
    hard = torch.where(weights[:, 0] > 0, ids[:, 0].long(), 255)
    loss_sum, weight_sum = soft_cross_entropy(logits(seed), ids, weights)
    want = F.cross_entropy(logits(seed), hard, ignore_index=255, reduction="sum")
    torch.testing.assert_close(loss_sum, want)
    assert int(weight_sum) == int((hard != 255).sum())


@given(st.integers(0, 10_000))
def test_kl_equals_torch_and_has_the_gradient_of_cross_entropy(seed: int) -> None:
    ids, weights = target(seed)
    mine, other = (logits(seed).requires_grad_() for _ in range(2))
    loss_sum, _ = soft_kl(mine, ids, weights)
    want = F.kl_div(F.log_softmax(logits(seed), 1), dense(ids, weights, 7), reduction="sum")
    torch.testing.assert_close(loss_sum, want)
    loss_sum.backward()
    soft_cross_entropy(other, ids, weights)[0].backward()
    torch.testing.assert_close(mine.grad, other.grad)


@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_kl_is_zero_where_prediction_and_target_agree_also_on_partly_void_cells(seed: int, labelled: float) -> None:
    ids, weights = target(seed, classes=5, planes=5)
    perfect = (dense(ids, weights, 5) + 1e-300).log()
    assert float(soft_kl(perfect, ids, weights * labelled)[0]) == pytest.approx(0.0, abs=1e-9)
    assert float(soft_kl(logits(seed, 5), ids, weights * labelled)[0]) >= 0.0


@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_the_order_of_the_slots_does_not_matter(seed: int, order: list[int]) -> None:
    ids, weights = target(seed)
    for measure in (soft_cross_entropy, soft_kl):
        plain = measure(logits(seed), ids, weights)[0]
        torch.testing.assert_close(measure(logits(seed), ids[:, order], weights[:, order])[0], plain)


@given(st.integers(0, 10_000))
def test_empty_slots_cost_nothing_whatever_their_id(seed: int) -> None:
    ids, weights = target(seed)
    more = torch.cat([ids, torch.full_like(ids, EMPTY)], 1), torch.cat([weights, torch.zeros_like(weights)], 1)
    torch.testing.assert_close(soft_cross_entropy(logits(seed), *more), soft_cross_entropy(logits(seed), ids, weights))


@pytest.mark.parametrize("kind", ["cross-entropy", "kl"])
def test_void_cells_cost_nothing_and_get_no_gradient(kind: str) -> None:
    ids, weights = target(3, void=0.5)
    z = logits(3).requires_grad_()
    loss = build_loss(Loss.model_validate({"kind": kind}))
    loss_sum, weight_sum = loss(z, ids, weights)
    loss_sum.backward()
    assert z.grad is not None
    void = (weights.sum(1) == 0)[:, None].expand_as(z)
    assert bool(void.any())
    assert float(z.grad[void].abs().max()) == 0.0
    assert float(weight_sum) == pytest.approx(float((weights.sum(1) > 0).sum()))


@pytest.mark.parametrize("kind", ["cross-entropy", "kl"])
def test_an_all_void_batch_is_finite_with_zero_gradient(kind: str) -> None:
    ids, weights = target(4, void=1.1)
    z = logits(4).requires_grad_()
    loss_sum, weight_sum = build_loss(Loss.model_validate({"kind": kind}))(z, ids, weights)
    loss_sum.backward()
    assert (float(loss_sum.detach()), float(weight_sum)) == (0.0, 0.0)
    assert z.grad is not None
    assert not bool(z.grad.any())


def test_gradcheck() -> None:
    ids, weights = target(5, classes=4, planes=3, size=(1, 2, 3))
    z = logits(5, 4, (1, 2, 3)).requires_grad_()
    for measure in (soft_cross_entropy, soft_kl):
        assert torch.autograd.gradcheck(lambda x, m=measure: m(x, ids, weights)[0], z)


def test_a_class_out_of_range_fails_where_it_has_weight() -> None:
    ids, weights = target(6)
    ids[0, 0, 0, 0], weights[0, 0, 0, 0] = 7, 0.5
    with pytest.raises((RuntimeError, IndexError)):
        soft_cross_entropy(logits(6), ids, weights)


def test_sums_are_float32_for_bfloat16_logits() -> None:
    size = (1, 128, 128)
    ids, weights = target(7, size=size, void=0.0)
    z = logits(7, size=size).bfloat16()
    loss_sum, weight_sum = soft_cross_entropy(z, ids, weights.float())
    want = F.cross_entropy(z.double(), dense(ids, weights, 7), reduction="sum")
    assert loss_sum.dtype == torch.float32
    assert float(loss_sum) == pytest.approx(float(want), rel=1e-5)
    assert float(weight_sum) == pytest.approx(128 * 128, rel=1e-5)


def test_the_gradient_keeps_the_logits_type() -> None:
    ids, weights = target(8)
    z = logits(8).bfloat16().requires_grad_()
    soft_cross_entropy(z, ids, weights.float())[0].backward()
    assert z.grad is not None
    assert z.grad.dtype == torch.bfloat16


def test_large_logits_do_not_overflow() -> None:
    ids, weights = target(9)
    z = (logits(9) * 1e4).float().requires_grad_()
    loss_sum = soft_cross_entropy(z, ids, weights.float())[0]
    loss_sum.backward()
    assert bool(loss_sum.isfinite())
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_the_switch_leaves_single_class_cells_alone() -> None:
    ids, weights = target(10)
    kept = single_class_only(weights)
    several = (weights > 0).sum(1) > 1
    assert bool(several.any())
    assert float(kept.sum(1)[several].abs().max()) == 0.0
    torch.testing.assert_close(kept.sum(1)[~several], weights.sum(1)[~several])
    single = build_loss(Loss(multi_class_cells=False))
    assert float(single(logits(10), ids, weights)[1]) == pytest.approx(float(kept.sum()))
    assert float(build_loss(Loss())(logits(10), ids, weights)[1]) == pytest.approx(float(weights.sum()))


def test_nothing_of_the_size_of_the_logits_is_kept_but_the_logits() -> None:
    ids, weights = target(11)
    z = logits(11).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        soft_cross_entropy(z, ids, weights)
    others = [t for t in kept if t.data_ptr() != z.data_ptr()]
    assert max(t.numel() for t in others) <= ids.numel()
