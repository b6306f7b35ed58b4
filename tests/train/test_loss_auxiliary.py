"""Auxiliary losses against a dense one-hot definition in float64, and targets against stored soft labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import shards
from train.batch import Item, collate, targets_of
from train.config import from_dict
from train.losses.auxiliary import LadderLoss, auxiliary_loss, nearest_targets, reduced_targets
from train.losses.soft import SoftLoss
from train.objective import build_objective

VOID = 65535
Hard = npt.NDArray[np.uint16]


# Half void in all: 18 of 36 pixels, whose shares, each rounded, sum to more than 1/2.
JUST_HALF = [
    [10, 4, 5, 4], [4, 1, -1, 3], [-1, -1, 3, -1], [-1, -1, 2, 9], [-1, -1, -1, 8], [4, -1, 7, -1], [-1, 6, -1, 4],
    [0, 7, -1, -1], [-1, 1, -1, -1],
]  # fmt: skip


@dataclass(frozen=True)
class Out:
    logits: Tensor
    steps: tuple[Tensor, ...]
    pools: tuple[Tensor, ...]


def blobs(height: int, width: int, classes: int, seed: int, void: float = 0.3) -> Hard:
    """Patches of classes, some of them void, and single void pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (-(-height // 5), -(-width // 7))).astype(np.uint16)
    coarse[rng.random(coarse.shape) < void] = VOID
    hard = coarse.repeat(5, 0).repeat(7, 1)[:height, :width].copy()
    hard[rng.random(hard.shape) < void / 10] = VOID
    return hard


def batch_of(*labels: shards.SoftLabel) -> tuple[Tensor, Tensor]:
    """ids and weights [B, K, H, W], as the trainer makes them."""
    items = [Item("k", np.zeros((3, *s.base.shape), np.uint8), targets_of(s, "mask", 256)) for s in labels]
    made = collate(items)
    return made.ids, made.weights


def dense(ids: Tensor, weights: Tensor, classes: int, grid: tuple[int, int]) -> Tensor:
    """A target out of sparse planes."""
    full = torch.zeros(len(ids), classes, *grid)
    return full.scatter_add_(1, ids.long(), weights)


def one_hot(hard: Hard, classes: int, stride: int, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """[C + 1, h * k, w * k] with void last; the padding is void."""
    padded = np.full((grid[0] * stride, grid[1] * stride), VOID, np.int64)
    padded[: hard.shape[0], : hard.shape[1]] = hard
    padded[padded == VOID] = classes
    full: npt.NDArray[np.float64] = np.eye(classes + 1)[padded].transpose(2, 0, 1)
    return full


def rule(mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[C + 1, ...] means -> [C, ...] targets."""
    shares: npt.NDArray[np.float64] = mean[:-1] / np.where(mean[-1] < 0.5, 1 - mean[-1], np.inf)
    return shares


def oracle_step(hard: Hard, classes: int, stride: int, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    full = one_hot(hard, classes, stride, grid)
    return rule(full.reshape(classes + 1, grid[0], stride, grid[1], stride).mean((2, 4)))


def oracle_pool(
    hard: Hard, classes: int, down: int, grid: tuple[int, int], pool: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Means over pixels: bins of whole cells, from floor(i h / rows) up to ceil((i + 1) h / rows)."""
    full = one_hot(hard, classes, down, grid)
    mean = np.zeros((classes + 1, *pool))
    for i in range(pool[0]):
        top, bottom = math.floor(i * grid[0] / pool[0]), math.ceil((i + 1) * grid[0] / pool[0])
        for j in range(pool[1]):
            left, right = math.floor(j * grid[1] / pool[1]), math.ceil((j + 1) * grid[1] / pool[1])
            mean[:, i, j] = full[:, top * down : bottom * down, left * down : right * down].mean((1, 2))
    return rule(mean)


SIZES = [(64, 128), (70, 200), (33, 40), (128, 36)]


@pytest.mark.parametrize("size", SIZES)
def test_targets_are_the_means_of_one_hot_labels(size: tuple[int, int]) -> None:
    """Steps and pools, sizes that are no multiples, grids that are not square and overlap."""
    classes, down = 5, 32
    grid = (-(-size[0] // down), -(-size[1] // down))
    steps = [(k, (grid[0] * down // k, grid[1] * down // k)) for k in (32, 16, 8, 4)]
    pools = [(8, 11), (4, 6), (2, 3), (1, 1)]
    hard = [blobs(*size, classes, seed) for seed in (1, 2)]
    ids, weights = batch_of(*map(shards.SoftLabel.from_hard, hard))
    of_steps, of_pools = reduced_targets(ids, weights, classes, steps, pools, (down, grid))
    for (stride, cells), target in zip(steps, of_steps, strict=True):
        expected = np.stack([oracle_step(h, classes, stride, cells) for h in hard])
        np.testing.assert_allclose(target.numpy(), expected, atol=1e-7)
    for pool, target in zip(pools, of_pools, strict=True):
        expected = np.stack([oracle_pool(h, classes, down, grid, pool) for h in hard])
        np.testing.assert_allclose(target.numpy(), expected, atol=1e-6)
    assert all(0 < float((t.sum(1) == 0).float().mean()) < 1 for t in of_steps[1:])  # the void rule had work to do


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_targets_from_shards_are_the_same_bits(stride: int) -> None:
    """A crop softened by an area mean as the shards store it, against the crop's own label reduced by the loss."""
    hard = blobs(128, 192, 9, stride, void=0.2)
    grid = (128 // stride, 192 // stride)
    stored = dense(*batch_of(shards.soften(hard, f"1/{stride}", "box")), 9, grid)
    ids, weights = batch_of(shards.SoftLabel.from_hard(hard))
    (reduced,), _ = reduced_targets(ids, weights, 9, [(stride, grid)], [], (stride, grid))
    chain = [(k, (128 // k, 192 // k)) for k in (64, 32, 16, 8, 4)]
    steps, _ = reduced_targets(ids, weights, 9, chain, [], chain[0])
    assert torch.equal(reduced, stored)
    assert torch.equal(steps[[k for k, _ in chain].index(stride)], stored)


def test_targets_of_a_soft_crop() -> None:
    """Training at 1/2: its soft label reduced by 4 is the label softened to 1/8, where nothing is void."""
    hard = blobs(64, 96, 6, 3, void=0.0)
    ids, weights = batch_of(shards.soften(hard, "1/2", "box"))
    assert ids.shape[1] > 1
    (reduced,), _ = reduced_targets(ids, weights, 6, [(4, (8, 12))], [], (4, (8, 12)))
    assert torch.equal(reduced, dense(*batch_of(shards.soften(hard, "1/8", "box")), 6, (8, 12)))


def test_exactly_half_void_is_void() -> None:
    """On steps and on pools, whose sum over classes is not to be rounded over the edge."""
    hard = np.full((2, 6), VOID, np.uint16)
    hard[0] = [0, 1, 2, 0, 1, 2]  # each 2 x 2 cell and the whole: half void
    ids, weights = batch_of(shards.SoftLabel.from_hard(hard))
    (step,), (pool,) = reduced_targets(ids, weights, 3, [(2, (1, 3))], [(1, 1)], (2, (1, 3)))
    assert not step.any()
    assert not pool.any()
    hard[1, 0] = 2
    (step,), (pool,) = reduced_targets(
        *batch_of(shards.SoftLabel.from_hard(hard)), 3, [(2, (1, 3))], [(1, 1)], (2, (1, 3))
    )
    torch.testing.assert_close(step[0, :, 0], torch.tensor([[1, 0, 0], [1, 0, 0], [1, 0, 0]]) / 3)
    torch.testing.assert_close(pool[0, :, 0, 0], torch.tensor([2, 2, 3]) / 7)


def test_exactly_half_void_is_void_whatever_rounding_does_to_the_shares() -> None:
    cells = np.array(JUST_HALF).reshape(9, 2, 2)
    hard = np.where(cells < 0, VOID, cells).astype(np.uint16).transpose(1, 0, 2).reshape(2, 18)
    ids, weights = batch_of(shards.SoftLabel.from_hard(hard))
    assert int(weights.sum()) == 18
    _, (pool,) = reduced_targets(ids, weights, 11, [(2, (1, 9))], [(1, 1)], (2, (1, 9)))
    assert not pool.any()


def output(batch: int, classes: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Out:
    """Random logits of a ladder 32 -> 4 on images of `size`."""
    torch.manual_seed(5)
    grid = (-(-size[0] // 32), -(-size[1] // 32))

    def head(h: int, w: int) -> Tensor:
        return torch.randn(batch, classes, h, w, dtype=dtype, requires_grad=True)

    steps = tuple(head(grid[0] * k, grid[1] * k) for k in (1, 2, 4))
    return Out(head(*size), steps, (head(8, 5), head(4, 2), head(2, 1), head(1, 1)))


def oracle_loss(out: Out, hard: list[Hard], classes: int) -> float:
    """0.6 main + 0.4 mean of equation 1 with W H the padded size, all times the number of labelled pixels."""

    def entropy(logits: Tensor, targets: npt.NDArray[np.float64]) -> float:
        z = logits.detach().double().numpy()
        return float(-(targets * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum())

    size = out.steps[0].shape[2] * 32, out.steps[0].shape[3] * 32
    grid = size[0] // 32, size[1] // 32
    costs = []
    for stride, logits in zip((32, 16, 8), out.steps, strict=True):
        t = np.stack([oracle_step(h, classes, stride, tuple(logits.shape[2:])) for h in hard])  # type: ignore[arg-type]
        costs.append(stride**2 / (size[0] * size[1]) * entropy(logits, t))
    for logits in out.pools:
        pool = (logits.shape[2], logits.shape[3])
        t = np.stack([oracle_pool(h, classes, 32, grid, pool) for h in hard])
        costs.append(entropy(logits, t) / (pool[0] * pool[1]))
    main = entropy(out.logits, np.stack([one_hot(h, classes, 1, h.shape)[:-1] for h in hard]))  # type: ignore[arg-type]
    return 0.6 * main + 0.4 * float(np.mean(costs)) * size[0] * size[1]


def number(cost: Tensor) -> float:
    return float(cost.detach())


def ladder(kind: str = "cross-entropy", multi: bool = True) -> LadderLoss:
    return LadderLoss(SoftLoss(kind, multi), (32, 16, 8), 32, 0.4)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_loss_is_equation_1(size: tuple[int, int]) -> None:
    hard = [blobs(*size, 4, seed) for seed in (1, 2)]
    out = output(2, 4, size)
    loss, weight = ladder()(out, *batch_of(*map(shards.SoftLabel.from_hard, hard)))
    assert number(loss) == pytest.approx(oracle_loss(out, hard, 4), rel=1e-6)
    assert float(weight) == sum(int((h != VOID).sum()) for h in hard)


def test_gradients_are_those_of_the_formula() -> None:
    """area * 0.4 / n * (S softmax(z) - t), here of one step and one pool; 0.6 of the main gradient."""
    hard = blobs(64, 64, 4, 7)
    out = output(1, 4, (64, 64))
    ids, weights = batch_of(shards.SoftLabel.from_hard(hard))
    ladder()(out, ids, weights)[0].backward()
    for logits, target, area in (
        (out.steps[1], oracle_step(hard, 4, 16, (4, 4)), 256),
        (out.pools[1], oracle_pool(hard, 4, 32, (2, 2), (4, 2)), 64 * 64 / 8),
    ):
        t = torch.from_numpy(target)
        expected = area * 0.4 / 7 * (t.sum(0) * logits[0].softmax(0) - t)
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad[0], expected, rtol=1e-6, atol=1e-6)
    assert out.logits.grad is not None
    t = torch.from_numpy(one_hot(hard, 4, 1, (64, 64))[:-1])
    torch.testing.assert_close(
        out.logits.grad[0], 0.6 * (t.sum(0) * out.logits[0].softmax(0) - t), rtol=1e-6, atol=1e-7
    )


def test_sums_add_up_over_parts_of_a_batch() -> None:
    hard = [blobs(64, 64, 4, seed) for seed in (1, 2, 3)]
    out, labels = output(3, 4, (64, 64)), [shards.SoftLabel.from_hard(h) for h in hard]
    whole = ladder()(out, *batch_of(*labels))
    parts = []
    for at in (slice(0, 1), slice(1, 3)):
        part = Out(out.logits[at], tuple(s[at] for s in out.steps), tuple(p[at] for p in out.pools))
        parts.append(ladder()(part, *batch_of(*labels[at])))
    assert number(whole[0]) == pytest.approx(number(parts[0][0] + parts[1][0]), rel=1e-9)
    assert float(whole[1]) == float(parts[0][1] + parts[1][1])


def test_all_void_costs_nothing() -> None:
    hard = np.full((40, 50), VOID, np.uint16)
    out = output(2, 4, (40, 50), torch.float32)
    loss, weight = ladder()(out, *batch_of(*[shards.SoftLabel.from_hard(hard)] * 2))
    loss.backward()
    assert number(loss) == 0
    assert float(weight) == 0
    heads = [out.logits, *out.steps, *out.pools]
    assert all(head.grad is not None and not head.grad.any() for head in heads)


def test_kl_has_floor_zero() -> None:
    """Logits that are the targets' logarithms: cross-entropy is their entropy, KL 0."""
    hard = blobs(64, 64, 3, 4, void=0.0)
    ids, weights = batch_of(shards.SoftLabel.from_hard(hard))

    def log(target: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(target).clamp_min(1e-30).log()[None]

    steps = tuple(log(oracle_step(hard, 3, k, (64 // k, 64 // k))) for k in (32, 16, 8))
    out = Out(log(one_hot(hard, 3, 1, (64, 64))[:-1]), steps, (log(oracle_pool(hard, 3, 32, (2, 2), (1, 1))),))
    assert float(auxiliary_loss(out, ids, weights, (32, 16, 8), 32)) > 100
    assert abs(float(auxiliary_loss(out, ids, weights, (32, 16, 8), 32, kl=True))) < 0.01
    assert abs(number(ladder("kl")(out, ids, weights)[0])) < 0.01


def test_single_class_only_holds_for_the_auxiliary_losses() -> None:
    """A soft crop: what the switch leaves out of the main loss is void in the auxiliary ones."""
    ids, weights = batch_of(shards.soften(blobs(128, 128, 4, 8), "1/2", "box"))
    masked = weights * ((weights > 0).sum(1, keepdim=True) <= 1)
    assert not torch.equal(masked, weights)
    out = output(1, 4, (64, 64))
    assert number(ladder(multi=False)(out, ids, weights)[0]) == number(ladder()(out, ids, masked)[0])


def test_half_precision_is_summed_in_float32() -> None:
    hard = blobs(64, 64, 4, 1)
    ids, weights = batch_of(shards.SoftLabel.from_hard(hard))
    out = output(1, 4, (64, 64), torch.float32)
    half = Out(out.logits.bfloat16(), tuple(s.bfloat16() for s in out.steps), tuple(p.bfloat16() for p in out.pools))
    wide = Out(half.logits.float(), tuple(s.float() for s in half.steps), tuple(p.float() for p in half.pools))
    assert number(ladder()(half, ids, weights)[0]) == pytest.approx(number(ladder()(wide, ids, weights)[0]), rel=1e-6)


def test_ids_of_empty_slots_may_be_anything() -> None:
    ids, weights = batch_of(shards.SoftLabel.from_hard(blobs(64, 64, 4, 1)))
    out = output(1, 4, (64, 64))
    wild = torch.where(weights > 0, ids, 65535)
    assert number(ladder()(out, wild, weights)[0]) == number(ladder()(out, ids, weights)[0])


def test_heads_that_do_not_fit_are_refused() -> None:
    ids, weights = batch_of(shards.SoftLabel.from_hard(blobs(64, 64, 4, 1)))
    out = output(1, 4, (64, 64))
    with pytest.raises(ValueError, match="3 steps and 4 pools: expected 2 steps"):
        auxiliary_loss(out, ids, weights, (32, 16), 32)
    with pytest.raises(ValueError, match="cover the label"):
        auxiliary_loss(output(1, 4, (32, 32)), ids, weights, (32, 16, 8), 32)


@pytest.mark.parametrize("size", SIZES)
def test_nearest_targets_are_the_labels_at_the_cells_centres(size: tuple[int, int]) -> None:
    """Against torch's nearest-exact resize of the padded label, on grids of steps and of pools."""
    classes, down = 5, 32
    padded = (-(-size[0] // down) * down, -(-size[1] // down) * down)
    grids = [(padded[0] // 8, padded[1] // 8), (padded[0] // 32, padded[1] // 32), (8, 11), (1, 1)]
    hard = blobs(*size, classes, 4)
    full = np.full(padded, VOID, np.uint16)
    full[: size[0], : size[1]] = hard
    targets = nearest_targets(*batch_of(shards.SoftLabel.from_hard(hard)), classes, grids, padded)
    for grid, target in zip(grids, targets, strict=True):
        wide = torch.from_numpy(full.astype(np.float64))[None, None]
        expected = torch.nn.functional.interpolate(wide, grid, mode="nearest-exact")[0, 0].long()
        for index in range(classes):
            assert torch.equal(target[0, index] == 1, expected == index)
        assert torch.equal(target[0].sum(0) == 0, expected == VOID)
    assert any(bool((t.sum(1) == 0).any()) for t in targets)


def test_a_recipe_chooses_between_soft_and_nearest_auxiliary_targets() -> None:
    """The loss of a cell of two classes tells them apart, and old runs are stored as before."""
    model = {"arch": "ladder", "encoder": "resnet18", "down": 32, "up": 4}
    costs = {}
    for kind in ("soft", "nearest"):
        recipe = from_dict({"name": "x", "description": "x", "model": model, "loss": {"aux_targets": kind}})
        assert ("aux_targets" in recipe.to_dict()["loss"]) == (kind == "nearest")
        out = output(1, 5, (64, 64))
        batch = batch_of(shards.SoftLabel.from_hard(blobs(64, 64, 5, 2)))
        costs[kind] = float(build_objective(recipe)(out, *batch)[0].detach())
    assert abs(costs["soft"] - costs["nearest"]) > 1.0
