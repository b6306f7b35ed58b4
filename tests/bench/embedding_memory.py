"""Memory of head, loss and search, forward and backward, against the number of classes; and the batch that fits.

    python -m tests.bench.embedding_memory [--dense-giga 8] [--budget 12]

4 x 256 x 256 pixels: a decoder's map [4, 256, 64, 64] goes through a 1 x 1 convolution to d = 12 channels (or C: the
rival), up by 4, and into the loss; backward reaches that map. Ours: unit rows, k = 8 nearest of unit class embeddings,
search and margin regulariser included; or the exact softmax. Dense: C logits, with torch's cross-entropy or the
trainer's own, which holds less. Each case runs in a process of its own. Two figures, in MB of 2^20 bytes:

    held    bytes kept for backward, by saved-tensor hooks: each storage once, without parameters and the input map
    peak    the process's high-water mark of resident memory in one step, above what it held just before, inputs and
            parameters included there; the allocator gives freed blocks back at once (MALLOC_ settings below)

`theory` is the least that a peak can be: for dense 3 arrays of pixels x C (logits, log-softmax and its gradient; 2 by
the trainer's loss), for ours the gradients of the input map and of the full-size rows, and those rows, in and before
unit length. Where dense does not fit, it is measured on a part of the rows (4 crops of a quarter the side, and so on)
and multiplied.

The last table is the paper's Figure 1 and Table 6 by measurement: an image of 512 x 512 has as many pixels as the case
above, so its peak is one image's; the rest of DeepLabV3+ with ResNet-50 is what its own saved tensors take at that
size, plus its weights four times over (weight, gradient, momentum, workspace), of a stated budget.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.timing import markdown
from train.losses import margin_regulariser, nearest_cross_entropy, soft_cross_entropy, streaming_cross_entropy

BATCH, SIDE, DOWN, CHANNELS, D, K, TAU = 4, 256, 4, 256, 12, 8, 0.05
CLASSES = (19, 150, 1284, 21841)
KINDS = ("nearest", "exact", "dense", "dense, trainer's loss")
MB = 2.0**20
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


class Step:
    """Head and loss of one kind at a number of classes and a size; `run` goes forward and backward once."""

    def __init__(self, kind: str, classes: int, side: int) -> None:
        torch.manual_seed(0)
        self.kind = kind
        dense = kind.startswith("dense")
        self.features = torch.randn(BATCH, CHANNELS, side // DOWN, side // DOWN, requires_grad=True)
        self.head = nn.Conv2d(CHANNELS, classes if dense else D, 1)
        self.table = nn.Parameter(torch.rand(0 if dense else classes, D) * 2 - 1)
        self.ids = torch.randint(classes, (BATCH, 1, side, side))
        self.weights = torch.ones(BATCH, 1, side, side)

    def inputs(self) -> list[Tensor]:
        """What is there before the step."""
        return [self.features, self.table, self.ids, self.weights, *self.head.parameters()]

    def forward(self) -> Tensor:
        """The loss."""
        full = F.interpolate(self.head(self.features), scale_factor=DOWN, mode="bilinear", align_corners=False)
        if self.kind == "dense":
            return F.cross_entropy(full, self.ids[:, 0])
        if self.kind.startswith("dense"):
            cost, total = soft_cross_entropy(full, self.ids, self.weights)
            return cost / total
        pixels = rows_of(F.normalize(full, dim=1))
        table = F.normalize(self.table, dim=1)
        targets = rows_of(self.ids), rows_of(self.weights)
        if self.kind == "exact":
            return streaming_cross_entropy(pixels, table, *targets, TAU) + margin_regulariser(table)
        return nearest_cross_entropy(pixels, table, *targets, K, TAU) + margin_regulariser(table)

    def run(self) -> float:
        """Forward and backward; returns the bytes held in between."""
        held: dict[int, int] = {}

        def hold(value: Tensor) -> Tensor:
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
            cost = self.forward()
        for value in self.inputs():
            held.pop(value.untyped_storage().data_ptr(), None)
        cost.backward()
        return sum(held.values())


def rows_of(planes: Tensor) -> Tensor:
    """[B, X, H, W] -> [B H W, X]."""
    return planes.permute(0, 2, 3, 1).reshape(-1, planes.shape[1])


def resident(name: str) -> float:
    """VmRSS or VmHWM of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(kind: str, classes: int, side: int) -> dict[str, float]:
    """Bytes held and at peak, of one step in this process."""
    Step(kind, 19, 16).run()  # imports, compiled kernels, thread pools
    step = Step(kind, classes, side)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    held = step.run()
    return {"held": held, "peak": resident("VmHWM") - before}


