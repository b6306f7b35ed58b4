"""Cross-entropy of the exact softmax over products of rows and class vectors, in O(N d + C d) memory.

As train/losses/streaming.py, with the logits z_c = x e_c: a tile of rows against all classes is made and used up at
once, and what is held until backward is the gradient itself (train/losses/rows.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.losses.rows import Chunk, Problem, accumulate, attach, full_precision, problem, wants_gradients

# entries of a tile, rows x classes; more than distances take, as a product with many channels reads the whole table
TILE, TILE_CUDA = 1 << 20, 1 << 25
FEWEST_ROWS = 16


def dot_cross_entropy_sums(
    rows: Tensor, table: Tensor, ids: Tensor, weights: Tensor, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(rows @ table.t()) against sparse shares.

    Args:
        rows: [N, d], any floating type.
        table: [C, d].
        ids: [N, K], any integer type; in [0, C) wherever the weight is above 0.
        weights: [N, K], floating, >= 0; a row of zeros is void and costs nothing.
        tile: entries of a tile (rows x classes); by default what suits the device. Results differ by rounding.

    Returns:
        (loss_sum, weight_sum), two scalars in float32 (float64 for float64 inputs), differentiable once.

    Raises:
        SettingsError: shapes that do not fit, ids out of range, negative weights.
    """
    gradients = wants_gradients(rows, table)
    with full_precision(rows.device):
        given = problem(rows, table, ids, weights, 1.0, "squared")  # neither temperature nor distance is looked at
        found = accumulate(given, _tile_rows(given, tile), DotSoftmax(given), gradients)
    cost = attach(found, rows, table, None, given.kept) if gradients else found.cost
    return cost, weights.sum(dtype=given.table.dtype)


def _tile_rows(given: Problem, tile: int | None) -> int:
    if tile is None:
        tile = TILE if given.table.device.type == "cpu" else TILE_CUDA
    return max(FEWEST_ROWS, tile // len(given.table))


class DotSoftmax:
    """Solver of the loss; see `train.losses.rows.Solver`."""

    def __init__(self, given: Problem) -> None:
        self.table = given.table
        self.pulls = torch.zeros_like(given.table)  # [C, d]
        self.buffers: tuple[Tensor, Tensor] | None = None

    def step(self, chunk: Chunk, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Costs [r], and with `gradients` those of x [r, d]."""
        logits, shares = self._buffers(len(chunk.x))  # [r, C] each
        torch.matmul(chunk.x, self.table.t(), out=logits)
        chosen, top = logits.gather(1, chunk.ids), logits.amax(dim=1)
        torch.softmax(logits, dim=1, out=shares)
        total = chunk.weights.sum(dim=1, keepdim=True)
        costs = total[:, 0] * (top - shares.amax(dim=1).log()) - (chunk.weights * chosen).sum(dim=1)
        if not gradients:
            return costs, None
        shares.scatter_add_(1, chunk.ids, -chunk.weights / total)  # the gradient in the logits, over the row's sum
        self.pulls.addmm_(shares.t(), chunk.x * total)
        return costs, shares @ self.table * total

    def table_gradient(self) -> Tensor:
        """The gradient [C, d] of all costs so far."""
        return self.pulls

    def _buffers(self, rows: int) -> tuple[Tensor, Tensor]:
        if self.buffers is None:
            logits = self.table.new_empty(rows, len(self.table))
            self.buffers = logits, torch.empty_like(logits)
        return self.buffers[0][:rows], self.buffers[1][:rows]
