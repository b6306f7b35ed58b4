"""Auxiliary losses of a ladder network: cross-entropy of coarse logits against soft targets at their own stride.

    loss = LadderLoss(strides=(64, 32, 16, 8), down=64, aux_weight=0.4, ...)
    loss_sum, weight_sum = loss(output of the network in training, ids [B, K, H, W], weights [B, K, H, W])

Source: Krešo, Krapac, Šegvić, "Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images", 2021,
equations 1 and 2. A target is the mean of the one-hot labels over the k x k pixels of a cell, void among them; a cell
with a void share of 1/2 or more is void, the shares of any other are divided by what is not void. Pooled tensors have
targets on their own grids: means over the same cells of the coarsest map that torch's adaptive average pooling takes.

The labels are summed once, at the finest stride; coarser targets are means of finer ones. With hard labels all shares
are multiples of 1 / k^2 for k a power of 2, which float32 holds exactly: the targets are then the very numbers that
`train.batch.targets_of` makes of a label softened by `shards.soften(hard, "1/k", "box")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses.soft import SoftLoss, single_class_only

Grid = tuple[int, int]


class Output(Protocol):
    """What a ladder network gives in training: logits of the last map, of each step's input, of each pooled tensor."""

    @property
    def logits(self) -> Tensor:
        """[B, C, H, W]."""

    @property
    def steps(self) -> tuple[Tensor, ...]:
        """[B, C, h, w] each, coarsest first."""

    @property
    def pools(self) -> tuple[Tensor, ...]:
        """[B, C, rows, columns] each."""


def class_shares(ids: Tensor, weights: Tensor, num_classes: int, stride: int, grid: Grid) -> Tensor:
    """The share of each class in k x k pixels, k = `stride`; what is void or outside of the label has no share.

    Args:
        ids: [B, K, H, W], any integer type; in [0, C) wherever the weight is above 0.
        weights: [B, K, H, W], floating, >= 0.
        num_classes: C.
        stride: k.
        grid: (h, w) of the result; at least H / k and W / k.

    Returns:
        [B, C, h, w] in float32 (float64 for float64 weights), summing to at most 1 a cell.
    """
    (batch, _, height, width), (h, w) = ids.shape, grid
    if h * stride < height or w * stride < width:
        raise ValueError(f"grid {h}x{w} at stride {stride}: expected to cover the label of {height}x{width}")
    y = torch.arange(height, device=ids.device) // stride
    x = torch.arange(width, device=ids.device) // stride
    image = torch.arange(batch, device=ids.device).view(-1, 1, 1, 1)
    plane = image * num_classes + torch.where(weights > 0, ids.long(), 0)  # [B, K, H, W]; empty slots may hold any id
    slot = plane.mul_(h * w).add_(y.view(-1, 1) * w + x)
    weights = weights if weights.dtype == torch.float64 else weights.float()
    sums = weights.new_zeros(batch * num_classes * h * w)
    sums.scatter_add_(0, slot.flatten(), weights.flatten())  # one dimension: deterministic on CUDA where asked
    return sums.view(batch, num_classes, h, w).div_(stride * stride)


def settled(shares: Tensor, known: Tensor) -> Tensor:
    """The paper's void rule.

    Args:
        shares: [B, C, h, w].
        known: [B, 1, h, w], the share of a cell that is not void (their sum, but for rounding).

    Returns:
        `shares` divided by `known` where that is above 1/2, else 0 in all classes.
    """
    return torch.where(known > 0.5, shares / known, 0.0)


