"""Losses, memory and labels of a cosine head beside a device that is not the CPU: nothing is mixed, all is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train.fake_device import Elsewhere, elsewhere, moved
from tests.train.test_objective_mixed import CLASSES, DIM, PIXELS, objective, said, tagged
from train.batch import Batch
from train.distributed import World
from train.inference import best_class, subset
from train.mixed_step import MixedStep
from train.models.cosine import Cosined
from train.models.memory_bank import MemoryBank
from train.score_maps import CosineScores
from train.windows import Window

TAGS = [[[0, 5], [1, 4], [1, 6]], [[0, 2], [0, 5], [1, 5]], []]


def pixels() -> Batch:
    """A batch of classes that source 0 knows, with void and a mixed cell."""
    ids = torch.arange(2 * 2 * 3 * 4, dtype=torch.int32).view(2, 2, 3, 4) % 4
    weights = torch.zeros(2, 2, 3, 4)
    weights[:, 0, :, 1:] = 0.75
    weights[0, 1, 0, 2] = 0.25
    return Batch(torch.zeros(2, 3, 24, 30, dtype=torch.uint8), ids, weights, ("a", "b"), source=PIXELS)


def carried(batch: Batch) -> Batch:
    return batch._each(moved)


def output_of(seed: int, there: bool) -> Cosined:
    output = said(seed)
    if not there:
        return output
    return output._replace(features=moved(output.features), table=moved(output.table), gamma=moved(output.gamma))


def trained(bank: MemoryBank | None, device: torch.device | None, **settings: Any) -> list[list[float]]:
    """Three steps over pixels and tags: each one's loss, its parts and sums of gradients."""
    torch.manual_seed(0)
    step = MixedStep(nn.Linear(1, 1), objective(bank, **settings), World(device or torch.device("cpu")))
    found = []
    for number in range(3):
        batches = [pixels(), *map(tagged, TAGS)]
        outputs = [output_of(10 * number + place, device is not None) for place in range(len(batches))]
        queue = iter(outputs)
        given = [carried(batch) for batch in batches] if device else batches
        cost = step.backward(given, lambda _, queue=queue: next(queue), False)
        step.remember()
        weighed = [float((o.features.grad * o.features.detach().exp()).sum().cpu()) for o in outputs[:3]]
        found.append([cost.loss, *cost.parts.values(), *weighed, float(outputs[1].table.grad.square().sum().cpu())])
    return found


def bank_of(settings: dict[str, Any]) -> MemoryBank | None:
    if settings.get("attention") == "image":
        return None
    kind = (torch.float16, "running") if "memory_form" in settings else (torch.float32, "slots")
    return MemoryBank([4, 5, 6], CLASSES, DIM, 2, *kind)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampled_classes": 9},
        {"foreground": "present", "background_threshold": -1.0, "background_distance": 0.0},
        {"attention": "image", "background_threshold": -1.0},
        {"memory_form": "running"},
        {"background": False, "multi_class_cells": False},
    ],
)
def test_steps_on_another_device_are_those_on_the_cpu(settings: dict[str, Any], beside: bool) -> None:
    """The memory may be there too, or stay beside the CPU."""
    here = trained(bank_of(settings), None, **settings)
    bank = bank_of(settings)
    with elsewhere() as device:
        if bank is not None and beside:
            bank.to(device)
            assert all(isinstance(tensor, Elsewhere) for tensor in (bank.place, bank.slots, bank.count))
        there = trained(bank, device, **settings)
    np.testing.assert_allclose(there, here, rtol=1e-5)
    assert here[-1][3] > 0  # attention was there: aux


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("classes", [None, [1, 2, 6]])
def test_labels_on_another_device_are_those_on_the_cpu(classes: list[int] | None, mirrored: bool) -> None:
    def labels(output: Cosined, device: torch.device) -> Tensor:
        windows = [Window(0, left, (24, 30), output._replace(features=output.features[:1])) for left in (0, 6)]
        chosen = None if classes is None else subset(classes, CLASSES).to(device)
        return best_class([CosineScores(windows, (24, 36), mirrored, chosen)], (48, 72))

    with torch.no_grad():
        here = labels(said(3), torch.device("cpu"))
        with elsewhere() as device:
            there = labels(output_of(3, True), device)
            assert isinstance(there, Elsewhere)
            assert there.cpu().tolist() == here.tolist()


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    with elsewhere() as device:
        there = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="one device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="one device"):
            there.index_add_(0, torch.tensor([0]), torch.ones(1))
        assert (there + torch.tensor(1.0))[torch.tensor([0, 1])].cpu().tolist() == [2.0, 2.0]
