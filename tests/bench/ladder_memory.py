"""What a ladder DenseNet holds for backward, by checkpointed segment: Table 11 of the paper, in bytes and in time.

    OMP_NUM_THREADS=1 python -m tests.bench.ladder_memory [--side 384] [--batch 2] [--rounds 7] [--only NAME ...]

LDN121 32 -> 4, training mode with auxiliary heads and losses, random crops. Held: every storage that saved tensors keep
until backward, once each, parameters and input left out, by saved-tensor hooks. It is linear in the number of pixels,
so a smaller crop is measured and multiplied to the paper's 6 crops of 768 x 768. What a segment needs while it is
computed again in backward comes on top. Times are processor time of forward, loss and backward in one thread: in each
round every network has one turn, and what is told is the median over the rounds of each one's time over that of "none"
in the same round, which a machine that others use as well does not move far.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from tests.bench.timing import markdown
from train.config import Recipe, from_dict
from train.models import build_model
from train.objective import build_objective

SEGMENTS = ("none", "3x3", "cat-1x1", "cat-1x1, 3x3", "block+stem+td+tu", "unit", "unit+stem+td+tu")
PAPER = {  # MB on a GPU, peak, everything included; frames a second
    "none": (11265, 11.3),
    "3x3": (10107, 10.5),
    "cat-1x1": (6620, 10.4),
    "cat-1x1, 3x3": (5552, 9.7),
    "block+stem+td+tu": (3902, 8.4),
    "unit": (3620, 10.1),
    "unit+stem+td+tu": (2106, 9.2),
}
CLASSES, PAPER_PIXELS = 19, 6 * 768 * 768


def recipe_of(segments: str) -> Recipe:
    """LDN121 32 -> 4 with these segments checkpointed."""
    model = {"arch": "ladder", "encoder": "densenet121", "down": 32, "up": 4, "segments": segments}
    return from_dict({"name": "bench", "description": "bench", "model": model})


def network(recipe: Recipe) -> torch.nn.Module:
    """The recipe's network with the same random weights whatever is checkpointed."""
    torch.manual_seed(0)
    return build_model(recipe.model, CLASSES).train()


def held_bytes(model: torch.nn.Module, images: Tensor) -> int:
    """Bytes that saved tensors keep between forward and backward."""
    held: dict[int, int] = {}

    def hold(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
        output = model(images)
    for value in (images, *model.parameters(), *model.buffers()):
        held.pop(value.untyped_storage().data_ptr(), None)
    del output
    return sum(held.values())


def seconds(model: torch.nn.Module, loss: torch.nn.Module, images: Tensor, ids: Tensor) -> float:
    """Processor time of one forward, loss and backward."""
    began = time.process_time()
    model.zero_grad(set_to_none=True)
    cost, mass = loss(model(images), ids, torch.ones(ids.shape))
    (cost / mass).backward()
    return time.process_time() - began


def clocked(names: list[str], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round's step, by what is checkpointed; the first round is not counted."""
    recipes = {name: recipe_of(name) for name in names}
    parts = {name: (network(recipe), build_objective(recipe)) for name, recipe in recipes.items()}
    ids = torch.randint(CLASSES, (images.shape[0], 1, *images.shape[2:]))
    clocks: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, (model, loss) in parts.items():
            clocks[name].append(seconds(model, loss, images, ids))
    return {name: values[1:] for name, values in clocks.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=SEGMENTS, default=SEGMENTS, help='"none" is always measured')
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["none", *(name for name in options.only if name != "none")]
    images = torch.randint(256, (options.batch, 3, options.side, options.side), dtype=torch.uint8)
    times = PAPER_PIXELS / (options.batch * options.side**2)
    held = {name: times * held_bytes(network(recipe_of(name)), images) for name in names}
    clocks = clocked(names, images, options.rounds)
    rows = []
    for name in names:
        ratios = sorted(own / plain for own, plain in zip(clocks[name], clocks["none"], strict=True))
        rows.append(
            [
                name,
                f"{held[name] / 2**20:,.0f}",
                f"{held['none'] / held[name]:.1f}x",
                f"{statistics.median(clocks[name]):.2f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                f"{PAPER[name][0]:,}",
                f"{PAPER['none'][1] / PAPER[name][1]:.2f}",
            ]
        )
    print(markdown(["checkpointed", "held, MB", "fewer", "step, s", "of none", "paper: MB on a GPU", "of none"], rows))


if __name__ == "__main__":
    main()
