"""Do pixels of one category lie together in a network's features, be the category known to it or not?

    seg-grouping score --run runs/pixels --shards data/ade20k --split val --classes novel
    seg-grouping click --run runs/pixels --image sofa.jpg --at 120,80 --out sofa.png

The exploratory experiment of LarvSeg (section 3.2, equation 2, Table 1 and Figure 2): one pixel is drawn from each
category's ground-truth mask in an image, its feature stands for the category, and every pixel goes to the category
with the highest cosine. The network's classes play no part.

Chosen where the paper is silent: features are those of the feature grid, and a drawn pixel's is that of the cell that
it lies in. Cosines are upsampled bilinearly to the label's size. The drawn pixels are scored with the others. All
categories of an image compete (or only those that are scored: `rivals`); an image without a scored category is left
out. The network looks once at the whole image, at the first of `eval.scales`; `eval.flip` and windows are left aside.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shards
from shards.errors import SettingsError
from shards.order import generator
from train.distributed import World
from train.evaluate import Example, Split
from train.figure import heat, marked, sheet
from train.inference import Views, best_class, covered, look, scaled
from train.metrics import Counts
from train.models import EmbeddingModel
from train.models.cosine import CosineModel
from train.models.embedding import on_sphere
from train.models.segmentation import SegmentationModel
from train.predict import shown
from train.run import Run

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FeatureGrid:
    """Unit vectors of an image on the network's own grid.

    Args:
        cells: float32 [d, h, w], of unit length.
        padded: (H', W'), the pixels that the grid covers: those of the image shown, and what was padded.
        shown: (H, W) of the image shown.
    """

    cells: Tensor
    padded: tuple[int, int]
    shown: tuple[int, int]

    def cell(self, y: int, x: int, extent: tuple[int, int]) -> tuple[int, int]:
        """The cell that pixel (y, x) of a map of `extent` over the image shown lies in."""
        h, w = self.cells.shape[1:]
        row = (y + 0.5) * self.shown[0] / extent[0] * h / self.padded[0]
        column = (x + 0.5) * self.shown[1] / extent[1] * w / self.padded[1]
        return min(int(row), h - 1), min(int(column), w - 1)

    def responses(self, points: list[tuple[int, int]], extent: tuple[int, int]) -> Tensor:
        """The cosine of every cell to those at some pixels, on the image shown: float32 [n, H, W] (equation 2)."""
        places = [self.cell(y, x, extent) for y, x in points]
        chosen = torch.stack([self.cells[:, row, column] for row, column in places])  # [n, d]
        maps = torch.einsum("nd,dhw->nhw", chosen, self.cells)[None]
        full = F.interpolate(maps, size=self.padded, mode="bilinear", align_corners=False)[0]
        return full[:, : self.shown[0], : self.shown[1]]


def named_features(model: nn.Module) -> str:
    """Which features of a network are looked at, in words."""
    if isinstance(model, (CosineModel, EmbeddingModel)):
        return "the head's unit vectors"
    return "the encoder's last feature map"


def features_of(model: SegmentationModel, image: U8, views: Views, device: torch.device) -> FeatureGrid:
    """The features of an image uint8 [h, w, 3].

    Args:
        model: in evaluation mode, on `device`.
        image: what the network is shown.
        views: the first scale and `bf16` count.
        device: where to compute.
    """
    resized = scaled(image, views.scales[0])

    def cells(pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        h, w = pixels.shape[2:]
        padded = h + -h % model.multiple, w + -w % model.multiple
        if isinstance(model, (CosineModel, EmbeddingModel)):
            return model.coarse(pixels), padded
        images = F.pad(model.normalise(pixels), (0, padded[1] - w, 0, padded[0] - h))
        last = model.encoder(images)[-1]
        return last if isinstance(last, Tensor) else torch.cat(list(last), 1), padded  # a ladder's maps are lists

    with torch.inference_mode():
        found, padded = look(cells, resized, Views(bf16=views.bf16), device)[0]
        return FeatureGrid(on_sphere(found.float(), 1)[0], padded, (resized.shape[0], resized.shape[1]))


Watcher = Callable[[Example], None]


def score_groups(
    model: SegmentationModel,
    split: Split,
    views: Views,
    world: World,
    chosen: Bools,
    rivals: str = "present",
    seed: int = 0,
    repeats: int = 1,
    limit: int | None = None,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """mIoU over some categories where one pixel of each stands for it; ranks share the images.

    Args:
        model: on the world's device; set to evaluation mode here.
        split: the samples.
        views: the first scale and `bf16` count.
        world: this process among all.
        chosen: bool [C], the categories that are scored.
        rivals: "present": all categories of the image compete; "scored": the chosen ones; others' pixels are void.
        seed: of the draws; a draw depends on seed, repeat, sample and category alone.
        repeats: how often pixels are drawn, each scored on its own.
        limit: look at the first so many samples only.
        watch: called with every sample of this rank.

    Returns:
        miou (mean over the repeats), miou_deviation (sample deviation; None of one), mious, per_class (mean over the
        repeats; None where never scored), categories (scored), images (with a scored category). Scores in 0..1.

    Raises:
        SettingsError: no sample shows a chosen category.
    """
    model.eval()
    counts = [Counts.zeros(len(split.classes), world.device) for _ in range(repeats)]
    images = torch.zeros(1, dtype=torch.int64)
    total = split.samples if limit is None else min(split.samples, limit)
    for example in split.examples(range(world.rank, total, world.size)):
        group = _Group.of(example, chosen, rivals)
        if group is not None:
            images += 1
            size = example.hard.shape[0], example.hard.shape[1]
            extent = covered(size, split.input_scale, split.manifest.filter)
            grid = features_of(model, example.shown, views, world.device)
            for repeat, table in enumerate(counts):
                label = torch.from_numpy(group.label.astype(np.int64)).to(world.device)
                table.update(
                    group.assign(grid, extent, [split.classes.names[k] for k in group.ids], seed, repeat), label
                )
        if watch is not None:
            watch(example)
    for tensor in (images, *(table.table for table in counts)):
        tensor.copy_(world.sum_counts(tensor))
    if not int(images):
        raise SettingsError("found no chosen category in these samples; choose other --classes, or another --split")
    return {**_summary(counts, chosen, split.classes.names), "images": int(images)}


@dataclass(frozen=True)
class _Group:
    """The categories of one image that compete, and its label where they are.

    Args:
        key: the sample's.
        ids: int [n], ascending.
        label: uint16 [H, W], void where no competing category is.
    """

    key: str
    ids: list[int]
    label: U16

    @classmethod
    def of(cls, example: Example, chosen: Bools, rivals: str) -> _Group | None:
        """None where the image shows no category that is scored."""
        present = [int(k) for k in np.unique(example.hard) if k != shards.IGNORE]
        scored = [k for k in present if chosen[k]]
        if not scored:
            return None
        ids = present if rivals == "present" else scored
        return cls(example.key, ids, np.where(np.isin(example.hard, ids), example.hard, np.uint16(shards.IGNORE)))

    def assign(self, grid: FeatureGrid, extent: tuple[int, int], names: list[str], seed: int, repeat: int) -> Tensor:
        """Each pixel's category by the highest cosine, int64 [H, W]; ties go to the lower id."""
        points = []
        for klass, name in zip(self.ids, names, strict=True):
            ys, xs = np.nonzero(self.label == klass)
            place = int(generator("grouping", seed, repeat, self.key, name).integers(len(ys)))
            points.append((int(ys[place]), int(xs[place])))
        best = best_class([grid.responses(points, extent)], extent)
        h, w = self.label.shape
        return torch.tensor(self.ids, device=best.device)[best[:h, :w]]


