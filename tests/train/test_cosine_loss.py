"""The pixel loss of a cosine head against a dense softmax in float64, and what it never makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shards.errors import SettingsError
from tests.train.conftest import recipe
from tests.train.test_loop import trainer
from train.config import Loss
from train.losses.cosine import CosineLoss, drawn
from train.losses.dot import dot_cross_entropy_sums
from train.models import Cosined, CosineModel

STRIDE = 4


def unit(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def output_of(
    seed: int, classes: int, size: tuple[int, int] = (8, 12), pad: int = 0, standardised: bool = True, d: int = 5
) -> Cosined:
    """Leaves with gradient; `pad` cells more than the images need."""
    rows, columns = (-(-side // STRIDE) + pad for side in size)
    features, table = unit(seed, 2, d, rows, columns), unit(seed + 1, classes, d)
    gamma = torch.tensor(1.4, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (features, table, gamma)]
    return Cosined(leaves[0], leaves[1], leaves[2], standardised, size, STRIDE)


def targets_of(seed: int, classes: list[int], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two classes a cell, some cells void, empty slots with senseless ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(classes)[torch.randint(len(classes), (2, 2, *grid), generator=generator)]
    first = torch.rand(2, 1, *grid, generator=generator, dtype=torch.float64)
    first[first > 0.8] = 1.0
    weights = torch.cat([first, 1 - first], 1)
    weights[torch.rand(2, 1, *grid, generator=generator).expand(-1, 2, -1, -1) < 0.2] = 0.0
    return torch.where(weights > 0, ids, 10**6), weights


def naive(output: Cosined, ids: Tensor, weights: Tensor, candidates: list[int]) -> Tensor:
    """The formulas of train/models/cosine.py, cell by cell, with nothing left out that cancels."""
    scores = torch.einsum("bdhw,cd->bchw", output.features, output.table[candidates])
    if output.standardised:
        mean = scores.mean(1, keepdim=True)
        scores = (scores - mean) / torch.sqrt(((scores - mean) ** 2).mean(1, keepdim=True) + 1e-5)
    scores = scores * output.gamma
    cell = next(k for k in (1, 2, 4) if -(-output.size[0] // k) == ids.shape[2])
    whole = [side * STRIDE // cell for side in scores.shape[2:]]
    scores = F.interpolate(scores, size=whole, mode="bilinear", align_corners=False)
    logs = scores[..., : ids.shape[2], : ids.shape[3]].log_softmax(1)
    cost = logs.new_zeros(())
    for b, k, y, x in (weights > 0).nonzero().tolist():
        cost = cost - weights[b, k, y, x] * logs[b, candidates.index(int(ids[b, k, y, x])), y, x]
    return cost


def gradients(cost: Tensor, output: Cosined) -> list[Tensor]:
    return list(torch.autograd.grad(cost, [output.features, output.table, output.gamma], allow_unused=True))


def mask(classes: int, kept: list[int]) -> Tensor:
    found = torch.zeros(classes, dtype=torch.bool)
    found[kept] = True
    return found


@pytest.mark.parametrize("cell", [1, 2, 4])
@pytest.mark.parametrize("standardised", [True, False])
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(0, 1), st.integers(5, 9), st.booleans())
def test_value_and_gradients_equal_the_formulas(
    cell: int, standardised: bool, seed: int, classes: int, pad: int, height: int, all_of_them: bool
) -> None:
    output = output_of(seed, classes, (height, 7), pad, standardised)
    kept = list(range(classes)) if all_of_them else list(range(0, classes, 2))
    ids, weights = targets_of(seed, kept, (-(-height // cell), -(-7 // cell)))
    cost, mass = CosineLoss(Loss())(output, ids, weights, None if all_of_them else mask(classes, kept))
    want = naive(output, ids, weights, kept)
    torch.testing.assert_close(cost, want)
    assert float(mass) == pytest.approx(float(weights.sum()))
    if float(mass):
        for one, two in zip(gradients(cost, output), gradients(want, output), strict=True):
            torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("cell", [2, 4])
def test_gradients_by_differences(cell: int) -> None:
    output = output_of(3, 4, (5, 6))
    ids, weights = targets_of(3, [0, 2, 3], (-(-5 // cell), 6 // cell if cell == 2 else 2))

    def cost(features: Tensor, table: Tensor, gamma: Tensor) -> Tensor:
        out = output._replace(features=features, table=table, gamma=gamma)
        return CosineLoss(Loss())(out, ids, weights, mask(4, [0, 2, 3]))[0]

    assert torch.autograd.gradcheck(cost, (output.features, output.table, output.gamma))


@given(st.integers(0, 999), st.permutations(range(6)))
def test_the_order_of_the_classes_means_nothing(seed: int, order: list[int]) -> None:
    output = output_of(seed, 6)
    ids, weights = targets_of(seed, [0, 1, 4], (2, 3))
    place = torch.tensor(order).argsort()
    moved = output._replace(table=output.table.detach()[order].requires_grad_())
    before, _ = CosineLoss(Loss())(output, ids, weights)
    after, _ = CosineLoss(Loss())(moved, place[torch.where(weights > 0, ids, 0)], weights)
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(gradients(before, output)[1][order], gradients(after, moved)[1])


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_what_is_no_candidate_has_no_gradient_and_no_target(grid: tuple[int, int]) -> None:
    output = output_of(1, 6)
    ids, weights = targets_of(1, [1, 2], grid)
    pull = gradients(CosineLoss(Loss())(output, ids, weights, mask(6, [1, 2, 5]))[0], output)[1]
    assert (pull.abs().sum(1) > 0).tolist() == [False, True, True, False, False, True]
    with pytest.raises(SettingsError, match="class id 1, which is no class of its source"):
        CosineLoss(Loss())(output, ids, weights, mask(6, [2, 5]))


def test_sampled_candidates_are_those_present_and_some_others() -> None:
    output, (ids, weights) = output_of(2, 30), targets_of(2, [4, 9], (2, 3))
    loss, seen = CosineLoss(Loss(sampled_classes=3)), set()
    for seed in range(30):
        torch.manual_seed(seed)
        cost, _ = loss(output, ids, weights, mask(30, list(range(20))))
        kept = gradients(cost, output)[1].abs().sum(1).nonzero()[:, 0].tolist()
        assert len(kept) == 5
        assert {4, 9} <= set(kept) <= set(range(20))
        torch.testing.assert_close(cost, naive(output, ids, weights, kept))
        seen |= set(kept)
        torch.manual_seed(seed)
        assert torch.equal(loss(output, ids, weights, mask(30, list(range(20))))[0], cost)
    assert seen == set(range(20))


@given(st.integers(0, 99), st.integers(1, 8), st.integers(0, 40))
def test_draws(seed: int, present: int, sampled: int) -> None:
    torch.manual_seed(seed)
    allowed = torch.rand(20) < 0.6
    allowed[0] = True
    among = allowed.nonzero()[:present, 0]
    found = drawn(mask(20, among.tolist()), allowed, sampled).tolist()
    assert found == sorted(set(found))
    assert set(among.tolist()) <= set(found) <= set(allowed.nonzero()[:, 0].tolist())
    assert len(found) == min(int(allowed.sum()), len(among) + sampled)


def test_mixed_cells_can_be_left_out_and_kl_is_refused() -> None:
    output, (ids, weights) = output_of(5, 4), targets_of(5, [0, 1, 2, 3], (2, 3))
    single = weights * ((weights > 0).sum(1, keepdim=True) == 1)
    assert 0 < float(single.sum()) < float(weights.sum())
    cost, mass = CosineLoss(Loss(multi_class_cells=False))(output, ids, weights)
    torch.testing.assert_close(cost, naive(output, ids, single, [0, 1, 2, 3]))
    assert float(mass) == float(single.sum())
    with pytest.raises(SettingsError, match=r'loss.kind = "kl": expected "cross-entropy"'):
        CosineLoss(Loss(kind="kl"))


def test_a_batch_of_void_costs_nothing() -> None:
    output, (ids, weights) = output_of(5, 4), targets_of(5, [0], (2, 3))
    cost, mass = CosineLoss(Loss(sampled_classes=2))(output, ids, weights * 0, mask(4, [0, 3]))
    assert (float(cost.detach()), float(mass)) == (0.0, 0.0)
    assert not any(pull.any() for pull in gradients(cost, output))


def test_dense_scores_of_many_classes_are_refused_with_the_way_out() -> None:
    output = output_of(0, 5000, (512, 512))
    ids = torch.zeros(2, 1, 512, 512, dtype=torch.int64)
    with pytest.raises(SettingsError, match=r"take 20 GiB, expected at most 2: set data.target_stride = 4"):
        CosineLoss(Loss())(output, ids, torch.ones(2, 1, 512, 512))
    with pytest.raises(SettingsError, match="targets of 100 x 90 cells for images of 512 x 512"):
        CosineLoss(Loss())(output, ids[:, :, :100, :90], torch.ones(2, 1, 100, 90))
    with pytest.raises(SettingsError, match=r"data.target_stride = 8: expected at most 4, the network's stride"):
        CosineLoss(Loss())(output, ids[:, :, :64, :64], torch.ones(2, 1, 64, 64))


class Largest(TorchDispatchMode):
    """Remembers the most entries of any tensor that an operation made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.untyped_storage().nbytes() // value.element_size())
        return out


