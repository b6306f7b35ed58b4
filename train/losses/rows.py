"""What the embedding losses share: rows of pixels met in chunks, and a loss that brings its own gradient.

Both cross-entropies (embedding.py, streaming.py) walk over the labelled rows in chunks and compute a chunk's cost and
its gradients in one go, so that nothing of a chunk outlives it. What is held until backward is the gradient itself,
[n, d] for the pixels and [C, d] for the table: no logits, no probabilities, no candidates. Void rows are left out
before any of it.

All of it is computed in float32 (float64 where an input is float64), outside autocast and without reduced-precision
matrix products, whatever the types of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shards.errors import SettingsError

Distance = Literal["squared", "plain"]
Search = Callable[[Tensor, Tensor, int], Tensor]  # queries [r, d], table [C, d], k -> ids int64 [r, k]
DEGREE = {"squared": 2, "plain": 1}  # distances of c x and c e are c^degree times those of x and e


@dataclass(frozen=True)
class Chunk:
    """Some labelled rows: x [r, d] and weights [r, K] in the wide type, ids int64 [r, K], group int64 [r] or None.

    An empty slot (weight 0) repeats an id of a class that the row does have.
    """

    x: Tensor
    ids: Tensor
    weights: Tensor
    group: Tensor | None


@dataclass(frozen=True)
class Problem:
    """The inputs of a loss, checked; see `problem`."""

    pixels: Tensor
    table: Tensor  # [C, d], wide, detached
    ids: Tensor
    weights: Tensor
    tau: Tensor  # 0-dim, wide, detached
    distance: Distance
    allowed: Tensor | None
    group: Tensor | None
    kept: Tensor | None  # the rows that are not void; None: all of them

    @property
    def rows(self) -> int:
        """How many rows are not void."""
        return len(self.pixels if self.kept is None else self.kept)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The labelled rows, `size` at a time."""
        for begin in range(0, self.rows, size):
            index = slice(begin, begin + size) if self.kept is None else self.kept[begin : begin + size]
            yield self._chunk(index)

    def _chunk(self, index: slice | Tensor) -> Chunk:
        weights = self.weights[index].to(self.table.dtype)
        ids = self.ids[index].long()
        first = ids.gather(1, weights.argmax(dim=1, keepdim=True))
        ids = torch.where(weights > 0, ids, first)
        group = self.group[index].long() if self.allowed is not None and self.group is not None else None
        self._check(ids, weights, group)
        return Chunk(self.pixels[index].detach().to(self.table.dtype), ids, weights, group)

    def _check(self, ids: Tensor, weights: Tensor, group: Tensor | None) -> None:
        """One transfer from the device for all checks of a chunk."""
        ends = [ids.amin(), ids.amax(), weights.amin() >= 0]
        ends += [group.amin(), group.amax()] if group is not None else []
        low, high, sound, *groups = torch.stack([end.long() for end in ends]).tolist()
        classes = len(self.table)
        if not sound:
            raise SettingsError("a target's weight is negative or not a number; weights are shares from 0 to 1")
        if low < 0 or high >= classes:
            raise SettingsError(
                f"a target holds class id {low if low < 0 else high}, but the embedding table has {classes} classes "
                f"(0 to {classes - 1}); the table and the shards must share one class list"
            )
        if groups and self.allowed is not None and (groups[0] < 0 or groups[1] >= len(self.allowed)):
            raise SettingsError(
                f"group ids run from {groups[0]} to {groups[1]}, but allowed has {len(self.allowed)} rows"
            )


def problem(
    pixels: Tensor,
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    tau: float | Tensor,
    distance: Distance,
    allowed: Tensor | None = None,
    group: Tensor | None = None,
) -> Problem:
    """Check the shapes, find the rows that are not void, and widen the table.

    Raises:
        SettingsError: shapes that do not go together, an unknown distance, tau not above 0, `allowed` without `group`.
    """
    _check_shapes(pixels, table, ids, weights, allowed, group)
    if distance not in DEGREE:
        raise SettingsError(f'distance is "{distance}"; it must be one of {", ".join(DEGREE)}')
    wide = torch.float64 if torch.float64 in (pixels.dtype, table.dtype) else torch.float32
    warm = torch.as_tensor(tau, dtype=wide, device=table.device).detach().reshape(())
    if bool(warm <= 0):  # NaN passes, and costs NaN
        raise SettingsError(f"temperature tau is {warm.item():g}; it must be above 0")
    labelled = ~(weights.amax(dim=1) <= 0)  # a row with a weight that is NaN is kept, and then refused
    kept = None if bool(labelled.all()) else labelled.nonzero()[:, 0]
    return Problem(pixels, table.detach().to(wide), ids, weights, warm, distance, allowed, group, kept)


