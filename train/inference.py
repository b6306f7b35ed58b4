"""One image through a trained network: the label at the image's own resolution.

Dense head: the softmax outputs of all scales and mirror images are averaged and resized bilinearly to full size.
Classes are taken in chunks there, so that memory stays bounded at any number of classes and any image size.

Embedding head: the unit embeddings of all scales and mirror images are resized bilinearly to full size, averaged there
and put back on the sphere (unless `model.renormalise` is off); a pixel's class is the nearest of the class table
(train/nearest_labels.py, in tiles), its confidence the softmax over the distances to all classes.

Cosine head: as the dense head, but its scores are made a chunk of classes at a time (train/score_maps.py).

Whatever the head, `classes` restricts the choice to some of the run's classes: as if the others did not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

import shards
from shards.errors import SettingsError
from train import checkpoint
from train.config import Recipe
from train.models import Cosined, Embedded, EmbeddingModel, build_model
from train.models.embedding import on_sphere
from train.nearest_labels import nearest_labels, nearest_top
from train.run import Run
from train.score_maps import CosineScores, ScoreMap
from train.windows import SMALLEST as SMALLEST
from train.windows import Views as Views
from train.windows import Window, glances, stitched

Classes = Sequence[int] | npt.NDArray[np.int64]  # some of a run's classes
FEW = 12  # up to so many classes are found one after the other, rather than by sorting all
CHUNK = 1 << 26  # values of a score map held at once at full size (256 MB in float32)


def use_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether a recipe computes in bfloat16 on a device: always, never, or (loop.amp = "auto") on CUDA."""
    return recipe.loop.amp == "bf16" or (recipe.loop.amp == "auto" and device.type == "cuda")


def views_of(recipe: Recipe, device: torch.device, scales: Sequence[float] | None = None, flip: bool = False) -> Views:
    """The views of a recipe's evaluation, or other scales; `flip` adds the mirror image."""
    given, bf16 = recipe.eval, use_bf16(recipe, device)
    return Views(scales or given.scales, flip or given.flip, bf16, given.window, given.stride)


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
    classes: Classes | None = None,
) -> torch.Tensor:
    """The class of each pixel.

    Args:
        model: in evaluation mode, on `device`.
        image: uint8 [h, w, 3], what the network is shown.
        size: (H, W) of the result.
        views: scales and flip.
        device: where to compute.
        extent: (H', W') that the image shown covers, at least `size` (see `covered`); left out, `size`.
        classes: integers [c], the run's classes that there are to choose from; left out, all.

    Returns:
        int64 [H, W], on `device`: classes of the run, or places in `classes` where that is given.

    Raises:
        SettingsError: `classes` is empty, or holds what is no class of the run.
    """
    with torch.inference_mode():
        height, width = size
        if isinstance(model, EmbeddingModel):
            pixels, head = _embeddings(model, image, extent or size, views, device)
            table = _chosen(head.table, classes)
            label = nearest_labels(pixels, table, extent or size, renormalise=model.renormalise)
            return label[:height, :width]
        maps = _maps(model, image, views, device, classes)
        if len(maps) == 1 and isinstance(maps[0], CosineScores) and maps[0].size == (extent or size):
            maps[0].softmax = False  # which leaves the order of the classes as it is
        return best_class(maps, extent or size)[:height, :width]


