"""What each rung of a ladder says of an image: labels from coarse to fine (Kreso et al. 2021, 5.8, Figure 6).

    seg-ladder strides --run runs/ldn --shards data/camvid --out pictures --scores

The auxiliary heads read each step's input, at strides d ... 2u, the last head reads stride u. One look at each image:
`eval.scales` and `eval.flip` are left aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from shards.classes import ClassTable
from shards.errors import SettingsError
from shards.picture import colourise
from train.config import Recipe
from train.distributed import World
from train.evaluate import Example, Split
from train.figure import sheet
from train.inference import Views, as_label, best_class, covered, look
from train.metrics_split import SplitMetrics
from train.models.ladder import LadderModel

U8 = npt.NDArray[np.uint8]
Watcher = Callable[[int, Example, dict[int, torch.Tensor]], None]


def strides_of(recipe: Recipe) -> list[int]:
    """The strides of a network's rungs, coarsest first.

    Raises:
        SettingsError: no ladder, or one without a head on each rung.
    """
    model = recipe.model
    if model.arch != "ladder":
        raise SettingsError(f'found model.arch = "{model.arch}" in the run, expected a run with model.arch = "ladder"')
    if not model.auxiliary:
        raise SettingsError("found model.auxiliary = false in the run, expected a ladder trained with auxiliary heads")
    return [model.down >> rung for rung in range((model.down // model.up).bit_length())]


def labels_by_stride(
    model: LadderModel, image: U8, size: tuple[int, int], views: Views, device: torch.device, extent: tuple[int, int]
) -> dict[int, torch.Tensor]:
    """The class of each pixel by stride, coarsest first.

    Args:
        model: in evaluation mode, on `device`.
        image: uint8 [h, w, 3], what the network is shown.
        size: (H, W) of the result.
        views: only `bf16` counts.
        device: where to compute.
        extent: (H', W') that the image shown covers (`train.inference.covered`).

    Returns:
        int64 [H, W] each, on the device; the last is what `train.inference.predict` gives of a single view.
    """
    h, w = image.shape[:2]
    with torch.inference_mode():
        found = look(model.logits_by_stride, image, Views(bf16=views.bf16), device)[0]
        scores = {stride: logits.float().softmax(1)[0, :, :h, :w] for stride, logits in found.items()}
        return {stride: best_class([maps], extent)[: size[0], : size[1]] for stride, maps in scores.items()}


def spread(total: int, count: int) -> list[int]:
    """`count` indices of `total`, evenly spaced; all of them where there are fewer."""
    count = min(count, total)
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]


def score_strides(
    model: LadderModel,
    strides: Sequence[int],
    split: Split,
    indices: Sequence[int],
    views: Views,
    world: World,
    watch: Watcher | None = None,
) -> dict[int, dict[str, Any]]:
    """Score every rung on the samples at `indices`; ranks share the work.

    Args:
        model: on the world's device; set to evaluation mode here.
        strides: of its rungs (`strides_of`).
        split: the samples.
        indices: which of them; a range is read ahead.
        views: only `bf16` counts.
        world: this process among all.
        watch: called with every index, sample and prediction of this rank.

    Returns:
        All scores of seg-eval by stride.
    """
    model.eval()
    metrics = {stride: SplitMetrics(split.classes, split.manifest.protocol, world.device) for stride in strides}
    mine = indices[world.rank :: world.size]
    for index, example in zip(mine, _examples(split, mine), strict=True):
        size = example.hard.shape[0], example.hard.shape[1]
        extent = covered(size, split.input_scale, split.manifest.filter)
        labels = labels_by_stride(model, example.shown, size, views, world.device, extent)
        for stride, label in labels.items():
            metrics[stride].update(label, example.hard, example.instances)
        if watch is not None:
            watch(index, example, labels)
    for table in (table for counts in metrics.values() for table in counts.tables()):
        table.copy_(world.sum_counts(table))
    return {stride: counts.to_dict() for stride, counts in metrics.items()}


def _examples(split: Split, indices: Sequence[int]) -> Iterator[Example]:
    if isinstance(indices, range):
        return split.examples(indices)
    return chain.from_iterable(split.examples(range(index, index + 1)) for index in indices)


def draw(folder: Path, example: Example, labels: Mapping[int, torch.Tensor], classes: ClassTable) -> Path:
    """Write `folder`/KEY.png: image, label and every prediction int64 [H, W], in the order given, with captions."""
    panels = [("image", example.image), ("label", colourise(example.hard, classes))]
    panels += [(f"stride {stride}", colourise(as_label(label), classes)) for stride, label in labels.items()]
    path = folder / f"{example.key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(panels)).save(path)
    return path