def _check_shapes(
    pixels: Tensor, table: Tensor, ids: Tensor, weights: Tensor, allowed: Tensor | None, group: Tensor | None
) -> None:
    if pixels.ndim != 2 or table.ndim != 2 or pixels.shape[1] != table.shape[1] or 0 in table.shape:
        raise SettingsError(
            f"pixels {list(pixels.shape)} and table {list(table.shape)}; expected [N, d] and [C, d] of one d, C above 0"
        )
    if ids.ndim != 2 or ids.shape != weights.shape or len(ids) != len(pixels) or ids.shape[1] == 0:
        raise SettingsError(
            f"ids {list(ids.shape)} and weights {list(weights.shape)}; expected [N, K] twice, N = {len(pixels)}"
        )
    if allowed is None and group is None:
        return
    if allowed is None or group is None or group.shape != (len(pixels),) or allowed.shape[1:] != (len(table),):
        found = [None if value is None else list(value.shape) for value in (allowed, group)]
        raise SettingsError(f"allowed [G, C] and group [N] go together; found {found[0]} and {found[1]}")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradient, no autocast, and matrix products of float32 in float32: logits are divided by a small tau."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Found:
    """A loss (0-dim) with its gradients, which are None where nobody asked: pixels [n, d], table [C, d], tau 0-dim."""

    cost: Tensor
    pixels: Tensor | None = None
    table: Tensor | None = None
    tau: Tensor | None = None


class Solver(Protocol):
    """The maths of one loss, a chunk at a time; it adds up the table's gradient itself."""

    def step(self, chunk: Chunk, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Costs [r], and the gradient of their sum for chunk.x [r, d] (None without `gradients`)."""

    def table_gradient(self) -> Tensor:
        """The gradient [C, d] of all costs so far."""


def accumulate(given: Problem, size: int, solver: Solver, gradients: bool) -> Found:
    """Sum the costs of all labelled rows, `size` rows at a time, and gather their gradients."""
    table = given.table
    # a table that holds NaN costs NaN, whether or not a row is near that class
    cost = (table.sum() * 0) if given.rows else table.new_zeros(())
    if not gradients:
        return Found(sum((solver.step(chunk, False)[0].sum() for chunk in given.chunks(size)), cost))
    rows, warmth, done = table.new_zeros(given.rows, table.shape[1]), table.new_zeros(()), 0
    for chunk in given.chunks(size):
        costs, gradient = solver.step(chunk, True)
        assert gradient is not None
        cost = cost + costs.sum()
        rows[done : done + len(costs)] = gradient
        warmth += (gradient * chunk.x).sum()
        done += len(costs)
    classes = solver.table_gradient()
    # distances are homogeneous in (x, e), so Euler's theorem gives the derivative in tau from those in x and e
    warmth = (warmth + (classes * table).sum()) / (-DEGREE[given.distance] * given.tau)
    return Found(cost, rows, classes, warmth)


def wants_gradients(*inputs: object) -> bool:
    """Will anybody call backward?"""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs)


def attach(found: Found, pixels: Tensor | None, table: Tensor, tau: object, kept: Tensor | None = None) -> Tensor:
    """`found.cost` as a function of the inputs whose gradients `found` holds; differentiable once."""
    warm = tau if isinstance(tau, Tensor) and tau.requires_grad else None
    cost: Tensor = _Attached.apply(pixels, table, warm, found, kept)
    return cost


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor | None, table: Tensor, tau: Tensor | None, found: Found, kept: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(found.pixels, found.table, found.tau, kept)
        ctx.forms = [None if value is None else (value.shape, value.dtype) for value in (pixels, table, tau)]
        return found.cost.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, table, tau, kept = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            _scaled(rows, upstream, ctx.forms[0], kept) if needed[0] else None,
            _scaled(table, upstream, ctx.forms[1]) if needed[1] else None,
            _scaled(tau, upstream, ctx.forms[2]) if needed[2] else None,
            None,
            None,
        )


def _scaled(
    gradient: Tensor, upstream: Tensor, form: tuple[torch.Size, torch.dtype], kept: Tensor | None = None
) -> Tensor:
    """gradient * upstream, in the input's type and shape; rows that are not in `kept` get 0."""
    shape, dtype = form
    scaled = (gradient * upstream).to(dtype)
    if kept is None:
        return scaled.reshape(shape)
    return scaled.new_zeros(shape).index_copy_(0, kept, scaled)


def mean(cost: Tensor, weights: Tensor) -> Tensor:
    """cost / sum of weights, and 0 where nothing has weight."""
    return cost / torch.where(weights > 0, weights, 1)


def add_rows(table: Tensor, index: Tensor, rows: Tensor) -> None:
    """table[index] += rows, in one fixed order: repeated runs agree to the bit."""
    if table.device.type == "cpu":
        table.index_add_(0, index, rows)
    else:
        table.index_put_((index,), rows, accumulate=True)  # sorts; index_add_ would add atomically


def finite(values: Tensor) -> Tensor:
    """`values` with 0 for NaN and infinities: what may be searched."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
