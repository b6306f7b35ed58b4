"""What a ladder DenseNet holds for backward, by checkpointed segment: Table 11 of the paper, in bytes.

    python -m tests.bench.ladder_memory [--side 384] [--batch 2]

LDN121 32 -> 4, training mode with auxiliary heads, forward of random crops. Held: every storage that saved tensors keep
until backward, once each, parameters and input left out, by saved-tensor hooks. It is linear in the number of pixels,
so a smaller crop is measured and multiplied to the paper's 6 crops of 768 x 768. What a segment needs while it is
computed again in backward comes on top. Times are processor time of forward and backward, rivals in turns.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from tests.bench.timing import markdown
from train.config import from_dict
from train.models import build_model

SEGMENTS = ("none", "3x3", "cat-1x1", "cat-1x1, 3x3", "block+stem+td+tu", "unit", "unit+stem+td+tu")
PAPER = {"none": 11265, "unit+stem+td+tu": 2106}  # MB on a GPU, peak, everything included
CLASSES, PAPER_PIXELS = 19, 6 * 768 * 768


def network(segments: str) -> torch.nn.Module:
    """LDN121 32 -> 4 with these segments checkpointed."""
    model = {"arch": "ladder", "encoder": "densenet121", "down": 32, "up": 4, "segments": segments}
    recipe = from_dict({"name": "bench", "description": "bench", "model": model})
    torch.manual_seed(0)
    return build_model(recipe.model, CLASSES).train()


def total(output: object) -> Tensor:
    """A scalar that every output takes part in."""
    parts = [part for part in output if part is not None] if isinstance(output, tuple) else [output]
    flat = [tensor for part in parts for tensor in (part if isinstance(part, tuple) else (part,))]
    return torch.stack([tensor.float().square().mean() for tensor in flat if isinstance(tensor, Tensor)]).sum()


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


def seconds(model: torch.nn.Module, images: Tensor) -> float:
    """Processor time of one forward and backward."""
    began = time.process_time()
    total(model(images)).backward()
    return time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randint(256, (options.batch, 3, options.side, options.side), dtype=torch.uint8)
    times = PAPER_PIXELS / (options.batch * options.side**2)
    models = {name: network(name) for name in SEGMENTS}
    held = {name: times * held_bytes(model, images) for name, model in models.items()}
    clocks: dict[str, list[float]] = {name: [] for name in SEGMENTS}
    for _ in range(options.rounds):
        for name, model in models.items():
            clocks[name].append(seconds(model, images))
    middle = {name: sorted(values)[len(values) // 2] for name, values in clocks.items()}
    rows = [
        [
            name,
            f"{held[name] / 2**20:,.0f}",
            f"{held['none'] / held[name]:.1f}x",
            f"{middle[name] / middle['none']:.2f}",
            f"{PAPER[name]:,}" if name in PAPER else "",
        ]
        for name in SEGMENTS
    ]
    print(markdown(["checkpointed", "held, MB", "fewer", "time of a step", "paper, MB on a GPU"], rows))


if __name__ == "__main__":
    main()
