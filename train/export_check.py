"""Whether an exported file computes what the run's network does: `compare(model, Path("model.onnx"), "logits")`.

The file is read back, run on random images of several batches, sizes and aspect ratios, and compared with the network
itself, in whose forward nothing was replaced. Run by `seg-export` before it publishes (train/export.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import UserError
from train.deployed import Output
from train.models import Cosined, Embedded, EmbeddingModel
from train.models.cosine import EPSILON

TOLERANCE = 1e-3  # of the largest logit's absolute value; of a softmax's, 1e-3 as it is
# (batch, H, W): the smallest, 1:8 both ways, odd sides, other multiples of all strides than the traced example's
CASES = ((1, 32, 32), (1, 32, 256), (2, 264, 33), (3, 97, 61), (1, 128, 192))


@dataclass(frozen=True)
class Check:
    """The largest difference from the network, absolute and as a share of the largest logit (softmax: absolute), and
    the (batch, H, W) that were looked at."""

    absolute: float
    difference: float
    cases: tuple[tuple[int, int, int], ...]


def need(package: str, otherwise: str = "") -> None:
    """Raise UserError unless a package of the extra is installed."""
    if find_spec(package) is None:
        raise UserError(f"the package {package} is not installed: pip install 'segshards[export]'{otherwise}")


def compare(
    model: nn.Module,
    path: Path,
    output: Output,
    floating: bool = False,
    size: tuple[int, int] | None = None,
    fixed: bool = False,
    smallest: int = 32,
) -> Check:
    """How far the file's output is from the network's.

    Args:
        model: the network, in evaluation mode, on the CPU.
        path: an .onnx or .pt2 file.
        output: what the file gives; "classes" are compared by the logits that they fall short of.
        floating: whether it takes float32 instead of uint8.
        size: one more (H, W) to look at.
        fixed: look at that alone, at a batch of one.
        smallest: shorter sides are lengthened to this.

    Raises:
        UserError: it differs by more than TOLERANCE, has another shape, or cannot be run.
    """
    run = _runner(path)
    extra = ((1, *size),) if size else ()
    cases = extra if fixed else (*((b, max(h, smallest), max(w, smallest)) for b, h, w in CASES), *extra)
    absolute = difference = 0.0
    for number, (batch, height, width) in enumerate(cases):
        draw = torch.Generator().manual_seed(number)
        images = torch.randint(256, (batch, 3, height, width), generator=draw, dtype=torch.uint8)
        images = images.float() if floating else images
        with torch.inference_mode():
            logits = reference(model, images)
        found = _tried(run, images)
        apart, scale = _apart(found, logits, output), 1.0 if output == "softmax" else float(logits.abs().max())
        if not apart <= TOLERANCE * scale:  # nor is what is no number
            raise UserError(
                f"the exported graph differs from the network by {apart:.3g} on {batch} image(s) of {height} x {width} "
                f"(largest logit {scale:.3g}, expected at most {TOLERANCE:g} of it); nothing was written: "
                f"give another --opset or format{'' if fixed else ', or --fixed --size H,W'}"
            )
        absolute, difference = max(absolute, apart), max(difference, apart / scale if scale else 0.0)
    return Check(absolute, difference, cases)


def reference(model: nn.Module, images: Tensor) -> Tensor:
    """The network's logits float64 [B, C, H, W]; of an embedding head -distance / tau, from differences; of a cosine
    head standardised cosines, class by class, resized."""
    found = model(images)
    if isinstance(found, Cosined):
        return _cosines(found)
    if not isinstance(found, Embedded):
        logits: Tensor = found.double()
        return logits
    assert isinstance(model, EmbeddingModel)
    b, d, h, w = found.pixels.shape
    rows = found.pixels.double().permute(0, 2, 3, 1).reshape(-1, d)  # [B H W, d]
    apart = torch.cdist(rows, found.table.double(), compute_mode="donot_use_mm_for_euclid_dist")  # [B H W, C]
    scores = -(apart.square() if model.distance == "squared" else apart) / float(found.tau)
    return scores.reshape(b, h, w, -1).permute(0, 3, 1, 2)


def _cosines(found: Cosined) -> Tensor:
    """Scores of a cosine head at the images' size."""
    features, table = found.features.double(), found.table.double()
    cosines = torch.einsum("bdhw,cd->bchw", features, table)
    if found.standardised:
        cosines = cosines / (cosines.var(1, keepdim=True, unbiased=False) + EPSILON).sqrt()
    (h, w), step = found.size, found.step
    whole = (features.shape[2] * step, features.shape[3] * step)
    scores = found.gamma.double() * cosines
    return F.interpolate(scores, size=whole, mode="bilinear", align_corners=False)[..., :h, :w]


def _apart(found: Tensor, logits: Tensor, output: Output) -> float:
    """The largest difference; infinite where the shapes differ. NaN stays NaN."""
    expected = logits.softmax(1) if output == "softmax" else logits
    if output == "classes":
        if found.shape != logits[:, 0].shape or int(found.int().max()) >= logits.shape[1]:
            return float("inf")
        chosen = logits.gather(1, found[:, None].long())
        return float((logits.amax(1, keepdim=True) - chosen).max())
    return float((found.double() - expected).abs().max()) if found.shape == expected.shape else float("inf")


def _tried(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    try:
        return run(images)
    except Exception as error:  # a runtime's own classes, which share no base
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"the exported graph cannot be run on images {list(images.shape)} ({line}); nothing was written: "
            f"give another --opset or format, or --fixed --size H,W"
        ) from error


def _runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function, images -> output."""
    if path.suffix == ".pt2":
        with warnings.catch_warnings():  # torch's own reader meets it
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            program = torch.export.load(path)
        return program.module()
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
