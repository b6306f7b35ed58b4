"""One image through a trained network: the label at the image's own resolution.

Dense head: the softmax outputs of all scales and mirror images are averaged and resized bilinearly to full size.
Classes are taken in chunks there, so that memory stays bounded at any number of classes and any image size.

Embedding head: the unit embeddings of all scales and mirror images are resized bilinearly to full size, averaged there
and put back on the sphere (unless `model.renormalise` is off); a pixel's class is the nearest of the class table
(train/nearest_labels.py, in tiles), its confidence the softmax over the distances to all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from train.models import Embedded, EmbeddingModel, build_model
from train.models.embedding import on_sphere
from train.nearest_labels import nearest_labels, nearest_top
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


def load_model(run: Run, device: torch.device, exact_norms: bool = True) -> tuple[nn.Module, int]:
    """The network of a run with its last weights, in evaluation mode, and the steps it was trained for.

    Args:
        run: the run.
        device: where to.
        exact_norms: take the BatchNorm statistics that seg-norms has made of those weights, where it has.

    Raises:
        FormatError: no checkpoint, or a broken one.
    """
    path, saved = checkpoint.best(run.folder, exact_norms)
    checkpoint.belongs(saved, run.classes.digest, run.digests, path)
    config = run.recipe.model.model_copy(update={"weights": "none"})  # the checkpoint has them all
    model = build_model(config, len(run.classes), run.recipe.loss)
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
        height, width = size
        if isinstance(model, EmbeddingModel):
            pixels, head = _embeddings(model, image, extent or size, views, device)
            label = nearest_labels(pixels, head.table, extent or size, renormalise=model.renormalise)
            return label[:height, :width]
        maps = [_scores(model, _scaled(image, factor), views, device) for factor in views.scales]  # each [C, h', w']
        return best_class(maps, extent or size)[:height, :width]


def predict_top(
    model: nn.Module,
    image: npt.NDArray[np.uint8],
    size: tuple[int, int],
    views: Views,
    device: torch.device,
    extent: tuple[int, int] | None = None,
    top: int = 5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely classes of each pixel; arguments as in `predict`.

    Returns:
        int64 [top, H, W], by falling confidence (ties: the lower id first), and float32 [top, H, W], their
        confidences, which sum to 1 over all classes.
    """
    with torch.inference_mode():
        height, width = size
        if isinstance(model, EmbeddingModel):
            pixels, head = _embeddings(model, image, extent or size, views, device)
            ids, confidences = nearest_top(
                pixels, head.table, top, float(head.tau), model.distance, extent or size, renormalise=model.renormalise
            )
            return ids[:, :height, :width], confidences[:, :height, :width]
        maps = [_scores(model, _scaled(image, factor), views, device) for factor in views.scales]
        confidences, ids = _top(maps, extent or size, top)
        return ids[:, :height, :width], confidences[:, :height, :width] / len(maps)


def covered(size: tuple[int, int], scale: str, filter: str) -> tuple[int, int]:
    """The (H', W') that an image of `size` covers once it is resized to `scale`: whole cells of k x k pixels with the
    box filter, the last of which may reach beyond the image; itself with any other."""
    factor = shards.Scale.parse(scale).box_factor() if filter == "box" else None
    return size if factor is None else (size[0] + -size[0] % factor, size[1] + -size[1] % factor)


def classes_of(output: torch.Tensor | Embedded) -> torch.Tensor:
    """The class of each pixel of a network's output, int64 [B, H, W]."""
    if isinstance(output, torch.Tensor):
        return output.argmax(1)
    return torch.stack([nearest_labels(pixels, output.table) for pixels in output.pixels])


def as_label(prediction: torch.Tensor) -> npt.NDArray[np.uint16]:
    """A prediction integer [H, W] as a hard label uint16 [H, W]."""
    return prediction.to(torch.int32).cpu().numpy().astype(np.uint16)


