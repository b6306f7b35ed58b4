"""One step of a mixture: what each kind of label costs, divided by how much of its kind the whole step holds.

The loss of a step is the sum over kinds of (sum of costs / their mass): a mean a labelled cell, and a mean a pair of an
image and a class. All parts of the step are loaded and their masses summed over the ranks before the first forward
pass, so that neither the number of ranks nor that of micro-batches changes anything but rounding. A kind of which a
step holds nothing is left out of it.

Ranks may work on different kinds at once and need not use the same parameters. So gradients are summed over the ranks
by `World.sum_gradients` when all are there, not by torch's DistributedDataParallel during the last backward pass: that
one would have to search each graph for unused parameters, and would send the buffers of rank 0 around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from train.batch import Batch
from train.distributed import World
from train.objective_mixed import LOGGED, MixedObjective, Output, Updates, gathered

KINDS = tuple(LOGGED)
NAMES = tuple(name for names in LOGGED.values() for name in names)


@dataclass(frozen=True)
class Cost:
    """What a step cost, over all ranks; the gradients stand.

    Args:
        loss: None where nothing was labelled.
        parts: of the loss by name, without their weights; "untagged", images without any tag, where there are some.
        keys: of this rank's samples.
        stop: whether any rank was asked to stop.
    """

    loss: float | None
    parts: dict[str, float]
    keys: list[str]
    stop: bool


class MixedStep:
    """Forward and backward passes over the parts of a step.

    Args:
        model: the network, on the device; every rank has rank 0's weights from here on.
        objective: its loss.
        world: this process among all.
        sync: whether ranks share one memory (`loss.memory_sync`).
    """

    def __init__(self, model: nn.Module, objective: MixedObjective, world: World, sync: bool = True) -> None:
        self.model, self.objective, self.world, self.sync = model, objective, world, sync
        self._seen: list[Updates] = []
        world.share_all(model.parameters())

    def backward(self, batches: Sequence[Batch], forward: Callable[[Batch], Output], stopping: bool) -> Cost:
        """Gradients of the step's loss, in the parameters.

        Args:
            batches: this rank's micro-batches, on the device, in order.
            forward: the network's output of one.
            stopping: whether this rank was asked to stop.
        """
        kinds, masses, stop = self._masses(batches, stopping)
        device = self.world.device
        told = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", "untagged", *NAMES)}
        first, self._seen = self.world.rank * len(batches), []
        for place, (kind, batch) in enumerate(zip(kinds, batches, strict=True)):
            share = 1 / masses[kind] if masses[kind] else 0.0
            loss, parts = self.objective(forward(batch), batch)
            if loss.requires_grad:
                (loss * share).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                told[name] += value * share
            told["untagged"] += batch.untagged
            self._seen.append(self.objective.observed(first + place))
        self.world.sum_gradients(self.model.parameters())
        sums = dict(zip(told, self.world.sum(list(told.values())), strict=True))
        parts_told = {name: sums[name] for kind in KINDS if masses[kind] for name in LOGGED[kind]}
        parts_told |= {"untagged": sums["untagged"]} if sums["untagged"] else {}
        keys = [key for batch in batches for key in batch.keys]
        return Cost(sums["loss"] if any(masses.values()) else None, parts_told, keys, stop)

    def remember(self) -> None:
        """Tell the memory what the step has seen; once, after the optimiser's step."""
        if self._seen:
            self.objective.apply_updates(gathered(self._seen, self.world.size if self.sync else 1))
        self._seen = []

    def _masses(self, batches: Sequence[Batch], stopping: bool) -> tuple[list[str], dict[str, float], bool]:
        """The kind of each batch, the mass of each kind in the whole step, whether to stop."""
        own = [self.objective.mass(batch) for batch in batches]
        nothing = torch.zeros((), dtype=torch.float64, device=self.world.device)
        sums = [sum((mass for of, mass in own if of == kind), nothing) for kind in KINDS]
        *masses, stop = self.world.sum([*sums, float(stopping)])
        return [kind for kind, _ in own], dict(zip(KINDS, masses, strict=True)), stop > 0
