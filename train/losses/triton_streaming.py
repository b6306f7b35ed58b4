"""The exact softmax over all classes on CUDA: two fused kernels, in O(N d + C d) memory.

The first walks over the classes for a block of rows with a running maximum and gives log-sum-exp and the gradient in
the rows; the second walks over the rows for a block of classes and gives the gradient in the table, from shares made
again out of the log-sum-exp. Distances are sums of squared differences in float32, not |x|^2 - 2 x e + |e|^2, and no
product runs in TF32. Rows of the second kernel are split into parts whose sums are added in one order: no atomics, so
repeated runs agree to the bit. The targets' share of cost and gradient is K gathered rows, in torch.

float64 goes to the torch solver (train/losses/streaming.py). Without CUDA the kernels run only in triton's interpreter
(TRITON_INTERPRET=1), which is how they are tested here; their speed has not been measured.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from train.losses.rows import Chunk, Problem, add_rows
from train.losses.triton_kernels import classes_kernel, rows_kernel

ROWS, CLASSES, WARPS = 64, 64, 4
PROGRAMS = 1024  # that the second kernel is split into, to fill a GPU
CHUNK = 1 << 20  # rows of a launch


class TritonSoftmax:
    """Solver of the exact loss, in triton: float32, d up to 128 (registers)."""

    def __init__(self, given: Problem) -> None:
        self.given = given
        self.table = given.table.contiguous()
        self.columns = self.table.t().contiguous()
        self.pulls = torch.zeros_like(self.table)
        self.allowed = None if given.allowed is None else given.allowed.to(torch.int8).contiguous()
        self.scale = 2 if given.distance == "squared" else 1

    def step(self, chunk: Chunk, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Costs, and with `gradients` those of x; see `Solver`."""
        x, total = chunk.x.contiguous(), chunk.weights.sum(dim=1)
        level = x.new_empty(len(x))
        gradient = torch.empty_like(x) if gradients else level
        self._rows(chunk, x, level, gradient, gradients)
        costs = total * level
        if gradients:
            gradient *= (total / self.given.tau)[:, None]
            self._classes(chunk, x, level, total)
        for k in range(chunk.ids.shape[1]):
            costs += self._target(chunk.ids[:, k], chunk.weights[:, k], x, gradient if gradients else None)
        return costs, gradient if gradients else None

    def table_gradient(self) -> Tensor:
        """See `Solver`."""
        return self.pulls

    def _target(self, ids: Tensor, weights: Tensor, x: Tensor, gradient: Tensor | None) -> Tensor:
        """- w z of one slot [r]; adds its gradients."""
        apart = self.table.index_select(0, ids).sub_(x)  # e - x
        squares = apart.square().sum(dim=1)
        distances = squares if self.scale == 2 else squares.sqrt()
        if gradient is not None:
            pulls = weights * 2 if self.scale == 2 else torch.where(distances > 0, weights / distances, 0)
            apart *= (pulls / self.given.tau)[:, None]
            gradient -= apart
            add_rows(self.pulls, ids, apart)
        return weights * distances / self.given.tau

    def _rows(self, chunk: Chunk, x: Tensor, level: Tensor, gradient: Tensor, gradients: bool) -> None:
        number, width = x.shape
        rows_kernel[(triton.cdiv(number, ROWS),)](
            x, self.columns, self.table, self.given.tau, *self._sets(chunk), level, gradient, number, len(self.table),
            D=width, K=chunk.ids.shape[1], R=ROWS, B=CLASSES, P=_padded(width), PLAIN=self.scale == 1,
            ALLOWED=self.allowed is not None, GRADIENT=gradients, num_warps=WARPS,
        )  # fmt: skip

    def _classes(self, chunk: Chunk, x: Tensor, level: Tensor, total: Tensor) -> None:
        """Add the softmax's part of the table's gradient."""
        (number, width), blocks = x.shape, triton.cdiv(len(self.table), CLASSES)
        splits = min(triton.cdiv(PROGRAMS, blocks), triton.cdiv(number, ROWS))
        span = triton.cdiv(triton.cdiv(number, splits), ROWS) * ROWS
        parts = x.new_empty(triton.cdiv(number, span), len(self.table), width + 1)
        classes_kernel[(blocks, len(parts))](
            x, self.columns, self.given.tau, *self._sets(chunk), level, total, parts, number, len(self.table), span,
            D=width, K=chunk.ids.shape[1], R=ROWS, B=CLASSES, P=_padded(width), PLAIN=self.scale == 1,
            ALLOWED=self.allowed is not None, num_warps=WARPS,
        )  # fmt: skip
        sums = parts.sum(dim=0)
        self.pulls += (sums[:, :-1] - self.table * sums[:, -1:]) / self.given.tau

    def _sets(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """group, allowed and targets for the kernels; the targets' ids stand in where there are no groups."""
        if self.allowed is None or chunk.group is None:
            return chunk.ids, chunk.ids, chunk.ids
        return chunk.group.contiguous(), self.allowed, chunk.ids.contiguous()


def _padded(width: int) -> int:
    """tl.dot takes powers of two from 16."""
    return max(16, int(triton.next_power_of_2(width)))
