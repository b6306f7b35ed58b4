"""What a training step costs at 247 and at 21,841 classes: peak memory and processor time.

    python -m tests.bench.vocabulary [--images 8] [--rounds 5] [--encoder vit_tiny_patch16_224] [--side 224]

A step as the loop takes it (train/mixed_step.py): some images with pixel labels (soft, on the grid of the patches), as
many with one tag each, forward and backward one batch after the other, SGD with momentum, and the memory told. The
network is a ViT with a cosine head; 171 classes have pixel labels. Memories are full, so that attention works at once.
Cases by what can be wrong (`known`, `loss.sampled_classes`) and by the memory's form:

    all        pixels and images: softmax over all classes, exact
    own        pixels: over the 171 classes of their source; images: over all classes
    sampled    both: over the classes present and 100 drawn at random

memory    the process's high-water mark of resident memory over three steps, above what it held before the network was
          made: parameters, gradients, momentum, the memory bank, activations and workspaces; each case in a process of
          its own, whose allocator gives freed blocks back at once; median of some processes
seconds   of processor time, one thread, median over rounds in which the cases take turns
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.classes import ClassTable
from tests.bench.embedding_memory import ALLOCATOR, MB, resident
from tests.bench.timing import alternate, markdown
from train.batch import Batch
from train.config import Recipe, from_dict
from train.distributed import World
from train.label_space import LabelSpace
from train.mixed_step import MixedStep
from train.models import CosineModel, build_model
from train.objective_mixed import build_mixed_objective, remembered
from train.optim import build_optimizer, clip_gradients

BASE, FEW, MANY = 171, 247, 21841


@dataclass(frozen=True)
class Case:
    """One row: classes, candidates ("all", "own" or "sampled"), memory ("none", or form and type)."""

    classes: int
    candidates: str
    memory: str

    def __str__(self) -> str:
        return f"{self.classes:,} {self.candidates}, memory {self.memory}"


KINDS = [("all", "none"), ("own", "none"), ("sampled", "none"), ("all", "slots"), ("all", "running")]
ROWS = [Case(classes, *kind) for kind in KINDS for classes in (FEW, MANY)]


class Step:
    """One case's network, and steps of it."""

    def __init__(self, case: Case, images: int, encoder: str, side: int) -> None:
        torch.manual_seed(0)
        chosen, space = recipe_of(case, encoder), space_of(case)
        model = build_model(chosen.model, case.classes, chosen.loss, remembered(chosen, space))
        assert isinstance(model, CosineModel)
        self.model = model.train()
        if case.memory != "none":
            fill(model)
        self.optimiser = build_optimizer(model, chosen.optim)
        objective = build_mixed_objective(chosen, space, model.bank)
        self.mixed = MixedStep(model, objective, World(torch.device("cpu")))
        self.batches = [pixels(images, side, model.multiple), tagged(images, side, case.classes)]

    def run(self) -> None:
        """One step."""
        self.optimiser.zero_grad(set_to_none=True)
        self.mixed.backward(self.batches, lambda batch: self.model(batch.images), False)
        clip_gradients(self.model.parameters(), None)
        self.optimiser.step()
        self.mixed.remember()


def recipe_of(case: Case, encoder: str) -> Recipe:
    """The recipe that a case is."""
    form, _, dtype = case.memory.partition(" ")
    known = "own" if case.candidates == "own" else "all"
    memory = {"memory_form": form, "memory_dtype": dtype or "float32"} if case.memory != "none" else {}
    return from_dict(
        {
            "name": "vocabulary",
            "description": "benchmark",
            "data": {"target_stride": 16},
            "augment": {"crop": [224, 224]},
            "model": {"arch": "linear", "encoder": encoder, "head": "cosine", "dropout": 0.0},
            "loss": {
                "attention_weight": 0.1 if memory else 0.0,
                "sampled_classes": 100 if case.candidates == "sampled" else 0,
                **memory,
            },
            "optim": {"lr": 1e-4, "weight_decay": 0.0},
            "mixture": {
                "parts": 2,
                "sources": [{"name": "pixels", "known": known}, {"name": "tags", "labels": "image", "known": "all"}],
            },
        }
    )


