"""Frames a second of a recipe's network, one image at a time: eager, compiled, and as onnxruntime runs its export.

    python -m tests.bench.latency --recipe ldn121-64-4-cityscapes --device cuda --size 1024,2048
    python -m tests.bench.latency --recipe ldn121-64-4-cityscapes --device cpu --size 256,512 --rounds 3

The weights are random: time does not depend on them. From uint8 pixels on the device to logits at full size, batch 1,
median of the rounds after two unmeasured ones; on CUDA the clock waits for the device. `--export` names what is
measured beside eager float32: torch (eager bf16, and fp16 on CUDA), compile, onnx (onnxruntime on the CPU, float32).
Multiply-adds are those of convolutions and matrix products. Kreso et al. 2021 report 25 Hz for LDN121 64 -> 4 at
1024 x 2048 with TensorRT in fp16 on a Titan Xp.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from shards.errors import UserError
from tests.bench.timing import markdown
from train.cli_export import parse_size
from train.config import load_recipe
from train.deployed import deployed
from train.export import Export, trace, write_onnx
from train.export_check import need
from train.models import build_model

CLASSES = 19
WAYS = ("torch", "compile", "onnx")
Job = Callable[[], object]


def network_of(name: str) -> nn.Module:
    """The recipe's network with random weights, in evaluation mode."""
    recipe = load_recipe(name)
    torch.manual_seed(0)
    return build_model(recipe.model.model_copy(update={"weights": "none"}), CLASSES, recipe.loss).eval()


def multiply_adds(model: nn.Module, images: Tensor) -> float:
    """Of one forward."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(images)
    return counter.get_total_flops() / 2


def frames_a_second(job: Job, rounds: int, device: torch.device) -> float:
    """Median over the rounds, after two unmeasured ones."""
    seconds = []
    for number in range(rounds + 2):
        begin = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - begin)
    return 1 / statistics.median(seconds)


def eager(model: nn.Module, images: Tensor, kind: torch.dtype | None) -> Job:
    """A forward, in lower precision where a type is given."""

    def job() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, kind, enabled=kind is not None):
            return model(images)

    return job


def in_onnxruntime(model: nn.Module, images: Tensor) -> Job:
    """The export at this one size, on the CPU; the file is gone once it is loaded."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    import onnxruntime

    size = (images.shape[2], images.shape[3])
    asked = Export(format="onnx", size=size, fixed=True)
    shape = [1, 3, *size]
    card = {"input": {"shape": shape}, "output": {"shape": [1, CLASSES, *size]}}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        write_onnx(trace(deployed(model), asked), path, card, asked)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pixels = images.numpy()
    return lambda: session.run(None, {"images": pixels})


def jobs(model: nn.Module, images: Tensor, ways: list[str]) -> Iterator[tuple[str, Job]]:
    """What is measured, one after the other."""
    cuda = images.is_cuda
    yield "torch eager, float32", eager(model, images, None)
    if "torch" in ways:
        yield "torch eager, bf16 autocast", eager(model, images, torch.bfloat16)
        if cuda:
            yield "torch eager, fp16 autocast", eager(model, images, torch.float16)
    if "compile" in ways:
        compiled = torch.compile(model)
        yield "torch.compile, float32", eager(compiled, images, None)
        if cuda:
            yield "torch.compile, fp16 autocast", eager(compiled, images, torch.float16)
    if "onnx" in ways:
        yield "onnxruntime on the CPU, float32", in_onnxruntime(model.cpu(), images.cpu())


def machine(device: torch.device) -> str:
    """What it ran on, in a line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return (
        f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads, load "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ldn121-64-4-cityscapes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="1024,2048")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--export", choices=WAYS, action="append", help="may be repeated; default: all")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; give --device cpu --size 256,512 --rounds 3")
    device, size = torch.device(given.device), parse_size(given.size)
    assert size is not None
    model = network_of(given.recipe).to(device)
    images = torch.randint(256, (1, 3, *size), dtype=torch.uint8, device=device)
    count = multiply_adds(model, images)
    rows = []
    for name, job in jobs(model, images, given.export or list(WAYS)):
        try:
            rate = frames_a_second(job, given.rounds, device)
        except (UserError, RuntimeError) as error:  # no compiler, no memory: the others are measured
            rows.append([name, "-", str(error).splitlines()[0][:80]])
            continue
        rows.append([name, f"{rate:.2f}", f"{1000 / rate:.0f}"])
    print(f"{given.recipe}, {size[0]} x {size[1]}, batch 1, {count / 1e9:.1f} G multiply-adds; {machine(device)}\n")
    print(markdown(["", "frames/s", "ms"], rows))


if __name__ == "__main__":
    main()
