"""Time of a training step with soft targets against hard ones: same network, same images, same cells.

    python -m tests.bench.step [--recipe demo --recipe camvid-efficientnet-lite0] [--rounds 15] [--threads 1]

A batch of the recipe's size is made twice out of the same procedural streets, once with soft targets and once with
nearest-neighbour ones. Steps (forward, loss, backward, clipping, optimiser) with either take turns in one process; the
medians and their ratio are printed, then the loss alone, then what making the targets of one sample costs a data
worker. Images and labels have the size that the recipe's steps see on CamVid (360 x 480) or on the demo (256 x 512).
CPU time is counted, over all threads; --device cuda measures a GPU, by the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import shards
from prep.scenes import write as scenes
from prep.taxonomy import load_remap
from tests.bench.timing import alternate, markdown
from train.batch import Batch, Item, collate, planar, targets_of
from train.config import Recipe, load_recipe
from train.losses import build_loss
from train.models import build_model
from train.optim import build_optimizer, clip_gradients
from train.stream import nearest

CLASSES = 14
SIZES = {"camvid": (360, 480)}
DEMO_SIZE = (256, 512)


def pair(recipe: Recipe, device: torch.device) -> tuple[Batch, Batch]:
    """The same batch with soft and with nearest-neighbour targets."""
    scale = shards.Scale.parse(recipe.data.scales[0])
    size = next((s for name, s in SIZES.items() if name in recipe.name), DEMO_SIZE)
    soft_items, hard_items = [], []
    for number in range(recipe.loop.batch // recipe.loop.accumulate):
        image, ids, _ = scenes.scene(0, "train", number, size)
        hard = load_remap("demo-34_to_14", "demo").apply(ids, "bench")
        if str(scale) == "1":
            raise SystemExit(f"{recipe.name} trains at scale 1, where soft and hard labels are the same")
        small, soft = shards.resize_pair(image, hard, scale, "box")
        picked = shards.SoftLabel.from_hard(nearest(hard, soft.shape, False, scale.box_factor()))
        small, soft, picked = cropped(recipe, small, soft, picked)
        for items, label in ((soft_items, soft), (hard_items, picked)):
            targets = targets_of(label, recipe.loss.void, recipe.data.max_classes_per_cell)
            items.append(Item(f"street-{number}", planar(small), targets))
    return collate(soft_items).to(device), collate(hard_items).to(device)


def cropped(
    recipe: Recipe, image: np.ndarray, soft: shards.SoftLabel, hard: shards.SoftLabel
) -> tuple[np.ndarray, shards.SoftLabel, shards.SoftLabel]:
    """The recipe's crop, in the middle, where it has one and the image is larger."""
    if recipe.augment.crop is None:
        return image, soft, hard
    h, w = (min(a, b) for a, b in zip(recipe.augment.crop, soft.shape, strict=True))
    y, x = (soft.shape[0] - h) // 2, (soft.shape[1] - w) // 2
    return image[y : y + h, x : x + w], soft.crop(y, x, h, w), hard.crop(y, x, h, w)


def stepper(recipe: Recipe, batches: dict[str, Batch], device: torch.device) -> dict[str, Callable[[], object]]:
    """What does one optimiser step on either batch, with one network for both."""
    torch.manual_seed(0)
    model = build_model(recipe.model.model_copy(update={"weights": "none"}), CLASSES).to(device)
    optimiser, loss_of = build_optimizer(model, recipe.optim), build_loss(recipe.loss)
    model.train()

    def step(batch: Batch) -> float:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(batch.images)
        cost, mass = loss_of(logits, batch.ids, batch.weights)
        (cost / mass).backward()
        clip_gradients(model.parameters(), recipe.optim.clip)
        optimiser.step()
        return float(cost.detach())  # waits for a GPU

    return {name: lambda batch=batch: step(batch) for name, batch in batches.items()}


def loss_only(recipe: Recipe, batches: dict[str, Batch]) -> dict[str, Callable[[], object]]:
    """Forward and backward of the loss alone, on random logits."""
    loss_of, shape = build_loss(recipe.loss), batches["soft"].images.shape
    device = batches["soft"].images.device
    logits = torch.randn(shape[0], CLASSES, *shape[2:], device=device, requires_grad=True)

    def once(batch: Batch) -> float:
        logits.grad = None
        cost, mass = loss_of(logits, batch.ids, batch.weights)
        (cost / mass).backward()
        return float(cost.detach())

    return {name: lambda batch=batch: once(batch) for name, batch in batches.items()}


def measure(name: str, rounds: int, device: torch.device) -> list[str]:
    """A row of the table."""
    recipe = load_recipe(name)
    soft, hard = pair(recipe, device)
    batches = {"soft": soft, "hard": hard}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    step = alternate(stepper(recipe, batches, device), rounds, clock)
    loss = alternate(loss_only(recipe, batches), rounds, clock)
    image, ids, _ = scenes.scene(0, "train", 0, next((s for n, s in SIZES.items() if n in name), DEMO_SIZE))
    label = load_remap("demo-34_to_14", "demo").apply(ids, "bench")
    scale = shards.Scale.parse(recipe.data.scales[0])
    stored = shards.soften(label, scale, "box")
    picked = shards.SoftLabel.from_hard(nearest(label, stored.shape, False, scale.box_factor()))
    small = planar(shards.resize_image(image, scale, "box"))
    target = alternate(
        {
            name: lambda label=label: collate([Item("street", small, targets_of(label))])
            for name, label in {"soft": stored, "hard": picked}.items()
        },
        5 * rounds,
        clock,
    )
    shape = "x".join(map(str, (len(soft.keys), *soft.images.shape[2:])))
    return [
        name,
        f"{shape}, K={soft.ids.shape[1]}",
        f"{step['hard'] * 1e3:.1f} ms",
        f"{step['soft'] * 1e3:.1f} ms",
        f"{step['soft'] / step['hard']:.3f}",
        f"{(loss['soft'] - loss['hard']) * 1e3:+.2f} ms",
        f"{(target['soft'] - target['hard']) * 1e3:+.2f} ms",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    names = arguments.recipe or ["demo", "camvid-efficientnet-lite0"]
    rows = [measure(name, arguments.rounds, device) for name in names]
    header = ["recipe", "batch", "hard", "soft", "soft / hard", "loss alone", "targets, a sample"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
