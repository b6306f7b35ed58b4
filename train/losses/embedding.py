"""Cross-entropy over a few candidate classes a pixel (ESSNet, eq. 6): constant memory at any number of classes.

The candidates of a row are the union of its targets and the k class embeddings nearest to it, each class once: a
target that is also among the neighbours, or that stands in two slots, does not enter the softmax twice. With logits
z_c = -||x - e_c||^2 / tau ("squared", the paper's) or -||x - e_c|| / tau ("plain", the release's), p their softmax over
the candidates and S the sum of a row's weights, a row costs

    - sum_k w_k log p[id_k]        with the gradient in z        S p - w

which is eq. 6 for one target of weight 1 and holds for soft targets. The search has no gradient. Rows go through in
chunks, search included; see train/losses/rows.py for what is held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from shards.errors import SettingsError
from train.losses.rows import (
    Chunk,
    Distance,
    Problem,
    Search,
    accumulate,
    add_rows,
    attach,
    finite,
    full_precision,
    mean,
    problem,
    wants_gradients,
)
from train.losses.streaming import streaming_cross_entropy_sums
from train.neighbors import build_index

# entries of the [r, K + k, d] gather of a chunk's candidates
GATHER, GATHER_CUDA = 1 << 20, 1 << 24


def nearest_cross_entropy(
    pixels: Tensor,
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    k: int,
    tau: float | Tensor = 0.05,
    distance: Distance = "squared",
    *,
    allowed: Tensor | None = None,
    group: Tensor | None = None,
    search: Search | None = None,
    gather: int | None = None,
) -> Tensor:
    """Cross-entropy over each row's targets and its k nearest classes: the mean cost a labelled row, a scalar.

    Args:
        pixels: [N, d], any floating type.
        table: [C, d] class embeddings.
        ids: [N, K], any integer type; in [0, C) wherever the weight is above 0. An id may stand in several slots.
        weights: [N, K], floating, >= 0. A row of zeros is void and costs nothing, search included. A row may sum to
            anything above 0 (shares sum to at most 1) and counts with that sum.
        k: how many nearest classes; 0: the targets alone; C or more: all classes, by `streaming_cross_entropy`.
        tau: temperature, a number or a 0-dim tensor that may have a gradient.
        distance: "squared" or "plain"; the latter's gradient is 0 where the distance is 0.
        allowed: bool [G, C] with group int [N]: the k nearest are searched among these classes of the row's group.
            Targets are candidates whether allowed or not.
        search: stands in for `train.neighbors.nearest` (an index that is kept over several steps, say); called with
            float32 rows and table (of one group, where `allowed` is given). Ids below 0 count as none.
        gather: entries of a chunk's [rows, K + k, d] gather; by default what suits the device.

    Returns:
        The sum of the costs over the sum of the weights, float32 (float64 for float64 inputs); 0 with gradient 0 where
        all rows are void; NaN where a labelled row or the table holds NaN.

    Raises:
        SettingsError: shapes that do not fit, ids out of range, negative weights, tau not above 0, k below 0.
    """
    cost, total = nearest_cross_entropy_sums(
        pixels, table, ids, weights, k, tau, distance, allowed=allowed, group=group, search=search, gather=gather
    )
    return mean(cost, total)


def nearest_cross_entropy_sums(
    pixels: Tensor,
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    k: int,
    tau: float | Tensor = 0.05,
    distance: Distance = "squared",
    *,
    allowed: Tensor | None = None,
    group: Tensor | None = None,
    search: Search | None = None,
    gather: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum of the costs, sum of the weights): `nearest_cross_entropy` before its division, as accumulation needs."""
    if k < 0:
        raise SettingsError(f"k is {k}; how many nearest classes to compare with must be 0 or more")
    if k >= len(table):
        return streaming_cross_entropy_sums(pixels, table, ids, weights, tau, distance, allowed=allowed, group=group)
    gradients = wants_gradients(pixels, table, tau)
    with full_precision(pixels.device):
        given = problem(pixels, table, ids, weights, tau, distance, allowed, group)
        solver = Candidates(given, k, search)
        found = accumulate(given, gather_rows(given, k, gather), solver, gradients)
    cost = attach(found, pixels, table, tau, given.kept) if gradients else found.cost
    return cost, weights.sum(dtype=given.table.dtype)


