"""How far the loss over candidates (embedding.py) is from the exact softmax (streaming.py), on given data.

Leaving classes out makes a target's probability larger, never smaller. The ESSNet paper (section 3.2) gives 1/k - 1/C
as the worst case, which holds where all classes are equally far from the pixel. It is not the worst: with the target
nearer than the others, which are equally far, and a = exp((their logit gap)) the difference is

    a / (a + k - 1) - a / (a + C - 1)        largest at a = sqrt((k - 1) (C - 1)):        (v - u) / (v + u)

with u = sqrt(k - 1) and v = sqrt(C - 1): 0.86 for k = 8 of 1,284 classes, where the paper has 0.12. No arrangement
does worse: the k - 1 other candidates are at least as near as any class left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from train.losses.embedding import Candidates, gather_rows
from train.losses.rows import Distance, Search, full_precision, problem
from train.losses.streaming import FullSoftmax, tile_rows


@dataclass(frozen=True)
class Approximation:
    """Error of the target's probability by the candidates: seen on data, and at worst.

    Args:
        mean, largest: of p_candidates - p_exact over the labelled rows; for a soft target p is the weighted geometric
            mean of its classes' probabilities, which is what the loss sees. NaN where there are none.
        loss, exact_loss: the mean costs of the rows, each for a weight of 1.
        paper: 1/k - 1/C.
        bound: what no data can exceed with hard targets.
    """

    mean: float
    largest: float
    loss: float
    exact_loss: float
    paper: float
    bound: float


def approximation(
    pixels: Tensor,
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    k: int,
    tau: float | Tensor = 0.05,
    distance: Distance = "squared",
    *,
    search: Search | None = None,
) -> Approximation:
    """Compare the two losses row by row; arguments as in `nearest_cross_entropy`, k from 1 to C."""
    with full_precision(pixels.device):
        given = problem(pixels, table, ids, weights, tau, distance)
        few, full = Candidates(given, k, search), FullSoftmax(given)
        rows = min(gather_rows(given, k), tile_rows(given))
        costs = [torch.zeros(2, 0, dtype=given.table.dtype, device=given.table.device)]
        for chunk in given.chunks(rows):
            total = chunk.weights.sum(dim=1)
            costs.append(torch.stack([solver.step(chunk, False)[0] / total for solver in (few, full)]))
        both = torch.cat(costs, dim=1)
        error = both.neg().exp().diff(dim=0).neg()
        largest = error.amax().item() if error.numel() else math.nan
        loss, exact = both.mean(dim=1).tolist()
        return Approximation(error.mean().item(), largest, loss, exact, *worst_case(k, len(table)))


def worst_case(k: int, classes: int) -> tuple[float, float]:
    """The paper's worst case and the true one, for hard targets."""
    if k >= classes:
        return 0.0, 0.0
    u, v = math.sqrt(k - 1), math.sqrt(classes - 1)
    paper = 1 / k - 1 / classes
    return paper, paper if k == 1 else (v - u) / (v + u)
