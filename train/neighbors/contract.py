"""What "nearest" means, in plain torch: float64 distances and their order. Every backend answers to this file.

The distance of a query q and a class c is the squared Euclidean one, in float64 on the values as given:

    D(q, c) = (((q_0 - c_0)^2 + (q_1 - c_1)^2) + ...) + (q_{d-1} - c_{d-1})^2

each step rounded once, in this order, so that the bits are the same on every device. Classes are ordered by
(D is NaN, D, class id): ties go to the lower id, and a distance that is NaN is farther than any number, infinity
included. So a query that holds NaN gets the classes 0 to k - 1, and a class that holds NaN is nobody's neighbour
while k others exist. Nothing raises there: looking for NaN would cost a GPU a wait in every step.

A backend may be quick and rough. It hands in a few candidates more than k and a bound on what its own rounding may
have hidden; `rerank` orders the candidates by D, and rows whose bound does not settle the k-th place go to `search`,
which holds each of them against every class.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXTRA = 4  # candidates beyond k: with 4, a row of random embeddings practically never needs the full search
PAIR_BYTES = 56  # what `search` holds for a query and a class: D, a square, stable sort's values, ids and workspace


def wide(tensor: Tensor) -> Tensor:
    """Values as float64, detached."""
    return tensor.detach().to(torch.float64)


def distances(queries: Tensor, columns: Tensor) -> Tensor:
    """D of every pair: float64 [N, d] against float64 [d, C] (a transposed table) gives [N, C]."""
    total = torch.zeros(len(queries), columns.shape[1], dtype=torch.float64, device=queries.device)
    for j in range(queries.shape[1]):
        step = queries[:, j : j + 1] - columns[j]
        total += step.mul_(step)  # two roundings; a fused multiply-add would give other bits
    return total


def rerank(queries: Tensor, columns: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Order candidates int64 [N, m], all different, of queries [N, d] by D and id: (ids [N, m], D [N, m])."""
    ids = candidates.sort(dim=1).values
    total = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    for j in range(queries.shape[1]):
        step = queries[:, j : j + 1] - columns[j][ids]
        total += step.mul_(step)
    total, order = total.sort(dim=1, stable=True)
    return ids.gather(1, order), total


def search(queries: Tensor, columns: Tensor, k: int, scratch: int) -> Tensor:
    """The k nearest of all classes by definition, slow: ids int64 [N, k].

    Args:
        queries: [N, d], any floating type.
        columns: float64 [d, C], the transposed table.
        k: at most C.
        scratch: bytes to hold at once, beyond one row.
    """
    rows = max(1, scratch // (PAIR_BYTES * columns.shape[1]))
    ids = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for low in range(0, len(queries), rows):
        order = distances(wide(queries[low : low + rows]), columns).sort(dim=1, stable=True).indices
        ids[low : low + rows] = order[:, :k]
    return ids


def settle(ids: Tensor, settled: Tensor, queries: Tensor, columns: Tensor, scratch: int) -> Tensor:
    """Replace the rows of `ids` [N, k] that are not `settled` [N] by those of the full search; returns `ids`."""
    rows = (~settled).nonzero()[:, 0]
    if len(rows):
        ids[rows] = search(queries[rows], columns, ids.shape[1], scratch)
    return ids
