"""What the auxiliary losses of a ladder cost: a training step with them against one without, same images and labels.

    python -m tests.bench.auxiliary [--encoder densenet121] [--down 32] [--up 4] [--size 384] [--batch 2] [--rounds 7]

Steps (forward, loss, backward) of two networks that differ in `model.auxiliary` alone take turns in one process; the
medians and their ratio are printed, then the auxiliary loss alone (targets, cross-entropies, backward into its
logits), by the same clock, as a share of the step. Labels are procedural streets. On the CPU processor time is
counted, over all threads; --device cuda measures a GPU, by the clock and in bf16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prep.scenes import write as scenes
from prep.taxonomy import load_remap
from shards.softlabel import SoftLabel
from tests.bench.timing import alternate, markdown
from train.batch import Batch, Item, collate, planar, targets_of
from train.config import Recipe, from_dict
from train.losses import LadderLoss
from train.losses.auxiliary import auxiliary_loss
from train.models import build_model
from train.models.ladder import Laddered
from train.objective import build_objective

CLASSES = 14


def streets(count: int, size: int) -> Batch:
    """A batch of procedural street scenes with hard labels."""
    items = []
    for number in range(count):
        image, ids, _ = scenes.scene(0, "train", number, (size, size))
        hard = load_remap("demo-34_to_14", "demo").apply(ids, "bench")
        items.append(Item(f"street-{number}", planar(image), targets_of(SoftLabel.from_hard(hard))))
    return collate(items)


def recipe_of(arguments: argparse.Namespace, auxiliary: bool) -> Recipe:
    """A ladder with or without auxiliary heads."""
    model = {"arch": "ladder", "encoder": arguments.encoder, "down": arguments.down, "up": arguments.up}
    values = {"name": "bench", "description": "bench", "model": {**model, "auxiliary": auxiliary}}
    return from_dict(values)


def step_of(model: nn.Module, loss: nn.Module, batch: Batch, bf16: bool) -> Callable[[], object]:
    """Forward, loss and backward."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            output = model(batch.images)
        cost, mass = loss(output, batch.ids, batch.weights)
        (cost / mass).backward()
        return float(cost.detach())  # waits for a GPU

    return step


def loss_alone(model: nn.Module, loss: LadderLoss, batch: Batch) -> Callable[[], object]:
    """The auxiliary loss, forward and backward, on the network's own logits."""
    with torch.no_grad():
        found = model(batch.images)

    def fresh(logits: Tensor) -> Tensor:
        return logits.detach().requires_grad_()

    def once() -> float:
        steps, pools = tuple(map(fresh, found.steps)), tuple(map(fresh, found.pools))
        cost = auxiliary_loss(Laddered(found.logits, steps, pools), batch.ids, batch.weights, loss.strides, loss.down)
        cost.backward()
        return float(cost.detach())

    return once


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="densenet121")
    for name, value in (("down", 32), ("up", 4), ("size", 384), ("batch", 2), ("rounds", 7), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    batch = streets(arguments.batch, arguments.size).to(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    rivals: dict[str, Callable[[], object]] = {}
    for name, auxiliary in (("without", False), ("with", True)):
        torch.manual_seed(0)
        recipe = recipe_of(arguments, auxiliary)
        model, loss = build_model(recipe.model, CLASSES).to(device).train(), build_objective(recipe)
        rivals[name] = step_of(model, loss, batch, device.type == "cuda")
    rivals["loss alone"] = loss_alone(model, loss, batch)
    seconds = alternate(rivals, arguments.rounds, clock)
    shape = f"{arguments.batch} x {arguments.size} x {arguments.size}"
    row = [
        f"{arguments.encoder} {arguments.down} -> {arguments.up}",
        shape,
        f"{seconds['without']:.3f} s",
        f"{seconds['with']:.3f} s",
        f"{seconds['with'] / seconds['without']:.3f}",
        f"{seconds['loss alone'] * 1e3:.1f} ms",
        f"{seconds['loss alone'] / seconds['with']:.2%}",
    ]
    print(markdown(["network", "batch", "without", "with", "with / without", "loss alone", "of a step"], [row]))


if __name__ == "__main__":
    main()
