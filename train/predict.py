"""Label maps and overlays of plain image files.

    seg-predict --run runs/demo --out pictures street.jpg another.png
    seg-predict --run runs/demo --out pictures --top 5 street.jpg       # numpy.load("pictures/street.top.npz")
    seg-predict --run runs/demo --out pictures --legend street.jpg      # the overlay with its classes named

A bad image costs one line; the others are done.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import nn

import shards
from shards.classes import ClassTable
from shards.codec import decode_image, image_facts
from shards.errors import SegshardsError, UserError
from shards.picture import overlay
from train.figure import classes_shown, with_legend
from train.inference import Views, as_label, covered, predict, predict_top
from train.run import Run

MOST_BYTES = 1 << 30


def predict_files(
    model: nn.Module,
    run: Run,
    paths: Sequence[Path],
    out: Path,
    views: Views,
    device: torch.device,
    top: int = 0,
    classes: Sequence[int] | None = None,
    legend: bool = False,
) -> list[str]:
    """Write <name>.label.png and <name>.overlay.png for each image, and <name>.top.npz where `top` is above 0.

    Args:
        model: the run's network, in evaluation mode, on `device`.
        run: for the classes and the scale at which images are shown to the network.
        paths: image files.
        out: the folder to write to; it is made.
        views: scales and flip.
        device: where to compute.
        top: how many of the most likely classes are written (see `write_top`).
        classes: those of the run that there are to choose from, ascending; None: all. Ids stay the run's.
        legend: write <name>.legend.png as well: the overlay, and below it the names of its classes, novel ones marked.

    Returns:
        One line for each image that could not be used.

    Raises:
        UserError: two images would be written to the same files, or `top` is more than there are classes.
    """
    choice = len(run.classes if classes is None else classes)
    if top > choice:
        raise UserError(f"--top {top}: found {choice} classes in the run; give at most as many")
    twice = [name for name, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise UserError(f"two images are named {twice[0]!r}: their results would overwrite each other; rename one")
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    for path in paths:
        try:
            image = read_image(path)
        except SegshardsError as error:
            problems.append(str(error))
            continue
        label = _predicted(model, run, image, views, device, top, classes, out / f"{path.stem}.top.npz")
        label_image(label, run.classes).save(out / f"{path.stem}.label.png")
        picture = overlay(image, label, run.classes)
        Image.fromarray(picture).save(out / f"{path.stem}.overlay.png")
        if legend:
            base = run.space.base if run.space else None
            named = with_legend(picture, classes_shown(label, run.classes, base))
            Image.fromarray(named).save(out / f"{path.stem}.legend.png")
    return problems


def _predicted(
    model: nn.Module,
    run: Run,
    image: npt.NDArray[np.uint8],
    views: Views,
    device: torch.device,
    top: int,
    classes: Sequence[int] | None,
    top_file: Path,
) -> npt.NDArray[np.uint16]:
    """The label uint16 [H, W] of an image; the `top` likeliest classes go to a file where that is above 0."""
    h, w = image.shape[:2]
    extent = covered((h, w), run.recipe.eval.input_scale, run.sources[0]["filter"])
    ids_of = torch.arange(len(run.classes)) if classes is None else torch.tensor(classes)
    if top:
        places, shares = predict_top(model, shown(image, run), (h, w), views, device, extent, top, classes)
        ids = ids_of.to(places.device)[places]
        write_top(top_file, ids, shares, run.classes)
        return as_label(ids[0])
    places = predict(model, shown(image, run), (h, w), views, device, extent, classes)
    return as_label(ids_of.to(places.device)[places])


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as uint8 [H, W, 3], turned upright where EXIF says so, as `seg-prep` turns what is trained on.

    Raises:
        UserError: it cannot be read.
        FormatError: it is no image, or a broken one.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES} bytes; expected an image")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected an image file") from None
    stored = decode_image(data, path)
    if not image_facts(data, path).rotated:
        return stored
    with Image.open(io.BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)


def shown(image: npt.NDArray[np.uint8], run: Run) -> npt.NDArray[np.uint8]:
    """The image at the scale that the recipe evaluates at, made with the filter of the run's first shard set."""
    scale = run.recipe.eval.input_scale
    return image if scale == "1" else shards.resize_image(image, scale, run.sources[0]["filter"])


def write_top(path: Path, ids: torch.Tensor, confidences: torch.Tensor, classes: ClassTable) -> None:
    """The most likely classes of each pixel as a compressed .npz without any pickle: `ids` uint16 [K, H, W] by falling
    confidence, `confidences` float16 [K, H, W] (their sum over all classes is 1), `names` of all classes."""
    np.savez_compressed(
        path,
        ids=as_label(ids),
        confidences=confidences.cpu().numpy().astype(np.float16),
        names=np.array(classes.names),
    )


def label_image(label: npt.NDArray[np.uint16], classes: ClassTable) -> Image.Image:
    """A label uint16 [H, W] as a PNG's content: 8 bits with the classes' colours as palette, else 16 bits of ids."""
    if len(classes) > 255:
        return Image.fromarray(label)
    image = Image.fromarray(label.astype(np.uint8))  # turning grey into palette mode keeps the ids
    image.putpalette([value for colour in classes.colours for value in colour])
    return image
