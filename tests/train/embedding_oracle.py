"""Independent answers for the embedding losses: float64, dense, one row at a time, autograd for the gradients; and the
losses under test, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from train.losses import nearest_cross_entropy, streaming_cross_entropy


@dataclass(frozen=True)
class Case:
    """Inputs of a loss."""

    pixels: Tensor
    table: Tensor
    ids: Tensor
    weights: Tensor
    tau: float = 0.3

    def wide(self) -> Case:
        return replace(self, pixels=self.pixels.double(), table=self.table.double(), weights=self.weights.double())

    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.pixels, self.table, self.ids, self.weights

    def leaves(self) -> Case:
        """A copy whose pixels and table want gradients."""
        return replace(self, **{name: getattr(self, name).clone().requires_grad_() for name in ("pixels", "table")})


def case(
    seed: int, rows: int = 23, classes: int = 9, d: int = 4, planes: int = 3, void: float = 0.2, partial: bool = True
) -> Case:
    """Random unit rows; soft targets over distinct classes, some slots empty (with an id that is no class), some rows
    void, some with weights that sum to less than 1."""
    generator = torch.Generator().manual_seed(seed)
    planes = min(planes, classes)
    pixels, table = (torch.randn(n, d, generator=generator).double() for n in (rows, classes))
    ids = torch.rand(rows, classes, generator=generator).argsort(1)[:, :planes]
    weights = torch.rand(rows, planes, generator=generator).double() + 0.05
    weights[:, 1:] *= torch.rand(rows, planes - 1, generator=generator) < 0.6
    weights = weights.gather(1, torch.rand(rows, planes, generator=generator).argsort(1))  # empty slots anywhere
    weights /= weights.sum(1, keepdim=True)
    if partial:
        weights *= 0.5 + 0.5 * torch.rand(rows, 1, generator=generator)
    weights *= torch.rand(rows, 1, generator=generator) >= void
    ids = torch.where(weights > 0, ids, 65535)
    return Case(torch.nn.functional.normalize(pixels), torch.nn.functional.normalize(table), ids, weights)


def brute_force(queries: Tensor, table: Tensor, k: int) -> Tensor:
    """ids [N, k] of the nearest, ties by id."""
    squares = (queries.double()[:, None] - table.double()[None]).square().sum(2)
    return squares.argsort(dim=1, stable=True)[:, :k]


def expected(
    given: Case,
    k: int | None,
    distance: str = "squared",
    allowed: Tensor | None = None,
    group: Tensor | None = None,
    tau: Tensor | None = None,
) -> Tensor:
    """The mean cost by the formula, a row at a time, over a set of candidates; k None: all classes."""
    warm = given.tau if tau is None else tau
    costs, total = [given.pixels.sum() * 0 + given.table.sum() * 0], 0.0
    for row in range(len(given.pixels)):
        targets = {int(i): 0.0 for i, w in zip(given.ids[row], given.weights[row], strict=True) if w > 0}
        for i, w in zip(given.ids[row].tolist(), given.weights[row].tolist(), strict=True):
            if w > 0:
                targets[i] += w
        if not targets:
            continue
        free = [
            c for c in range(len(given.table)) if allowed is None or group is None or bool(allowed[int(group[row]), c])
        ]
        space = torch.stack([(given.pixels[row] - given.table[c]).square().sum() for c in range(len(given.table))])
        near = sorted(free, key=lambda c: (float(space[c].detach()), c))
        candidates = sorted(set(near if k is None else near[:k]) | set(targets))
        measure = space if distance == "squared" else space.sqrt()
        logs = torch.log_softmax(-measure[candidates] / warm, 0)
        costs += [-w * logs[candidates.index(i)] for i, w in targets.items()]
        total += sum(targets.values())
    return torch.stack(costs).sum() / (total or 1.0)


nearest_loss = partial(nearest_cross_entropy, search=brute_force)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "nearest": lambda *args, **more: nearest_loss(*args[:4], 3, *args[4:], **more),
    "streaming": streaming_cross_entropy,
}
DISTANCES = ["squared", "plain"]
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
distances = pytest.mark.parametrize("distance", DISTANCES)
