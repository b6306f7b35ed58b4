"""What the memory and its attention cost of a training step on image labels, by number of classes.

    OMP_NUM_THREADS=1 python -m tests.bench.attention [--only tiny-247 ...] [--rounds 9] [--maps]

A step (forward, losses, backward, SGD, memory) on a batch of random images, M = K = 20, every ring full. "attention" is
what the category-wise classifier adds to it: maps, attended loss with its backward pass down to the features and the
class vectors, the K best cells, the update of the memory; measured by itself on the same features, with nothing but the
rest of the step in between. In the rows "all seen" the threshold for background classes is -1, so that all known
classes are looked at closely in each image with one label: more than can ever happen. Processor time in one thread;
medians over rounds in which all take turns. With --device cuda, time by the clock.

--maps: how far maps of a running mean are from those of slots (`loss.memory_form`), on random data that drifts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.classes import ClassTable
from tests.bench.timing import alternate, markdown
from train.batch import Batch
from train.config import Loss, Model
from train.label_space import LabelSpace
from train.losses.attention import Background, Memory, attention_maps
from train.losses.cosine import CosineLoss
from train.losses.image_level import pairs_of
from train.models import build_model
from train.models.cosine import Cosined
from train.models.memory_bank import MemoryBank
from train.objective_mixed import MixedObjective, gathered

VITS = {"tiny": ("vit_tiny_patch16_224", 224, 8), "base": ("vit_base_patch16_224", 320, 2)}
BASE = 171  # classes with pixel labels, as in COCO-Stuff


@dataclass(frozen=True)
class Case:
    """A network, its classes, and labels an image."""

    vit: str
    classes: int
    tags: int
    threshold: float = 0.35


CASES = {
    "tiny-247": Case("tiny", 247, 8),
    "tiny-913": Case("tiny", 913, 12),
    "tiny-22012, one label": Case("tiny", 22_012, 1),
    "tiny-22012, one label, all seen": Case("tiny", 22_012, 1, -1.0),
    "base-247": Case("base", 247, 8),
    "base-22012, one label": Case("base", 22_012, 1),
    "base-22012, one label, all seen": Case("base", 22_012, 1, -1.0),
}


def space(classes: int) -> LabelSpace:
    """BASE classes and novel ones; an image source that knows all novel ones and half of the base ones."""
    every = np.arange(classes)
    return LabelSpace(ClassTable.make([f"c{i}" for i in every]), every < BASE, (every < BASE, every >= BASE // 2))


def labels(case: Case, images: int) -> Tensor:
    """Labels of each image, half of them novel where there are several."""
    rows = []
    for image in range(images):
        novel = BASE + torch.randperm(case.classes - BASE)[: max(1, case.tags // 2)]
        base = BASE // 2 + torch.randperm(BASE - BASE // 2)[: case.tags // 2]
        found = torch.cat([base, novel]).sort().values if case.tags > 1 else novel
        rows += [[image, int(c)] for c in found]
    return torch.tensor(rows)


class Bench:
    """One case: a whole step, and what attention is of it."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        encoder, side, images = VITS[case.vit]
        model = Model.model_validate({"arch": "linear", "encoder": encoder, "head": "cosine", "dropout": 0.0})
        self.config = Loss.model_validate({"background_threshold": case.threshold})
        novel = list(range(BASE, case.classes))
        self.model = build_model(model, case.classes, self.config, novel).to(device).train()
        assert isinstance(self.model.bank, MemoryBank)
        self.bank = self.model.bank
        self.bank.slots.normal_()
        self.bank.slots.div_(self.bank.slots.norm(dim=2, keepdim=True))
        self.bank.count.fill_(20)
        self.objective = MixedObjective(CosineLoss(self.config), self.config, space(case.classes), self.bank)
        plain = self.config.model_copy(update={"attention_weight": 0.0})
        self.plain = MixedObjective(CosineLoss(plain), plain, space(case.classes), None)
        pictures = torch.randint(256, (images, 3, side, side), dtype=torch.uint8)
        nothing = torch.zeros(images, 1, 0, 0)
        tags = labels(case, images)
        self.batch = Batch(pictures, nothing.int(), nothing, ("",) * images, source=1, tags=tags).to(device)
        self.optimiser = torch.optim.SGD(self.model.parameters(), 1e-6, momentum=0.9)
        with torch.no_grad():
            self.output: Cosined = self.model(self.batch.images)  # type: ignore[assignment]

    def step(self, objective: MixedObjective) -> None:
        """A whole step."""
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.output.features.device.type, torch.bfloat16, enabled=self.output.features.is_cuda):
            output: Cosined = self.model(self.batch.images)  # type: ignore[assignment]
        loss, _ = objective(output, self.batch)
        loss.backward()
        self.optimiser.step()
        objective.apply_updates(gathered([objective.observed(0)], 1))
        self._wait()

    def losses(self, objective: MixedObjective) -> None:
        """Losses and memory alone, backward down to features and class vectors."""
        features, table = (value.detach().requires_grad_() for value in (self.output.features, self.output.table))
        loss, _ = objective(self.output._replace(features=features, table=table), self.batch)
        loss.backward()
        objective.apply_updates(gathered([objective.observed(0)], 1))
        self._wait()

    def _wait(self) -> None:
        if self.output.features.is_cuda:
            torch.cuda.synchronize()