def space_of(case: Case) -> LabelSpace:
    """171 base classes; pixels know these alone where each source knows its own."""
    base = np.arange(case.classes) < BASE
    everything = np.ones_like(base)
    table = ClassTable.make(tuple(f"class {i}" for i in range(case.classes)))
    return LabelSpace(table, base, (base if case.candidates == "own" else everything, everything))


def fill(model: CosineModel) -> None:
    """A memory as long training leaves it: every class has all its images."""
    bank: Any = model.bank
    for place in range(len(bank.slots)):
        bank.slots[place] = torch.randn(bank.slots.shape[1:]).div_(bank.slots.shape[2] ** 0.5).to(bank.slots.dtype)
    bank.count.fill_(bank.size)


def pixels(images: int, side: int, stride: int) -> Batch:
    """Images whose cells hold one or two of the base classes."""
    cells = -(-side // stride)
    shares = torch.rand(images, 1, cells, cells).clamp(min=0.5)
    weights = torch.cat([shares, 1 - shares], 1)
    ids = torch.randint(BASE, weights.shape, dtype=torch.int32)
    return Batch(pictures(images, side), ids, weights, tuple("pixels"[:images]), source=0)


def tagged(images: int, side: int, classes: int) -> Batch:
    """Images that show one novel class each."""
    tags = torch.stack([torch.arange(images), torch.randint(BASE, classes, (images,))], 1)
    nothing = torch.zeros(images, 1, 0, 0)
    return Batch(pictures(images, side), nothing.int(), nothing, tuple("tagged"[:images]), source=1, tags=tags)


def pictures(images: int, side: int) -> torch.Tensor:
    """Noise, uint8 [B, 3, H, W]."""
    return torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)


def measure(case: Case, images: int, encoder: str, side: int) -> float:
    """Bytes at peak of a network and three steps of it, in this process."""
    Step(Case(9 + BASE, case.candidates, case.memory), 2, "vit_tiny_patch16_224", 64).run()  # imports and thread pools
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    step = Step(case, images, encoder, side)
    for _ in range(3):
        step.run()
    return resident("VmHWM") - before


def child(case: Case, options: argparse.Namespace) -> float:
    """`measure` in processes of its own: the median of some."""
    words = [str(case.classes), case.candidates, case.memory]
    command = [sys.executable, "-m", "tests.bench.vocabulary", "--measure", *words, *arguments(options)]
    found = []
    for _ in range(options.processes):
        done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case}: {done.stderr[-2000:]}")
        found.append(float(json.loads(done.stdout)))
    return statistics.median(found)


def arguments(options: argparse.Namespace) -> list[str]:
    """What a child is told."""
    return ["--images", str(options.images), "--encoder", options.encoder, "--side", str(options.side)]


def seconds_of(rows: Sequence[Case], options: argparse.Namespace) -> dict[str, float]:
    """Median processor time of a step of each case."""
    steps = {str(case): Step(case, options.images, options.encoder, options.side) for case in rows}
    return alternate({name: step.run for name, step in steps.items()}, options.rounds, time.process_time)


def report(rows: Sequence[Case], memory: dict[str, float], seconds: dict[str, float]) -> None:
    """A line for each kind of step: both numbers of classes and their quotients."""
    lines = []
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        one, two = str(few), str(many)
        lines.append(
            [
                few.candidates,
                few.memory,
                f"{memory[one] / MB:,.0f}",
                f"{memory[two] / MB:,.0f}",
                f"{memory[two] / memory[one]:.2f}",
                f"{seconds[one]:.2f}",
                f"{seconds[two]:.2f}",
                f"{seconds[two] / seconds[one]:.2f}",
            ]
        )
    header = [
        "candidates",
        "memory",
        f"MB, {FEW}",
        f"MB, {MANY:,}",
        "quotient",
        f"s, {FEW}",
        f"s, {MANY:,}",
        "quotient",
    ]
    print(markdown(header, lines))


def main() -> None:
    """Measure one case (a child), or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="with pixel labels, and as many with tags")
    parser.add_argument("--encoder", default="vit_tiny_patch16_224")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="that memory is the median of")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        classes, candidates, memory = options.measure
        case = Case(int(classes), candidates, memory)
        print(json.dumps(measure(case, options.images, options.encoder, options.side)))
        return
    seconds = seconds_of(ROWS, options)
    report(ROWS, {str(case): child(case, options) for case in ROWS}, seconds)


if __name__ == "__main__":
    main()