def measure_backbone(side: int = 512, batch: int = 2) -> dict[str, float]:
    """Bytes that DeepLabV3+ with ResNet-50 holds for an image up to its decoder's map, and those of its weights."""
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus("resnet50", encoder_weights=None).train()
    held: dict[int, int] = {}

    def hold(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
        kept = model.decoder(model.encoder(torch.randn(batch, 3, side, side)))
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    del kept
    return {
        "image": sum(size for place, size in held.items() if place not in weights) / batch,
        "weights": sum(weights.values()),
    }


def child(*words: object) -> dict[str, float]:
    """`measure` or `measure_backbone` in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.embedding_memory", "--measure", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr[-2000:]}")
    values: dict[str, float] = json.loads(done.stdout)
    return values


def theory(kind: str, classes: int) -> float:
    """The least bytes at peak; see the module."""
    pixels = BATCH * SIDE * SIDE
    if kind.startswith("dense"):
        return 4.0 * pixels * classes * (3 if kind == "dense" else 2)
    return 4.0 * (pixels // DOWN**2 * CHANNELS + 4 * pixels * D)


def cases(dense_giga: float) -> dict[tuple[str, int], dict[str, float]]:
    """All measurements; dense ones shrunk until they fit into `dense_giga`, then multiplied."""
    found = {}
    for kind in KINDS:
        for classes in CLASSES:
            side = SIDE
            while kind.startswith("dense") and theory(kind, classes) * (side / SIDE) ** 2 > dense_giga * 2**30:
                side //= 2
            times = (SIDE / side) ** 2
            one = child(kind, classes, side)
            found[kind, classes] = {name: value * times for name, value in one.items()} | {"times": times}
    return found


def report(found: dict[tuple[str, int], dict[str, float]]) -> None:
    """The table, and what the issue asks."""
    rows = [
        [
            kind,
            f"{classes:,}",
            f"{value['held'] / MB:,.1f}",
            f"{value['peak'] / MB:,.1f}",
            f"{theory(kind, classes) / MB:,.0f}",
            "" if value["times"] == 1 else f"1/{value['times']:g} of the rows, multiplied",
        ]
        for (kind, classes), value in found.items()
    ]
    print(markdown(["kind", "C", "held, MB", "peak, MB", "theory, MB", "note"], rows))
    few, many = CLASSES[0], CLASSES[-1]
    for name in ("held", "peak"):
        size = {case: value[name] for case, value in found.items()}
        growth = size["nearest", many] / size["nearest", few] - 1
        print(f"\n{name}: nearest grows by {100 * growth:.1f} % from C = {few} to {many:,}")
        for rival in KINDS[2:]:
            print(
                f"against {rival}: nearest at C = 1,284 takes 1/{size[rival, 1284] / size['nearest', 1284]:.0f}, "
                f"exact at C = {many:,} takes 1/{size[rival, many] / size['exact', many]:.0f}"
            )


def batches(found: dict[tuple[str, int], dict[str, float]], budget: float) -> None:
    """The largest batch of 512 x 512 images against C."""
    backbone = child("backbone")
    fixed = 4 * backbone["weights"]
    print(
        f"\nLargest batch of 512 x 512 in {budget:g} GiB, DeepLabV3+ ResNet-50 in float32: "
        f"{backbone['image'] / MB:,.0f} MB an image before the head, {fixed / MB:,.0f} MB for weights\n"
    )
    rows = []
    for classes in CLASSES:
        fits = [int((budget * 2**30 - fixed) / (backbone["image"] + found[kind, classes]["peak"])) for kind in KINDS]
        rows.append([f"{classes:,}", *fits])
    print(markdown(["C", *KINDS], rows))


def main() -> None:
    """Measure one case (a child), or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense-giga", type=float, default=8.0, help="GiB that a dense case may take")
    parser.add_argument("--budget", type=float, default=12.0, help="GiB of the GPU in the batch table")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        words: list[Any] = options.measure
        one = measure_backbone() if words[0] == "backbone" else measure(words[0], int(words[1]), int(words[2]))
        print(json.dumps(one))
        return
    found = cases(options.dense_giga)
    report(found)
    batches(found, options.budget)


if __name__ == "__main__":
    main()
