"""One image through a trained network: the label at the image's own resolution.

The softmax outputs of all scales and mirror images are averaged and resized bilinearly to full size. Classes are
taken in chunks there, so that memory stays bounded at any number of classes and any image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

import shards
from train import checkpoint
from train.config import Recipe
from train.models import build_model
from train.run import Run

CHUNK = 1 << 26  # values of a score map held at once at full size (256 MB in float32)
SMALLEST = 32  # networks need this many pixels a side


@dataclass(frozen=True)
class Views:
    """How often a network looks at an image.

    Args:
        scales: factors on the size of the input image.
        flip: look at the mirror image as well.
        bf16: compute in bfloat16 where the device can.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    bf16: bool = False


def use_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether a recipe computes in bfloat16 on a device: always, never, or (loop.amp = "auto") on CUDA."""
    return recipe.loop.amp == "bf16" or (recipe.loop.amp == "auto" and device.type == "cuda")


def views_of(recipe: Recipe, device: torch.device, scales: Sequence[float] | None = None, flip: bool = False) -> Views:
    """The views of a recipe's evaluation, or other scales; `flip` adds the mirror image."""
    return Views(scales or recipe.eval.scales, flip or recipe.eval.flip, use_bf16(recipe, device))


def load_model(run: Run, device: torch.device) -> tuple[nn.Module, int]:
    """The network of a run with its last weights, in evaluation mode, and the steps it was trained for.

    Raises:
        FormatError: no checkpoint, or a broken one.
    """
    path = run.folder / checkpoint.NAME
    saved = checkpoint.load(path)
    checkpoint.belongs(saved, run.classes.digest, run.digests, path)
    config = run.recipe.model.model_copy(update={"weights": "none"})  # the checkpoint has them all
    model = build_model(config, len(run.classes))
    checkpoint.fit(model, saved, path)
    network: nn.Module = model.to(device).eval()
    return network, saved.step


def predict(
    model: nn.Module,
    image: npt.NDArray[np.uint8],
    size: tuple[int, int],
    views: Views,
    device: torch.device,
    extent: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The class of each pixel.

    Args:
        model: in evaluation mode, on `device`.
        image: uint8 [h, w, 3], what the network is shown.
        size: (H, W) of the result.
        views: scales and flip.
        device: where to compute.
        extent: (H', W') that the image shown covers, at least `size` (see `covered`); left out, `size`.

    Returns:
        int64 [H, W], on `device`.
    """
    with torch.inference_mode():
        maps = [_scores(model, _scaled(image, factor), views, device) for factor in views.scales]  # each [C, h', w']
        height, width = size
        return _best_class(maps, extent or size)[:height, :width]


def covered(size: tuple[int, int], scale: str, filter: str) -> tuple[int, int]:
    """The (H', W') that an image of `size` covers once it is resized to `scale`: whole cells of k x k pixels with the
    box filter, the last of which may reach beyond the image; itself with any other."""
    factor = shards.Scale.parse(scale).box_factor() if filter == "box" else None
    return size if factor is None else (size[0] + -size[0] % factor, size[1] + -size[1] % factor)


def as_label(prediction: torch.Tensor) -> npt.NDArray[np.uint16]:
    """A prediction integer [H, W] as a hard label uint16 [H, W]."""
    return prediction.to(torch.int32).cpu().numpy().astype(np.uint16)


def _scaled(image: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """The image at `factor` times its size, antialiased."""
    h, w = (max(1, int(length * factor + 0.5)) for length in image.shape[:2])
    return shards.resize_image_to(image, (h, w), "triangle") if (h, w) != image.shape[:2] else image


def _scores(model: nn.Module, image: npt.NDArray[Any], views: Views, device: torch.device) -> torch.Tensor:
    """Softmax scores float32 [C, h, w] of one image, averaged with those of its mirror image where asked."""
    h, w = image.shape[:2]
    pixels = torch.tensor(np.ascontiguousarray(image), device=device).permute(2, 0, 1)[None]  # [1, 3, h, w]
    if min(h, w) < SMALLEST:  # repeat the border; what it gives is cut off again
        pixels = F.pad(pixels.float(), (0, max(0, SMALLEST - w), 0, max(0, SMALLEST - h)), mode="replicate")
    with torch.autocast(device.type, torch.bfloat16, enabled=views.bf16):
        logits = model(pixels)
        mirrored = model(pixels.flip(-1)).flip(-1) if views.flip else None
    scores: torch.Tensor = logits.float().softmax(1)
    if mirrored is not None:
        scores = (scores + mirrored.float().softmax(1)) / 2
    return scores[0, :, :h, :w]


def _best_class(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """The arg-max int64 [H, W] of the mean of score maps [C, h, w] resized to `size`; ties go to the lower class."""
    if len(maps) == 1 and maps[0].shape[1:] == size:
        return maps[0].argmax(0)
    chunk = max(1, CHUNK // (size[0] * size[1]))
    best: torch.Tensor | None = None
    for low in range(0, len(maps[0]), chunk):
        resized = [
            F.interpolate(scores[None, low : low + chunk], size=size, mode="bilinear", align_corners=False)[0]
            for scores in maps
        ]
        values, ids = torch.stack(resized).sum(0).max(0) if len(resized) > 1 else resized[0].max(0)
        ids = ids + low
        if best is None:
            best, label = values, ids
        else:
            better = values > best
            best, label = torch.where(better, values, best), torch.where(better, ids, label)
    return label