def reduced_targets(
    ids: Tensor,
    weights: Tensor,
    num_classes: int,
    steps: Sequence[tuple[int, Grid]],
    pools: Sequence[Grid],
    base: tuple[int, Grid],
) -> tuple[list[Tensor], list[Tensor]]:
    """Targets of all auxiliary heads out of one pass over the labels.

    Args:
        ids, weights: [B, K, H, W], as in `class_shares`.
        num_classes: C.
        steps: stride k and grid (h, w) of each head, coarsest first; each stride divides the one before it, and
            h * k, w * k are the same for all: the padded size.
        pools: (rows, columns) of each pooled tensor.
        base: stride and grid of the map that is pooled; no finer than any of `steps`.

    Returns:
        Targets [B, C, h, w] of the steps and [B, C, rows, columns] of the pooled tensors; 0 in void cells.
    """
    wanted = dict([base, *steps])
    strides = sorted(wanted)
    shares = class_shares(ids, weights, num_classes, strides[0], wanted[strides[0]])
    means = {strides[0]: shares}
    for finer, stride in pairwise(strides):
        means[stride] = F.avg_pool2d(means[finer], stride // finer)
    known = {stride: mean.sum(1, keepdim=True) for stride, mean in means.items()}
    of_steps = [settled(means[stride], known[stride]) for stride, _ in steps]
    coarse, mass = means[base[0]], known[base[0]]
    of_pools = [settled(F.adaptive_avg_pool2d(coarse, grid), F.adaptive_avg_pool2d(mass, grid)) for grid in pools]
    return of_steps, of_pools


def nearest_targets(
    ids: Tensor, weights: Tensor, num_classes: int, grids: Sequence[Grid], padded: Grid
) -> list[Tensor]:
    """Targets that look at one pixel a cell: the label at its centre, as torch's "nearest-exact" takes it.

    What soft targets are measured against. A pixel that is void, or lies in the padding, makes a void cell.

    Args:
        ids, weights: [B, K, H, W], as in `class_shares`.
        num_classes: C.
        grids: (h, w) of each head.
        padded: (H', W') that every grid covers, at least H and W.

    Returns:
        [B, C, h, w] a grid.
    """
    found = []
    for grid in grids:
        places = [_centres(n, full).to(ids.device) for n, full in zip(grid, padded, strict=True)]
        inside = [place < size for place, size in zip(places, ids.shape[2:], strict=True)]
        rows, columns = (place.clamp(max=n - 1) for place, n in zip(places, ids.shape[2:], strict=True))
        at = (slice(None), slice(None), rows[:, None], columns)
        heavy = weights[at] * (inside[0][:, None] & inside[1])  # [B, K, h, w]
        shares = class_shares(ids[at], heavy, num_classes, 1, grid)
        found.append(settled(shares, shares.sum(1, keepdim=True)))
    return found


def _centres(cells: int, size: int) -> Tensor:
    """The pixel at the middle of each cell of a grid over `size` pixels: int64 [cells]."""
    return torch.div((2 * torch.arange(cells) + 1) * size, 2 * cells, rounding_mode="floor")


def cross_entropy_sum(logits: Tensor, targets: Tensor, kl: bool = False) -> Tensor:
    """- sum t log softmax(z) over all classes and cells, 0-dim; less the targets' entropy if `kl`.

    Args:
        logits: [B, C, h, w], any floating type; taken to float32 at least.
        targets: [B, C, h, w], shares that sum to 1, or all 0 in a void cell.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    cost = F.cross_entropy(wide, targets.to(wide.dtype), reduction="sum")
    return cost + torch.xlogy(targets, targets).sum() if kl else cost


def auxiliary_loss(
    output: Output,
    ids: Tensor,
    weights: Tensor,
    strides: Sequence[int],
    down: int,
    kl: bool = False,
    soft: bool = True,
) -> Tensor:
    """The mean over all auxiliary heads of equation 1, times W H B: a sum over pixels, which adds up over batches.

    Each cell's cost counts for the pixels that the cell stands for: k * k, or the padded size over rows * columns.

    Args:
        output: steps and pools of a network in training.
        ids, weights: [B, K, H, W] of its images.
        strides: k of each step, coarsest first.
        down: stride of the map that the pooled tensors are pools of.
        kl: see `cross_entropy_sum`.
        soft: `reduced_targets`, else `nearest_targets`.
    """
    heads = [*output.steps, *output.pools]
    if len(strides) != len(output.steps) or not heads:
        raise ValueError(f"{len(output.steps)} steps and {len(output.pools)} pools: expected {len(strides)} steps")
    (height, width), finest = ids.shape[2:], dict(zip(strides, map(_grid, output.steps), strict=True))
    base = finest.get(down, (-(-height // down), -(-width // down)))
    pools, classes = [_grid(pool) for pool in output.pools], output.logits.shape[1]
    if soft:
        of_steps, of_pools = reduced_targets(ids, weights, classes, list(finest.items()), pools, (down, base))
        targets = [*of_steps, *of_pools]
    else:
        size = (base[0] * down, base[1] * down)
        targets = nearest_targets(ids, weights, classes, [*finest.values(), *pools], size)
    padded = base[0] * base[1] * down * down
    areas = [stride * stride for stride in strides] + [
        padded / (pool.shape[2] * pool.shape[3]) for pool in output.pools
    ]
    costs = [a * cross_entropy_sum(head, t, kl) for a, head, t in zip(areas, heads, targets, strict=True)]
    return torch.stack(costs).sum() / len(heads)


def _grid(logits: Tensor) -> Grid:
    return logits.shape[2], logits.shape[3]


class LadderLoss(nn.Module):
    """(1 - aux_weight) of the main loss and aux_weight of the mean auxiliary one.

    forward(output, ids [B, K, H, W], weights [B, K, H, W]) -> (loss_sum, weight_sum), sums over pixels and over the
    labels' weights that add up over micro-batches and ranks. Their quotient is the paper's loss but for one thing:
    equation 1 divides by all pixels, we divide by those that are labelled, for either part.

    Args:
        main: the loss of the last logits, whose switches hold for the auxiliary losses as well.
        strides: of the ladder's steps, coarsest first.
        down: stride of the map that is pooled.
        aux_weight: of the auxiliary losses' mean.
        soft: whether auxiliary targets are the shares of a cell, or the label at its centre.
    """

    def __init__(self, main: SoftLoss, strides: Sequence[int], down: int, aux_weight: float, soft: bool = True) -> None:
        super().__init__()
        self.soft = soft
        self.main, self.strides, self.down, self.aux_weight = main, tuple(strides), down, aux_weight

    def forward(self, output: Output, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if not self.main.multi_class_cells:
            weights = single_class_only(weights)
        loss_sum, weight_sum = self.main(output.logits, ids, weights)
        kl = self.main.kind == "kl"
        extra = auxiliary_loss(output, ids, weights, self.strides, self.down, kl, self.soft)
        return (1.0 - self.aux_weight) * loss_sum + self.aux_weight * extra.to(loss_sum.dtype), weight_sum
