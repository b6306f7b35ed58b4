"""The class embeddings of a run, for other programs and for people.

    seg-embeddings --run runs/cocolvis --out embeddings

    embeddings.safetensors   tensor "embeddings" float32 [C, d]; metadata: names, wnids (JSON lists), run, step, ...
    embeddings.npz           arrays embeddings, names, wnids (numpy.load reads them without pickle)
    neighbours.tsv           for each class the nearest other classes, nearest first, with their distances
    projection.png           the two principal axes, each class a labelled dot in its own colour

Embeddings are unit vectors, so distances run from 0 to 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import save_file
from torch import nn

from shards.classes import ClassTable
from shards.errors import UserError
from train.models import EmbeddingModel
from train.neighbors import build_index
from train.run import Run

SIDE, EDGE, FONT = 1600, 60, 14  # of the picture, in pixels
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClassVectors:
    """Class embeddings float32 [C, d], unit vectors, with the classes that they stand for."""

    vectors: F32
    classes: ClassTable


def class_vectors(model: nn.Module, run: Run) -> ClassVectors:
    """The class embeddings of a run's network.

    Raises:
        UserError: its head has none, or they are no finite numbers.
    """
    if not isinstance(model, EmbeddingModel):
        raise UserError(
            f'run {run.folder} has model.head = "dense", without class embeddings; expected a run of a recipe with '
            'model.head = "embedding"'
        )
    with torch.inference_mode():
        vectors = model.classes().cpu().numpy()
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(broken):
        raise UserError(
            f"run {run.folder}: the embedding of class {run.classes.names[broken[0]]!r} is not finite ({len(broken)} "
            "such classes); the run has diverged: train again with a lower optim.lr"
        )
    return ClassVectors(vectors, run.classes)


def write_all(found: ClassVectors, run: Run, step: int, out: Path, neighbours: int) -> None:
    """Write the four files into `out`, which is made.

    Args:
        found: the class embeddings.
        run, step: where they are from.
        out: a folder.
        neighbours: how many of a class's nearest others are listed, or all where there are fewer.

    Raises:
        UserError: the place is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a folder or a new path")
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "embeddings.safetensors", found, run, step)
    names, wnids = (np.array(column) for column in _columns(found.classes))
    np.savez_compressed(out / "embeddings.npz", embeddings=found.vectors, names=names, wnids=wnids)
    lines = ["\t".join(row) for row in neighbour_rows(found, neighbours)]
    (out / "neighbours.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    picture(found).save(out / "projection.png")


def write_safetensors(path: Path, found: ClassVectors, run: Run, step: int) -> None:
    """One tensor, with names and wnids as JSON lists in the metadata."""
    names, wnids = _columns(found.classes)
    metadata = {
        "names": json.dumps(names, ensure_ascii=False),
        "wnids": json.dumps(wnids),
        "classes_digest": found.classes.digest,
        "recipe": run.recipe.name,
        "step": str(step),
    }
    save_file({"embeddings": np.ascontiguousarray(found.vectors)}, path, metadata)


def neighbour_rows(found: ClassVectors, neighbours: int) -> Iterator[tuple[str, ...]]:
    """Header and rows of the table: id, name, rank, neighbour's id and name, distance. Ties go to the lower id."""
    yield ("id", "name", "rank", "neighbour_id", "neighbour", "distance")
    table = torch.from_numpy(found.vectors)
    count = min(neighbours + 1, len(table))
    nearest = build_index(table, queries=len(table), k=count).nearest(table, count).numpy()
    names = [" ".join(name.split()) for name in found.classes.names]  # no tab or line break in a cell
    for own, row in enumerate(nearest):
        others = [int(other) for other in row if other != own][:neighbours]
        for rank, other in enumerate(others, 1):
            distance = float(np.linalg.norm(found.vectors[own].astype(np.float64) - found.vectors[other]))
            yield (str(own), names[own], str(rank), str(other), names[other], f"{distance:.6f}")


def principal_axes(vectors: F32) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """The vectors [C, d] on their two principal axes, float64 [C, 2], and the share of the variance on each.

    An axis points where its entry of largest magnitude is positive, so that a picture does not flip between machines.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.concatenate([axes, np.zeros((2, axes.shape[1]))])[:2]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    variance = np.concatenate([singular, np.zeros(2)]) ** 2
    total = max(float(variance.sum()), 1e-30)
    return centred @ (axes * signs).T, (float(variance[0]) / total, float(variance[1]) / total)


def picture(found: ClassVectors) -> Image.Image:
    """The projection, RGB: a dot a class, and its name where no earlier one is in the way."""
    points, shares = principal_axes(found.vectors)
    reach = max(float(np.abs(points).max()), 1e-6)
    places = SIDE / 2 + points * np.array([1, -1]) / reach * (SIDE / 2 - EDGE)
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    for (x, y), colour in zip(places, found.classes.colours, strict=True):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=tuple(colour), outline="black")
    taken: list[tuple[float, float, float, float]] = []
    for (x, y), name in zip(places, found.classes.names, strict=True):
        right = draw.textbbox((x + 6, y - 8), name, font=font)
        shift = 0.0 if right[2] < SIDE else right[0] - right[2] - 12  # at the edge, to the left of its dot
        box = draw.textbbox((x + 6 + shift, y - 8), name, font=font)
        if all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken):
            draw.text((x + 6 + shift, y - 8), name, font=font, fill="black")
            taken.append(box)
    title = f"{len(points)} classes, principal axes: {shares[0]:.0%} and {shares[1]:.0%} of the variance"
    draw.text((10, 10), title, font=font, fill="black")
    return image


def _columns(classes: ClassTable) -> tuple[list[str], list[str]]:
    """Names, and wnids ("" where there is none)."""
    return list(classes.names), [wnid or "" for wnid in classes.wnids]
