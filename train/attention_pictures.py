"""Where a network with a memory looks for the classes that an image is tagged with: A of LarvSeg's equation 4.

    seg-grouping attention --run runs/larvseg --image room.jpg --tag sofa --tag lamp --out room-attention.png

The maps are those of training (train/losses/attention.py) on the whole image, at the first of `eval.scales`: the same
memory, background rule and settings; candidates are the classes of the run's image-labelled sources. Any tag may have a
map whose class the memory knows, also where the recipe asks for novel ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.errors import SettingsError
from train import checkpoint
from train.figure import heat, sheet
from train.inference import Views, covered, look, scaled
from train.label_space import LabelSpace
from train.losses.attention import Memory, OneImage, attention_maps
from train.losses.image_level import pairs_of
from train.models import build_model
from train.models.cosine import Cosined, CosineModel
from train.models.segmentation import SegmentationModel
from train.objective_mixed import background_of, remembered
from train.objective_mixed import look as cells_of
from train.predict import shown
from train.run import Run

U8 = npt.NDArray[np.uint8]


def tags_of(run: Run, names: Sequence[str]) -> list[int]:
    """The classes of some names, ascending, each once.

    Raises:
        SettingsError: a name that the run does not have.
    """
    places = {name: place for place, name in enumerate(run.classes.names)}
    wrong = [name for name in names if name not in places]
    if wrong:
        raise SettingsError(f"--tag {wrong[0]!r}: no class of run {run.folder}; expected a name of its class table")
    return sorted({places[name] for name in names})


def load_with_memory(run: Run, device: torch.device) -> SegmentationModel:
    """The network of a run with its last weights and its memory, in evaluation mode.

    Raises:
        FormatError: no checkpoint, or a broken one.
    """
    path, saved = checkpoint.best(run.folder)
    checkpoint.belongs(saved, run.classes.digest, run.digests, path)
    config = run.recipe.model.model_copy(update={"weights": "none"})  # the checkpoint has them all
    model = build_model(config, len(run.classes), run.recipe.loss, remembered(run.recipe, run.space))
    checkpoint.fit(model, saved, path)
    return model.to(device).eval()


def source_of(run: Run, model: SegmentationModel) -> Memory | OneImage:
    """What the run knows of classes.

    Raises:
        SettingsError: it has no attention.
    """
    loss = run.recipe.loss
    if isinstance(model, CosineModel):
        if loss.attention == "image":
            return OneImage(loss.memory_top)
        bank = getattr(model, "bank", None)
        if bank is not None:
            return Memory(bank.usable, bank.means)
    raise SettingsError(
        f"run {run.folder} has no memory of classes: expected one trained with image labels, model.head = "
        '"cosine" and loss.attention_weight above 0'
    )


def attention_of(
    model: SegmentationModel, run: Run, image: U8, tags: Sequence[int], views: Views, device: torch.device
) -> dict[int, npt.NDArray[np.float32]]:
    """A of an image's tags.

    Args:
        model: the run's, in evaluation mode, on `device`.
        run: settings, classes, label space.
        image: uint8 [H, W, 3], at the source's size.
        tags: classes of the run, ascending.
        views: the first scale and `bf16` count.
        device: where to compute.

    Returns:
        float32 [H, W] in (0, 1) by class; no entry for a class that the memory does not know yet.

    Raises:
        SettingsError: the run has no memory.
    """
    source = source_of(run, model)
    size = image.shape[0], image.shape[1]
    extent = covered(size, run.recipe.eval.input_scale, run.sources[0]["filter"])
    with torch.inference_mode():
        small = scaled(shown(image, run), views.scales[0])
        output: Cosined = look(model, small, Views(bf16=views.bf16), device)[0]
        candidates = _candidates(run.space, len(run.classes), tags).to(device)
        rows = torch.tensor([[0, tag] for tag in tags], device=device)
        pairs = pairs_of(rows, candidates, 1)
        seen = cells_of(output, candidates, pairs)
        asked = torch.ones(len(tags), dtype=torch.bool, device=device)
        maps, which = attention_maps(
            seen.cells, seen.table, candidates, pairs, asked, source, background_of(run.recipe.loss)
        )
        inside = small.shape[0], small.shape[1]
        full = _at_size(maps, output, inside, extent)[:, : size[0], : size[1]].cpu().numpy()
    return dict(zip(pairs.classes[which].tolist(), full, strict=True))


def draw_attention(image: U8, maps: dict[int, npt.NDArray[np.float32]], run: Run) -> U8:
    """The image uint8 [H, W, 3] and each map over it, blue 0 and red 1, under its class's name: a picture."""
    panels = [("image", image)]
    for klass, values in maps.items():
        novel = run.space is not None and not run.space.base[klass]
        panels.append((run.classes.names[klass] + (" (novel)" if novel else ""), heat(image, values, 0.0, 1.0)))
    return sheet(panels)


def _candidates(space: LabelSpace | None, classes: int, tags: Sequence[int]) -> Tensor:
    """The classes of the sources that have novel ones (all where none has), and the tags: int64, ascending."""
    mask = np.zeros(classes, bool)
    if space is not None:
        for known in space.known:
            mask |= known if bool((known & ~space.base).any()) else False
    mask = mask if mask.any() else ~mask
    mask[list(tags)] = True
    return torch.from_numpy(np.flatnonzero(mask))


def _at_size(maps: Tensor, output: Cosined, inside: tuple[int, int], extent: tuple[int, int]) -> Tensor:
    """Maps [Q, N] over the cells of an image of which `inside` was not padding, bilinearly at a size: [Q, H, W]."""
    if not len(maps):
        return maps.new_zeros(0, *extent)
    rows, columns = (-(-side // output.step) for side in output.size)
    whole = (rows * output.step, columns * output.step)
    coarse = maps.view(1, -1, rows, columns)
    full = F.interpolate(coarse, size=whole, mode="bilinear", align_corners=False)[..., : inside[0], : inside[1]]
    return F.interpolate(full, size=extent, mode="bilinear", align_corners=False)[0]
