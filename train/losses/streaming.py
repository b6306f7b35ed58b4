"""The exact softmax over all C classes, and its gradient, in O(N d + C d) memory.

A tile of rows against all classes is a few MB. Its logits, softmax and gradients are made and used up while it lies in
the cache: one exponential and three matrix products an entry, and nothing of size N x C exists. What is held until
backward is the gradient (train/losses/rows.py). With logits z_c = -||x - e_c||^2 / tau ("squared", the paper's) or
-||x - e_c|| / tau ("plain", the release's) and S the sum of a row's weights, a row costs

    - sum_k w_k log softmax(z)[id_k]        with the gradient in z        S softmax(z) - w

The squared distance drops ||x||^2, which a softmax does not see, so its error is about 1e-7 ||x|| ||e|| / tau. The
plain one needs differences of nearly equal numbers, whose root is steep at 0: its tiles are float64.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from shards.errors import SettingsError
from train.losses.rows import (
    Chunk,
    Distance,
    Problem,
    Solver,
    accumulate,
    attach,
    full_precision,
    mean,
    problem,
    wants_gradients,
)

# entries of a tile: on a CPU what its caches hold, on a GPU what keeps it busy
TILE, TILE_CUDA = 1 << 19, 1 << 24
FEWEST_ROWS = 16
WIDEST = 128  # d that the triton kernels take
Engine = Literal["auto", "torch", "triton"]


def streaming_cross_entropy(
    pixels: Tensor,
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    tau: float | Tensor = 0.05,
    distance: Distance = "squared",
    *,
    allowed: Tensor | None = None,
    group: Tensor | None = None,
    tile: int | None = None,
    engine: Engine = "auto",
) -> Tensor:
    """Cross-entropy of the softmax over all classes: the mean cost a labelled row, a scalar; see the module.

    Args:
        pixels: [N, d], any floating type.
        table: [C, d] class embeddings.
        ids: [N, K], any integer type; in [0, C) wherever the weight is above 0. An id may stand in several slots.
        weights: [N, K], floating, >= 0. A row of zeros is void and costs nothing. A row may sum to anything above 0
            (shares sum to at most 1) and counts with that sum.
        tau: temperature, a number or a 0-dim tensor that may have a gradient.
        distance: "squared" or "plain".
        allowed: bool [G, C] with group int [N]: only these classes and the row's targets are in the softmax.
        tile: entries of a tile (rows x classes) in torch; by default what suits the device. Results differ by rounding.
        engine: "torch", "triton" (fused kernels: float32 on CUDA, d up to 128) or "auto": triton where it runs.

    Returns:
        The sum of the costs over the sum of the weights, float32 (float64 for float64 inputs); 0 with gradient 0 where
        all rows are void; NaN where a labelled row or the table holds NaN.

    Raises:
        SettingsError: shapes that do not fit, ids out of range, negative weights, tau not above 0, an engine that
            does not run here.
    """
    cost, total = streaming_cross_entropy_sums(
        pixels, table, ids, weights, tau, distance, allowed=allowed, group=group, tile=tile, engine=engine
    )
    return mean(cost, total)


def streaming_cross_entropy_sums(
    pixels: Tensor,
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    tau: float | Tensor = 0.05,
    distance: Distance = "squared",
    *,
    allowed: Tensor | None = None,
    group: Tensor | None = None,
    tile: int | None = None,
    engine: Engine = "auto",
) -> tuple[Tensor, Tensor]:
    """(sum of the costs, sum of the weights): `streaming_cross_entropy` before its division, as accumulation needs."""
    gradients = wants_gradients(pixels, table, tau)
    with full_precision(pixels.device):
        given = problem(pixels, table, ids, weights, tau, distance, allowed, group)
        solver, rows = _solver(given, tile, engine)
        found = accumulate(given, rows, solver, gradients)
    cost = attach(found, pixels, table, tau, given.kept) if gradients else found.cost
    return cost, weights.sum(dtype=given.table.dtype)


def _solver(given: Problem, tile: int | None, engine: Engine) -> tuple[Solver, int]:
    """The maths and the rows of a chunk."""
    if engine not in get_args(Engine):
        raise SettingsError(f'engine is "{engine}"; it must be one of {", ".join(get_args(Engine))}')
    fits = given.table.dtype == torch.float32 and given.table.shape[1] <= WIDEST and find_spec("triton") is not None
    if engine == "triton" and not (fits and (given.table.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")):
        raise SettingsError(f'engine "triton" needs CUDA, float32 and d up to {WIDEST}; choose "torch" or "auto"')
    if engine == "triton" or (engine == "auto" and fits and given.table.is_cuda):
        from train.losses.triton_streaming import CHUNK, TritonSoftmax

        return TritonSoftmax(given), CHUNK
    return FullSoftmax(given), tile_rows(given, tile)


def tile_rows(given: Problem, tile: int | None = None) -> int:
    """Rows of a tile of about `tile` entries over all classes."""
    if tile is None:
        tile = TILE if given.table.device.type == "cpu" else TILE_CUDA
    return max(FEWEST_ROWS, tile // len(given.table))


class FullSoftmax:
    """Solver of the exact loss, in torch."""

    def __init__(self, given: Problem) -> None:
        self.given = given
        self.work = torch.float64 if given.distance == "plain" else given.table.dtype
        table = given.table.to(self.work)
        self.tau = given.tau.to(self.work)
        norms = table.square().sum(dim=1, keepdim=True)
        # [x, 1] @ classes: (2 x e - ||e||^2) / tau, or ||e||^2 - 2 x e
        scale = 1 / self.tau if given.distance == "squared" else -1
        self.classes = torch.cat([2 * scale * table, -scale * norms], dim=1).t().contiguous()  # [d + 1, C]
        self.table = torch.cat([table, torch.ones_like(norms)], dim=1)  # [C, d + 1]
        self.pulls = torch.zeros_like(self.classes)  # sums over rows of q [x, 1], with q below
        self.buffers: tuple[Tensor, Tensor] | None = None

    def step(self, chunk: Chunk, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Costs, and with `gradients` those of x; see `Solver`."""
        x, weights = chunk.x.to(self.work), chunk.weights.to(self.work)
        rows = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        logits, shares = self._buffers(len(x))
        torch.matmul(rows, self.classes, out=logits)
        radii = self._to_plain(logits, x) if self.given.distance == "plain" else None
        self._ban(logits, chunk)
        chosen, top = logits.gather(1, chunk.ids), logits.amax(dim=1)
        torch.softmax(logits, dim=1, out=shares)
        total = weights.sum(dim=1, keepdim=True)
        costs = total[:, 0] * (top - shares.amax(dim=1).log()) - (weights * chosen).sum(dim=1)
        if not gradients:
            return costs.to(chunk.x.dtype), None
        shares.scatter_add_(1, chunk.ids, -weights / total)  # the gradient in the logits, over the row's sum
        pulls = shares.mul_(2) if radii is None else torch.where(radii > 0, shares / radii, 0)  # q: the pull of e on x
        drawn = pulls @ self.table
        self.pulls.addmm_((rows * total).t(), pulls)
        gradient = (drawn[:, :-1] - x * drawn[:, -1:]) * (total / self.tau)
        return costs.to(chunk.x.dtype), gradient.to(chunk.x.dtype)

    def table_gradient(self) -> Tensor:
        """See `Solver`."""
        gradient = self.pulls[:-1] - self.table.t()[:-1] * self.pulls[-1:]
        return gradient.div_(self.tau).to(self.given.table.dtype).t()

    def _buffers(self, rows: int) -> tuple[Tensor, Tensor]:
        if self.buffers is None:
            logits = self.classes.new_empty(rows, self.classes.shape[1])
            self.buffers = logits, torch.empty_like(logits)
        return self.buffers[0][:rows], self.buffers[1][:rows]

    def _to_plain(self, logits: Tensor, x: Tensor) -> Tensor:
        """Turn ||e||^2 - 2 x e into -||x - e|| / tau in place; returns the distances."""
        radii = logits.add_(x.square().sum(dim=1, keepdim=True)).clamp_(min=0).sqrt()
        torch.div(radii, -self.tau, out=logits)
        return radii

    def _ban(self, logits: Tensor, chunk: Chunk) -> None:
        """Take what a row's group does not allow out of its softmax, except for the row's targets."""
        if self.given.allowed is not None and chunk.group is not None:
            banned = ~self.given.allowed[chunk.group].bool()
            logits.masked_fill_(banned.scatter_(1, chunk.ids, False), -torch.inf)