def gather_rows(given: Problem, k: int, gather: int | None = None) -> int:
    """Rows of a chunk whose gathered candidates have about `gather` entries."""
    if gather is None:
        gather = GATHER if given.table.device.type == "cpu" else GATHER_CUDA
    return max(1, gather // ((given.ids.shape[1] + k) * given.table.shape[1]))


class Candidates:
    """Solver of the loss over targets and nearest classes."""

    def __init__(self, given: Problem, k: int, search: Search | None) -> None:
        self.given = given
        self.pulls = torch.zeros_like(given.table)
        self.nearby = Nearby(given, k, search)

    def step(self, chunk: Chunk, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Costs, and with `gradients` those of x; see `Solver`."""
        planes, table = chunk.ids.shape[1], self.given.table
        candidates, counted = union(chunk, self.nearby.find(chunk))
        apart = table.index_select(0, candidates.flatten()).view(*candidates.shape, -1)
        apart -= chunk.x[:, None]  # e - x, [r, K + k, d]
        squares = apart.square().sum(dim=2)
        distances = squares if self.given.distance == "squared" else squares.sqrt()
        logits = distances / -self.given.tau
        chosen = logits[:, :planes].clone()
        logits.masked_fill_(~counted, -torch.inf)
        total = chunk.weights.sum(dim=1, keepdim=True)
        costs = total[:, 0] * logits.logsumexp(dim=1) - (chunk.weights * chosen).sum(dim=1)
        if not gradients:
            return costs, None
        pulls = logits.softmax(dim=1).mul_(total)  # the gradient in the logits
        pulls[:, :planes] -= chunk.weights
        # now the pull of e on x
        pulls = pulls.mul_(2) if self.given.distance == "squared" else torch.where(distances > 0, pulls / distances, 0)
        apart *= pulls.div_(self.given.tau)[..., None]
        gradient = apart.sum(dim=1)
        part = torch.zeros_like(self.pulls)  # sums of sums: one long chain of float32 additions would lose digits
        add_rows(part, candidates.flatten(), apart.flatten(0, 1))
        self.pulls -= part
        return costs, gradient

    def table_gradient(self) -> Tensor:
        """See `Solver`."""
        return self.pulls


class Nearby:
    """The k nearest of the classes that a row may be compared with."""

    def __init__(self, given: Problem, k: int, search: Search | None) -> None:
        self.allowed, self.k, self.search = given.allowed, k, search
        self.rows = given.rows
        # a search of NaN may answer anything; the cost is NaN all the same
        self.table = given.table if bool(given.table.isfinite().all()) else finite(given.table)
        self.ready: dict[int, Callable[[Tensor], Tensor]] = {}  # by group; -1: all classes

    def find(self, chunk: Chunk) -> Tensor:
        """int64 [r, k]; -1 where a row's group allows fewer."""
        if self.k == 0:
            return chunk.ids[:, :0]
        queries = finite(chunk.x)
        if self.allowed is None or chunk.group is None:
            return self._searcher(-1)(queries)
        found = torch.full((len(queries), self.k), -1, device=queries.device)
        for group in chunk.group.unique().tolist():
            rows = (chunk.group == group).nonzero()[:, 0]
            near = self._searcher(group)(queries[rows])
            found[rows, : near.shape[1]] = near
        return found

    def _searcher(self, group: int) -> Callable[[Tensor], Tensor]:
        """The search of one group, made at its first call: an index serves all chunks."""
        if group not in self.ready:
            self.ready[group] = self._over(None if group < 0 or self.allowed is None else self.allowed[group])
        return self.ready[group]

    def _over(self, allowed: Tensor | None) -> Callable[[Tensor], Tensor]:
        classes = None if allowed is None else allowed.nonzero()[:, 0]
        table = self.table if classes is None else self.table[classes]
        k = min(self.k, len(table))
        if k == 0:
            return lambda queries: torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        if self.search is None:
            index = build_index(table, queries=self.rows, k=k)
            search = index.nearest
        else:
            search = partial(_swapped, self.search, table)
        return lambda queries: search(queries, k) if classes is None else classes[search(queries, k)]


def _swapped(search: Search, table: Tensor, queries: Tensor, k: int) -> Tensor:
    return search(queries, table, k)


def union(chunk: Chunk, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """All candidates [r, K + k] of the rows, and which of them count: each class once, empty slots never."""
    filled = chunk.weights > 0
    same = chunk.ids[:, :, None] == chunk.ids[:, None, :]
    repeats = (same & filled[:, None, :]).tril(-1).any(dim=2)
    new = (neighbours >= 0) & (neighbours[:, :, None] != chunk.ids[:, None, :]).all(dim=2)
    return torch.cat([chunk.ids, neighbours.clamp(min=0)], dim=1), torch.cat([filled & ~repeats, new], dim=1)
