"""Cross-entropy and KL divergence against sparse soft targets, in O(K) a pixel at any number of classes.

A target is `ids` [B, K, H, W] and `weights` [B, K, H, W]: the share of class ids[b, k, y, x] in that cell. A void or
empty slot has weight 0 (its id may be anything), and a cell whose weights are all 0 is void: it costs nothing and
counts nowhere. Hard labels are K = 1. What becomes of cells that are partly void (`loss.void`) is settled where the
batch is made (train/batch.py): here S may be anything from 0 to 1. With S = sum of the weights of a cell, its cost is

    - sum_k w_k log softmax(z)[id_k]        with the gradient        S softmax(z) - w

so one fused pass over the classes and K gathered numbers are enough, forward and backward. The gradient is built in
place, in the one [B, C, H, W] array that is returned: nothing of that size is kept between the two passes.
The sums are taken in float32 (float64 for float64 logits), whatever the logits' type.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from train.config import Loss


def soft_cross_entropy(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the softmax of `logits` against sparse shares.

    Args:
        logits: [B, C, H, W], any floating type.
        ids: [B, K, H, W], any integer type; in [0, C) wherever the weight is above 0.
        weights: [B, K, H, W], floating, >= 0.

    Returns:
        (loss_sum, weight_sum), two scalars: the cost summed over all cells, and the sum of all weights. Their
        quotient is the mean cost a labelled cell; sums add up across accumulated steps and ranks.
    """
    ids = torch.where(weights > 0, ids.long(), 0)  # an id out of range fails loudly, unless its slot is empty
    weights = weights.to(_wide(logits))
    loss_sum: Tensor = _SparseCrossEntropy.apply(logits, ids, weights)
    return loss_sum, weights.sum()


def soft_kl(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence (soft-label paper, eq. 5): `soft_cross_entropy` less the targets' entropy, so its floor is 0.

    The gradients are those of the cross-entropy. Arguments and result as in `soft_cross_entropy`.
    """
    loss_sum, weight_sum = soft_cross_entropy(logits, ids, weights)
    return loss_sum - _entropy(weights.to(loss_sum.dtype)).sum(), weight_sum


def single_class_only(weights: Tensor) -> Tensor:
    """`weights` [B, K, H, W] with every cell that holds more than one class made void (the paper's MC switch off)."""
    return weights * ((weights > 0).sum(dim=1, keepdim=True) <= 1)


class _SparseCrossEntropy(torch.autograd.Function):
    """- sum_k w_k log softmax(z)[id_k], summed over the cells; differentiable once, in the logits.

    Keeps only its arguments; backward recomputes the softmax, which is one pass, and turns it into the gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(logits, ids, weights)
        chosen = F.log_softmax(logits, dim=1, dtype=weights.dtype).gather(1, ids)  # [B, K, H, W]
        return -(weights * chosen).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, weights = ctx.saved_tensors
        gradient = F.softmax(logits, dim=1, dtype=weights.dtype)  # [B, C, H, W]
        gradient.mul_(weights.sum(dim=1, keepdim=True) * upstream)
        gradient.scatter_add_(1, ids, weights * -upstream)
        return gradient.to(logits.dtype), None, None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _entropy(weights: Tensor) -> Tensor:
    """Entropy (nats) of each cell's shares, times their sum S: what cross-entropy cannot go below; [B, H, W]."""
    total = weights.sum(dim=1)
    return torch.xlogy(total, total) - torch.xlogy(weights, weights).sum(dim=1)


class SoftLoss(nn.Module):
    """The loss of a recipe: the MC switch, then cross-entropy or KL.

    forward(logits [B, C, H, W], ids [B, K, H, W], weights [B, K, H, W]) -> (loss_sum, weight_sum).
    """

    def __init__(self, kind: Literal["cross-entropy", "kl"], multi_class_cells: bool) -> None:
        super().__init__()
        self.kind, self.multi_class_cells = kind, multi_class_cells

    def forward(self, logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if not self.multi_class_cells:
            weights = single_class_only(weights)
        measure = soft_cross_entropy if self.kind == "cross-entropy" else soft_kl
        return measure(logits, ids, weights)


def build_loss(config: Loss) -> SoftLoss:
    """The loss that a recipe's section describes."""
    return SoftLoss(config.kind, config.multi_class_cells)