def draw_responses(
    model: SegmentationModel,
    run: Run,
    image: U8,
    points: Sequence[tuple[int, int]],
    views: Views,
    device: torch.device,
) -> U8:
    """The image uint8 [H, W, 3] with clicked pixels (x, y), and for each of them its response map: a picture.

    A map's colours reach from its least cosine (blue) to 1, the clicked pixel's own (red).
    """
    extent = covered((image.shape[0], image.shape[1]), run.recipe.eval.input_scale, run.sources[0]["filter"])
    grid = features_of(model, shown(image, run), views, device)
    maps = grid.responses([(y, x) for x, y in points], extent)[None]
    full = F.interpolate(maps, size=extent, mode="bilinear", align_corners=False)[0]
    values = full[:, : image.shape[0], : image.shape[1]].cpu().numpy()
    picture = image
    for x, y in points:
        picture = marked(picture, y, x)
    panels = [("image", picture)]
    for (x, y), response in zip(points, values, strict=True):
        low = float(response.min())
        panels.append((f"{x},{y}: cosine {low:.2f} to 1", marked(heat(image, response, low, 1.0), y, x)))
    return sheet(panels)


def _summary(counts: list[Counts], chosen: Bools, names: tuple[str, ...]) -> dict[str, Any]:
    """Scores over the repeats, over the chosen categories that some image shows."""
    label = counts[0].table[1].cpu().numpy() > 0  # the same in every repeat
    scored = [names[k] for k in np.flatnonzero(chosen & label)]
    found = [table.scores(names).per_class for table in counts]
    mious = [statistics.fmean(scores[name] or 0.0 for name in scored) for scores in found]
    per_class = {name: statistics.fmean(scores[name] or 0.0 for scores in found) for name in scored}
    return {
        "miou": statistics.fmean(mious),
        "miou_deviation": statistics.stdev(mious) if len(mious) > 1 else None,
        "mious": mious,
        "categories": len(scored),
        "per_class": per_class,
    }