def test_nothing_of_cells_times_classes_is_made() -> None:
    rows, classes, d = 3000, 9000, 4
    table = unit(1, classes, d, dtype=torch.float32).requires_grad_()
    features = unit(0, 1, d, 50, 60, dtype=torch.float32).requires_grad_()
    out = Cosined(features, table, torch.tensor(1.0), True, (200, 240), STRIDE)
    with Largest() as watch:
        CosineLoss(Loss())(out, torch.zeros(1, 1, 50, 60).long(), torch.ones(1, 1, 50, 60))[0].backward()
    assert watch.entries <= 1 << 20  # a tile
    assert rows * classes > 20 << 20


def test_tiles_do_not_matter_and_float32_is_near() -> None:
    rows, table = unit(0, 300, 16) * 30, unit(1, 700, 16)
    ids, weights = torch.arange(600).view(300, 2), torch.full((300, 2), 0.5, dtype=torch.float64)
    want = -(0.5 * (rows @ table.t()).log_softmax(1).gather(1, ids)).sum()
    for tile in (None, 1, 50 * 700):
        one, two = (t.clone().requires_grad_() for t in (rows, table))
        cost, mass = dot_cross_entropy_sums(one, two, ids, weights, tile)
        torch.testing.assert_close(cost, want)
        assert float(mass) == 300
    near = dot_cross_entropy_sums(rows.float(), table.float(), ids, weights.float())[0]
    assert float(near) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("score", ["standardised", "scaled"])
def test_the_head_trains_alone_on_ordinary_shards(shard_set: Path, tmp_path: Path, score: str) -> None:
    settings = {"head": "cosine", "score": score, "score_scale": 1.0 if score == "standardised" else 10.0}
    made = trainer(
        shard_set,
        tmp_path / "run",
        recipe(
            model={**settings, "dropout": 0.0, "cosine_dim": 8},
            optim={"lr": 0.02, "weight_decay": 0.0},
            loop={"steps": 30, "batch": 4, "checkpoint_every": 0, "image_every": 15},
        ),
    )
    assert isinstance(made.model, CosineModel)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    first = CosineLoss(Loss())
    assert isinstance(made.loss, type(first))
    summary = made.run()
    assert summary.loss is not None
    assert summary.loss < 0.9  # of log 4 = 1.39
    assert all(not torch.equal(p, before[name]) for name, p in made.model.named_parameters())