def _scaled(image: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """The image at `factor` times its size, antialiased."""
    h, w = (max(1, int(length * factor + 0.5)) for length in image.shape[:2])
    return shards.resize_image_to(image, (h, w), "triangle") if (h, w) != image.shape[:2] else image


def look(
    model: Callable[[torch.Tensor], Any], image: npt.NDArray[Any], views: Views, device: torch.device
) -> list[Any]:
    """What the network says of one image, and of its mirror image (whose maps are still mirrored) where asked."""
    h, w = image.shape[:2]
    pixels = torch.tensor(np.ascontiguousarray(image), device=device).permute(2, 0, 1)[None]  # [1, 3, h, w]
    if min(h, w) < SMALLEST:  # repeat the border; what it gives is cut off again
        pixels = F.pad(pixels.float(), (0, max(0, SMALLEST - w), 0, max(0, SMALLEST - h)), mode="replicate")
    with torch.autocast(device.type, torch.bfloat16, enabled=views.bf16):
        return [model(pixels), model(pixels.flip(-1))] if views.flip else [model(pixels)]


def _scores(model: nn.Module, image: npt.NDArray[Any], views: Views, device: torch.device) -> torch.Tensor:
    """Softmax scores float32 [C, h, w] of one image, averaged with those of its mirror image where asked."""
    h, w = image.shape[:2]
    logits, *mirrored = look(model, image, views, device)
    scores: torch.Tensor = logits.float().softmax(1)
    if mirrored:
        scores = (scores + mirrored[0].flip(-1).float().softmax(1)) / 2
    return scores[0, :, :h, :w]


def _embeddings(
    model: EmbeddingModel,
    image: npt.NDArray[np.uint8],
    size: tuple[int, int],
    views: Views,
    device: torch.device,
) -> tuple[torch.Tensor, Embedded]:
    """Pixel embeddings float32, and what the network said last (for its class table).

    [d, H, W] at `size`, averaged over the views; of a single view [d, h, w] as the network gives them: the search
    resizes them, a tile at a time.
    """
    looks = _looks(model, image, views, device)
    pixels, output = next(looks)
    if len(views.scales) == 1 and not views.flip:
        return pixels[0], output
    total, count = _resized(pixels, size, model.renormalise), 1
    for pixels, _ in looks:
        total, count = total + _resized(pixels, size, model.renormalise), count + 1
    return (on_sphere(total, 0) if model.renormalise else total / count), output


def _looks(
    model: EmbeddingModel, image: npt.NDArray[np.uint8], views: Views, device: torch.device
) -> Iterator[tuple[torch.Tensor, Embedded]]:
    """Pixel embeddings float32 [1, d, h, w] of each view, turned back where it is mirrored, and the whole output."""
    for factor in views.scales:
        shown = _scaled(image, factor)
        h, w = shown.shape[:2]
        for mirrored, output in enumerate(look(model, shown, views, device)):
            yield (output.pixels.flip(-1) if mirrored else output.pixels)[..., :h, :w].float(), output


def _resized(pixels: torch.Tensor, size: tuple[int, int], renormalise: bool) -> torch.Tensor:
    """Pixel embeddings [1, d, h, w] at `size`: [d, H, W]."""
    if pixels.shape[2:] == size:
        return pixels[0]
    full = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0]
    return on_sphere(full, 0) if renormalise else full


def best_class(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """The arg-max int64 [H, W] of the mean of score maps [C, h, w] resized to `size`; ties go to the lower class."""
    if len(maps) == 1 and maps[0].shape[1:] == size:
        return maps[0].argmax(0)
    best: torch.Tensor | None = None
    for low, scores in _chunks(maps, size):
        values, ids = scores.max(0)
        ids = ids + low
        if best is None:
            best, label = values, ids
        else:
            better = values > best
            best, label = torch.where(better, values, best), torch.where(better, ids, label)
    return label


def _top(maps: Sequence[torch.Tensor], size: tuple[int, int], top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top` highest of the summed score maps [C, h, w] resized to `size`, and their ids, both [top, H, W]."""
    values = maps[0].new_empty(0, *size)
    label = torch.empty(0, *size, dtype=torch.int64, device=values.device)
    for low, scores in _chunks(maps, size):
        ids = torch.arange(low, low + len(scores), device=label.device)[:, None, None].expand(-1, *size)
        values, order = torch.cat([values, scores]).sort(dim=0, descending=True, stable=True)
        label = torch.cat([label, ids]).gather(0, order[:top])
        values = values[:top]
    return values, label


def _chunks(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
    """The sum of score maps [C, h, w] resized to `size`, some classes at a time: (first id, [c, H, W])."""
    chunk = max(1, CHUNK // (size[0] * size[1]))
    for low in range(0, len(maps[0]), chunk):
        resized = [
            F.interpolate(scores[None, low : low + chunk], size=size, mode="bilinear", align_corners=False)[0]
            for scores in maps
        ]
        yield low, torch.stack(resized).sum(0) if len(resized) > 1 else resized[0]
