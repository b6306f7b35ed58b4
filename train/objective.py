"""What a step minimises, for any network: `build_objective(recipe)` makes a module of the recipe's [loss] section.

forward(output of the network, ids [B, K, H, W], weights [B, K, H, W], allowed) -> (loss_sum, weight_sum), sums that
add up over micro-batches and ranks. The margin regulariser of an embedding head is not among them: it looks at the
class table alone, so the loop adds it once a step (`margin_gradients`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from train.config import Loss, Recipe
from train.losses import (
    CosineLoss,
    LadderLoss,
    build_loss,
    margin_regulariser,
    nearest_cross_entropy_sums,
    single_class_only,
    streaming_cross_entropy_sums,
)
from train.models import Embedded, EmbeddingModel
from train.neighbors import build_index, nearest

Search = Callable[[Tensor, Tensor, int], Tensor]  # queries [N, d], table [C, d], k -> ids int64 [N, k]


class EmbeddingLoss(nn.Module):
    """Cross-entropy over distances to class embeddings: the nearest classes, or all of them.

    forward(output, ids [B, K, H, W], weights [B, K, H, W], allowed bool [B, C] or None) -> (loss_sum, weight_sum).
    """

    def __init__(self, config: Loss) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, output: Embedded, ids: Tensor, weights: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if not config.multi_class_cells:
            weights = single_class_only(weights)
        rows = (rows_of(output.pixels), output.table, rows_of(ids), rows_of(weights))
        group = None if allowed is None else _images(ids)
        if config.mode == "exact":
            return streaming_cross_entropy_sums(*rows, output.tau, config.distance, allowed=allowed, group=group)
        search = self._search(output, len(rows[0])) if allowed is None else partial(nearest, backend=config.search)
        return nearest_cross_entropy_sums(
            *rows, config.k, output.tau, config.distance, allowed=allowed, group=group, search=search
        )

    def _search(self, output: Embedded, rows: int) -> Search:
        """A search in the class table, or in the older copy of it that `loss.search_every` keeps, made ready once."""
        table = (output.table if output.searched is None else output.searched).detach()
        index = build_index(table, self.config.search, queries=rows, k=min(self.config.k, len(table)))
        return lambda queries, table, k: index.nearest(queries, k)


def check_search(model: nn.Module, config: Loss) -> None:
    """Search once in the class table where it lies, so that a run that cannot is refused before it has a folder.

    Raises:
        SettingsError, UserError: what `loss.search` names is not installed, or does not work on this device.
    """
    if isinstance(model, EmbeddingModel) and config.mode == "nearest":
        table = model.classes().detach()
        nearest(table[:1], table, min(config.k, len(table)), config.search)


def build_objective(recipe: Recipe) -> nn.Module:
    """The loss of a recipe's network."""
    model, loss = recipe.model, recipe.loss
    if model.arch == "ladder" and model.auxiliary:
        strides = [stride for stride in (128, 64, 32, 16, 8, 4) if model.up < stride <= model.down]
        return LadderLoss(build_loss(loss), strides, model.down, loss.aux_weight, loss.aux_targets == "soft")
    losses: dict[str, Callable[[Loss], nn.Module]]
    losses = {"dense": build_loss, "embedding": EmbeddingLoss, "cosine": CosineLoss}
    return losses[model.head](loss)


def rows_of(planes: Tensor) -> Tensor:
    """[B, X, H, W] -> [B * H * W, X]."""
    return planes.permute(0, 2, 3, 1).reshape(-1, planes.shape[1])


def margin_gradients(model: EmbeddingModel, config: Loss) -> tuple[Tensor, Tensor]:
    """The margin regulariser of the class table and the gradient of `margin_weight` times it.

    Taken apart from the step's backward pass, so that neither micro-batches nor ranks count it more than once.

    Returns:
        The regulariser, 0-dim, unweighted, and the gradient of the table's parameter [C, d].
    """
    cost = margin_regulariser(model.classes(), config.margin)
    (gradient,) = torch.autograd.grad(config.margin_weight * cost, [model.classes.weight])
    return cost.detach(), gradient


def _images(ids: Tensor) -> Tensor:
    """The image that each row is of: int64 [B * H * W]."""
    return torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[2] * ids.shape[3])