def measure(name: str, rounds: int, device: torch.device) -> list[str]:
    """A row of the table."""
    bench = Bench(CASES[name], device)
    rivals: dict[str, Callable[[], object]] = {
        "step": lambda: bench.step(bench.objective),
        "all losses": lambda: bench.losses(bench.objective),
        "baseline": lambda: bench.losses(bench.plain),
    }
    seconds = alternate(rivals, rounds, time.process_time if device.type == "cpu" else time.perf_counter)
    extra = seconds["all losses"] - seconds["baseline"]
    images, _, side, _ = bench.batch.images.shape
    return [
        name,
        f"{images} x {side}^2",
        str(len(bench.batch.tags) if bench.batch.tags is not None else 0),
        f"{bench.bank.bytes / 1e6:.0f} MB",
        f"{seconds['step'] * 1e3:.0f} ms",
        f"{seconds['baseline'] * 1e3:.1f} ms",
        f"{extra * 1e3:.1f} ms",
        f"{100 * extra / seconds['step']:.1f} %",
    ]


def forms(drift: float, size: int = 20, dim: int = 192, cells: int = 196) -> tuple[float, float]:
    """The mean and the largest difference of A by a running mean and by slots, over 50 images.

    Each of two classes is a direction that `drift` of its length is added to in every image, as where features change
    while a network learns; an image's mean of K cells lies about it.
    """
    generator = torch.Generator().manual_seed(1)
    centre = F.normalize(torch.randn(2, dim, generator=generator), dim=1)
    banks = [MemoryBank([0, 1], 2, dim, size), MemoryBank([0, 1], 2, dim, size, form="running")]
    found = []
    for image in range(150):
        centre = F.normalize(centre + drift * F.normalize(torch.randn(2, dim, generator=generator), dim=1), dim=1)
        means = 0.8 * F.normalize(centre + 0.5 * F.normalize(torch.randn(2, dim, generator=generator), dim=1), dim=1)
        for bank in banks:
            bank.add(torch.arange(2), means)
        if image < 100:
            continue
        noise = F.normalize(torch.randn(cells, dim, generator=generator), dim=1)
        rows = F.normalize(centre[torch.arange(cells) % 2] + noise, dim=1)[None]
        pairs, every = pairs_of(torch.tensor([[0, 0], [0, 1]]), torch.arange(2), 1), torch.ones(2, dtype=torch.bool)
        maps = [
            attention_maps(rows, centre, torch.arange(2), pairs, every, Memory(b.usable, b.means), Background())[0]
            for b in banks
        ]
        found.append((maps[0] - maps[1]).abs())
    return float(torch.stack(found).mean()), float(torch.stack(found).max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--maps", action="store_true")
    arguments = parser.parse_args()
    if arguments.maps:
        rows = [[f"{drift:g}", *(f"{value:.4f}" for value in forms(drift))] for drift in (0.0, 0.02, 0.1, 0.3)]
        print(markdown(["drift an image", "mean difference of A", "largest"], rows))
        return
    rows = [measure(name, arguments.rounds, torch.device(arguments.device)) for name in arguments.only or CASES]
    header = ["classes", "images", "pairs", "memory", "step", "baseline losses", "attention", "share"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
