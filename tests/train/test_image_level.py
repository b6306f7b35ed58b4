"""The loss of average-pooled scores, against scores of every pixel that are averaged as the paper says it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.losses import image_level
from train.losses.image_level import Pairs, pairs_of, pooled_loss_sum, vectors_loss_sum
from train.models.cosine import gains

CLASSES, DIM = 7, 5


def unit(*shape: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def problem(seed: int, images: int = 3, cells: int = 6, share: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells [B, N, d], a table [C, d], candidates [c], tags [T, 2] of candidates alone."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(images, CLASSES, generator=generator) < share
    candidates = (shown.any(0) | (torch.rand(CLASSES, generator=generator) < 0.5)).nonzero()[:, 0]
    return unit(images, cells, DIM, generator=generator), unit(CLASSES, DIM, generator=generator), candidates, (
        shown.nonzero()
    )  # fmt: skip


def scores_of(cells: Tensor, table: Tensor, gamma: Tensor, standardised: bool) -> Tensor:
    """Scores [B, N, c] of every cell, the release's way."""
    cosines = cells @ table.t()
    if not standardised:
        return gamma * cosines
    deviation = (cosines.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return gamma * (cosines - cosines.mean(2, keepdim=True)) / deviation


def oracle(scores: Tensor, candidates: Tensor, tags: Tensor) -> Tensor:
    """The sum over pairs, one softmax each; scores [B, N, c]."""
    total = scores.sum() * 0
    for image, shown in tags.tolist():
        others = {c for i, c in tags.tolist() if i == image} - {shown}
        kept = [k for k, c in enumerate(candidates.tolist()) if c not in others]
        mean = torch.stack([scores[image, :, k].mean() for k in kept])
        target = [candidates.tolist()[k] for k in kept].index(shown)
        total = total + F.cross_entropy(mean[None], torch.tensor([target]), reduction="sum")
    return total


def ours(cells: Tensor, table: Tensor, gamma: Tensor, standardised: bool, candidates: Tensor, tags: Tensor) -> Tensor:
    table = table[candidates]
    gain = gains(cells.flatten(0, 1), table, gamma, standardised).view(cells.shape[:2])
    return pooled_loss_sum(cells, table, gain, pairs_of(tags, candidates, len(cells)))


@given(st.integers(0, 100_000), st.booleans(), st.integers(1, 4), st.integers(1, 6), st.floats(0, 1))
def test_loss_and_gradients_are_those_of_the_scores_of_every_pixel(
    seed: int, standardised: bool, images: int, cells: int, share: float
) -> None:
    *values, candidates, tags = problem(seed, images, cells, share)
    if not len(candidates):
        return
    mine, theirs = (
        [value.clone().requires_grad_() for value in (*values, torch.tensor(1.7, dtype=torch.float64))]
        for _ in range(2)
    )
    loss = ours(*mine, standardised, candidates, tags)
    want = oracle(scores_of(theirs[0], theirs[1][candidates], theirs[2], standardised), candidates, tags)
    torch.testing.assert_close(loss, want, atol=1e-9, rtol=1e-9)
    loss.backward()
    want.backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-7, rtol=1e-6)


def test_parts_that_are_computed_twice_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, table, candidates, tags = problem(5, images=6)
    found = []
    for entries in (1 << 22, 2 * len(candidates)):
        monkeypatch.setattr(image_level, "ENTRIES", entries)
        values = [cells.clone().requires_grad_(), table.clone().requires_grad_()]
        loss = ours(*values, torch.tensor(2.0), True, candidates, tags)
        loss.backward()
        found.append([loss.detach(), *(value.grad for value in values)])
    assert float(found[0][0]) > 0
    torch.testing.assert_close(found[0], found[1])


def test_more_pairs_than_fit_are_not_held_for_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps of the scores is one number a pair, not one a pair and class."""
    kept: list[int] = []
    monkeypatch.setattr(image_level, "ENTRIES", 4000)
    vectors, table = torch.randn(64, 2, requires_grad=True), torch.randn(1000, 2)
    pairs = pairs_of(torch.stack([torch.arange(64), torch.arange(64)], 1), torch.arange(1000), 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel() * t.is_floating_point()), t)[1], id):
        vectors_loss_sum(vectors, table, pairs)
    assert max(kept) < 64 * 1000
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel() * t.is_floating_point()), t)[1], id):
        monkeypatch.setattr(image_level, "ENTRIES", 1 << 22)
        vectors_loss_sum(vectors, table, pairs)
    assert max(kept) >= 64 * 1000  # the measure sees it where it is held


def test_all_classes_present_cost_nothing_and_leave_no_nan() -> None:
    cells, table, _, _ = problem(1, images=2)
    tags = torch.tensor([[0, c] for c in range(CLASSES)] + [[1, 2]])
    cells.requires_grad_()
    for dtype in (torch.float32, torch.float64):
        loss = ours(cells.to(dtype), table.to(dtype), torch.tensor(3.0), True, torch.arange(CLASSES), tags)
        alone = ours(cells.to(dtype), table.to(dtype), torch.tensor(3.0), True, torch.arange(CLASSES), tags[-1:])
        torch.testing.assert_close(loss, alone)
        (gradient,) = torch.autograd.grad(loss, cells)
        assert float(gradient[0].abs().max()) == 0.0
        assert bool(gradient.isfinite().all())
        assert float(gradient[1].abs().max()) > 0.0


def test_no_tags_cost_nothing_with_a_gradient_of_zero() -> None:
    cells, table, _, _ = problem(1)
    tags = torch.zeros(0, 2, dtype=torch.int64)
    cells.requires_grad_()
    loss = ours(cells, table, torch.tensor(1.0), True, torch.arange(CLASSES), tags)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert cells.grad is not None
    assert float(cells.grad.abs().max()) == 0.0


def test_pairs_say_where_their_classes_are() -> None:
    pairs = pairs_of(torch.tensor([[0, 4], [2, 1], [2, 4]]), torch.tensor([1, 3, 4]), 3)
    assert [value.tolist() for value in pairs] == [
        [0, 2, 2],
        [4, 1, 4],
        [2, 0, 2],
        [[False, False, True], [False, False, False], [True, False, True]],
    ]
    assert isinstance(pairs, Pairs)
    some = pairs.only(torch.tensor([True, False, True]))
    assert (some.image.tolist(), some.classes.tolist(), some.column.tolist()) == ([0, 2], [4, 4], [2, 2])
    assert torch.equal(some.present, pairs.present)


@pytest.mark.parametrize("strange", [2, 5])
def test_a_label_that_is_no_candidate_is_refused(strange: int) -> None:
    with pytest.raises(ValueError, match="no candidate"):
        pairs_of(torch.tensor([[0, strange]]), torch.tensor([1, 3, 4]), 1)
