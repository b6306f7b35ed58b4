"""Cross-entropy and KL divergence against sparse soft targets, in O(K) a pixel at any number of classes.

A target is `ids` [B, K, H, W] and `weights` [B, K, H, W]: the share of class ids[b, k, y, x] in that cell. A void or
empty slot has weight 0 (its id may be anything), and a cell whose weights are all 0 is void: it costs nothing and
counts nowhere. Hard labels are K = 1. With S = sum of the weights of a cell, its cost is

    sum_k w_k (logsumexp(z) - z[id_k])  =  S logsumexp(z) - sum_k w_k z[id_k]

so only one logsumexp over the classes and K gathered logits are needed, and no [B, C, H, W] log-probabilities.
The sums are taken in float32 (float64 for float64 logits), whatever the logits' type.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from train.config import Loss

VoidRule = Literal["mask", "renormalise", "keep"]


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
    raise NotImplementedError


def soft_kl(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence (soft-label paper, eq. 5): `soft_cross_entropy` less the targets' entropy, so its floor is 0.

    The gradients are those of the cross-entropy. Arguments and result as in `soft_cross_entropy`.
    """
    raise NotImplementedError


def single_class_only(weights: Tensor) -> Tensor:
    """`weights` [B, K, H, W] with every cell that holds more than one class made void (the paper's MC switch off)."""
    raise NotImplementedError


def apply_void_rule(weights: Tensor, rule: VoidRule) -> Tensor:
    """Weights [B, K, H, W] after the rule for cells that are partly void (S < 1). Applying it twice changes nothing.

    "mask": cells with S <= 1/2 become void, the others are divided by S; "renormalise": every cell with S > 0 is
    divided by S; "keep": as they are, so that a cell counts by its labelled share.
    """
    raise NotImplementedError


class SoftLoss(nn.Module):
    """The loss of a recipe: the void rule, the MC switch, then cross-entropy or KL.

    forward(logits [B, C, H, W], ids [B, K, H, W], weights [B, K, H, W]) -> (loss_sum, weight_sum).
    """

    def __init__(self, kind: Literal["cross-entropy", "kl"], void: VoidRule, multi_class_cells: bool) -> None:
        super().__init__()
        self.kind, self.void, self.multi_class_cells = kind, void, multi_class_cells

    def forward(self, logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        weights = apply_void_rule(weights, self.void)
        if not self.multi_class_cells:
            weights = single_class_only(weights)
        measure = soft_cross_entropy if self.kind == "cross-entropy" else soft_kl
        return measure(logits, ids, weights)


def build_loss(config: Loss) -> SoftLoss:
    """The loss that a recipe's section describes."""
    return SoftLoss(config.kind, config.void, config.multi_class_cells)