def predict_top(
    model: nn.Module,
    image: npt.NDArray[np.uint8],
    size: tuple[int, int],
    views: Views,
    device: torch.device,
    extent: tuple[int, int] | None = None,
    top: int = 5,
    classes: Classes | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely classes of each pixel; arguments as in `predict`.

    Returns:
        int64 [top, H, W], by falling confidence (ties: the lower id first), and float32 [top, H, W], their
        confidences, which sum to 1 over all classes, or over all of `classes`.
    """
    with torch.inference_mode():
        height, width = size
        if isinstance(model, EmbeddingModel):
            pixels, head = _embeddings(model, image, extent or size, views, device)
            ids, confidences = nearest_top(
                pixels,
                _chosen(head.table, classes),
                top,
                float(head.tau),
                model.distance,
                extent or size,
                renormalise=model.renormalise,
            )
            return ids[:, :height, :width], confidences[:, :height, :width]
        maps = _maps(model, image, views, device, classes)
        confidences, ids = _top(maps, extent or size, top)
        return ids[:, :height, :width], confidences[:, :height, :width] / len(maps)


def covered(size: tuple[int, int], scale: str, filter: str) -> tuple[int, int]:
    """The (H', W') that an image of `size` covers once it is resized to `scale`: whole cells of k x k pixels with the
    box filter, the last of which may reach beyond the image; itself with any other."""
    factor = shards.Scale.parse(scale).box_factor() if filter == "box" else None
    return size if factor is None else (size[0] + -size[0] % factor, size[1] + -size[1] % factor)


def classes_of(output: torch.Tensor | Embedded | Cosined) -> torch.Tensor:
    """The class of each pixel of a network's output, int64 [B, H, W]."""
    if isinstance(output, torch.Tensor):
        return output.argmax(1)
    if isinstance(output, Cosined):
        alone = [output._replace(features=one[None]) for one in output.features]
        views = [[Window(0, 0, output.size, one)] for one in alone]
        maps = [CosineScores(view, output.size, softmax=False) for view in views]
        return torch.stack([best_class([scores], output.size) for scores in maps])
    return torch.stack([nearest_labels(pixels, output.table) for pixels in output.pixels])


def as_label(prediction: torch.Tensor) -> npt.NDArray[np.uint16]:
    """A prediction integer [H, W] as a hard label uint16 [H, W]."""
    return prediction.to(torch.int32).cpu().numpy().astype(np.uint16)


def scaled(image: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """The image at `factor` times its size, antialiased."""
    h, w = (max(1, int(length * factor + 0.5)) for length in image.shape[:2])
    return shards.resize_image_to(image, (h, w), "triangle") if (h, w) != image.shape[:2] else image


def look(
    model: Callable[[torch.Tensor], Any], image: npt.NDArray[Any], views: Views, device: torch.device
) -> list[Any]:
    """What the network says of one image, and of its mirror image (whose maps are still mirrored) where asked."""
    whole = replace(views, window=None, stride=None)
    return [windows[0].output for windows in glances(model, image, whole, device)]


def _chosen(table: torch.Tensor, classes: Classes | None) -> torch.Tensor:
    """The rows of `table` (or of any tensor that has a row a class) that `classes` names; all where that is None."""
    return table if classes is None else table[subset(classes, len(table)).to(table.device)]


def subset(classes: Classes, count: int) -> torch.Tensor:
    """Some of a run's `count` classes as int64 [c].

    Raises:
        SettingsError: there are none, or one is no class of the run.
    """
    ids = torch.as_tensor(np.asarray(classes, np.int64))
    if ids.ndim != 1 or not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= count:
        raise SettingsError(f"a choice of classes {list(ids.shape)}; expected some numbers from 0 to {count - 1}")
    return ids


def _maps(
    model: nn.Module,
    image: npt.NDArray[np.uint8],
    views: Views,
    device: torch.device,
    classes: Classes | None,
) -> list[ScoreMap]:
    """Softmax scores [C, h, w] of each scale, averaged with those of the mirror image; of a cosine head, those of each
    scale and mirror image, unmade."""
    maps: list[ScoreMap] = []
    for factor in views.scales:
        shown = scaled(image, factor)
        h, w = shown.shape[:2]
        looks = glances(model, shown, views, device)
        if isinstance(looks[0][0].output, Cosined):
            chosen = None if classes is None else subset(classes, len(looks[0][0].output.table)).to(device)
            maps += [CosineScores(windows, (h, w), bool(i), chosen) for i, windows in enumerate(looks)]
        else:
            maps.append(_scores(looks, (h, w), classes))
    return maps


def _scores(looks: Sequence[Sequence[Window]], size: tuple[int, int], classes: Classes | None) -> torch.Tensor:
    """Softmax scores float32 [C, h, w] of an image, averaged with those of its mirror image where there is one."""
    scores: list[torch.Tensor] = []
    for mirrored, windows in enumerate(looks):
        logits = stitched([(w.top, w.left, w.output[0].float()) for w in windows])
        found = _chosen(logits, classes).softmax(0)
        scores.append(found.flip(-1) if mirrored else found)
    mean = scores[0] if len(scores) == 1 else (scores[0] + scores[1]) / 2
    return mean[:, : size[0], : size[1]]


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
        shown = scaled(image, factor)
        h, w = shown.shape[:2]
        for mirrored, windows in enumerate(glances(model, shown, views, device)):
            pixels = stitched([(window.top, window.left, window.output.pixels[0].float()) for window in windows])
            pixels = on_sphere(pixels, 0) if len(windows) > 1 and model.renormalise else pixels
            yield (pixels.flip(-1) if mirrored else pixels)[None, :, :h, :w], windows[0].output


def _resized(pixels: torch.Tensor, size: tuple[int, int], renormalise: bool) -> torch.Tensor:
    """Pixel embeddings [1, d, h, w] at `size`: [d, H, W]."""
    if pixels.shape[2:] == size:
        return pixels[0]
    full = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0]
    return on_sphere(full, 0) if renormalise else full


def best_class(maps: Sequence[ScoreMap], size: tuple[int, int]) -> torch.Tensor:
    """The arg-max int64 [H, W] of the mean of score maps [C, h, w] resized to `size`; ties go to the lower class."""
    if len(maps) == 1 and isinstance(maps[0], torch.Tensor) and maps[0].shape[1:] == size:
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


def _top(maps: Sequence[ScoreMap], size: tuple[int, int], top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top` highest of the summed score maps [C, h, w] resized to `size`, and their ids, both [top, H, W]."""
    best: tuple[torch.Tensor, torch.Tensor] | None = None
    for low, scores in _chunks(maps, size):
        values, ids = leading(scores, top)
        ids = ids + low
        if best is not None:
            values, order = torch.cat([best[0], values]).sort(dim=0, descending=True, stable=True)
            values, ids = values[:top], torch.cat([best[1], ids]).gather(0, order[:top])
        best = values, ids
    assert best is not None
    return best


def leading(scores: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top` highest of [c, H, W], falling, and their places, both [top, H, W]; of equals the first comes first."""
    if top > FEW:
        values, order = scores.sort(dim=0, descending=True, stable=True)
        return values[:top], order[:top]
    left, found = scores.clone(), []
    for _ in range(min(top, len(scores))):
        found.append(left.max(0))
        left.scatter_(0, found[-1].indices[None], -torch.inf)
    return torch.stack([one.values for one in found]), torch.stack([one.indices for one in found])


def _chunks(maps: Sequence[ScoreMap], size: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
    """The sum of score maps [C, h, w] resized to `size`, some classes at a time: (first id, [c, H, W])."""
    pixels = max(size[0] * size[1], *(scores.shape[1] * scores.shape[2] for scores in maps))
    chunk = max(1, CHUNK // pixels)
    for low in range(0, maps[0].shape[0], chunk):
        resized = [_at_size(scores[low : low + chunk], size) for scores in maps]
        yield low, torch.stack(resized).sum(0) if len(resized) > 1 else resized[0]


def _at_size(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Score maps [c, h, w] resized to `size`."""
    if scores.shape[1:] == size:
        return scores
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
