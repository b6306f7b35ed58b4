"""A run that begins from the network of another run: two-stage schedules, fine-tuning on other data.

    seg-train --shards data/voc --recipe ldn161-32-4-voc --start runs/ldn161-voc-aug --out runs/ldn161-voc

Encoder and decoder are taken by name and shape. Where the classes are others, the layers whose shape depends on their
number start anew, as they would without --start; any other difference is an error. The optimiser and the step start
at 0. run.json keeps where the network came from; the run's first checkpoint holds it, so that --resume never looks
there again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.classes import ClassTable
from shards.errors import FormatError, SegshardsError, SettingsError
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import Recipe
from train.models import build_model

# Settings of [model] that leave every tensor's name and shape as they are.
SHAPELESS = {
    "weights", "mean", "std", "dropout", "freeze_norm", "sync_norm", "norm_momentum", "renormalise", "segments",
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A checkpoint to begin from.

    Args:
        path: its file.
        saved: what it holds.
        digest: SHA-256 of the file.
    """

    path: Path
    saved: Checkpoint
    digest: str

    def describe(self) -> dict[str, str]:
        """What run.json keeps of it."""
        return {"path": str(self.path), "digest": self.digest}


def read_start(place: Path) -> Start:
    """The checkpoint of a run's folder, or of one file.

    Of a folder it is the one that seg-eval would take: with exact BatchNorm statistics where they are of its last step.

    Raises:
        FormatError: no checkpoint there, or a broken one.
    """
    path, saved = checkpoint.best(place) if place.is_dir() else (place, checkpoint.load(place))
    return Start(path, saved, checkpoint.digest(path))


def begin(model: nn.Module, start: Start, recipe: Recipe, classes: ClassTable) -> str:
    """Fill `model`, the network of `recipe` for `classes`, in place; what was taken and what was not, in one line.

    Raises:
        SettingsError: the checkpoint is of another architecture; names the first tensor, found and expected shapes.
        FormatError: its class table is broken.
    """
    own = _network(model.state_dict())
    anew = _new_tensors(own, start, recipe, classes)
    given = {name: tensor for name, tensor in _network(start.saved.model).items() if name not in anew}
    model.load_state_dict({**model.state_dict(), **given})
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in own if name in anew))
    rest = f"; its classes are others, so these layers start anew: {', '.join(layers)}" if layers else ""
    return f"starting from the network of {start.path}, step {start.saved.step}: {len(given)} tensors{rest}"


def check(start: Start, recipe: Recipe, classes: ClassTable) -> None:
    """Raise what `begin` would, without a network in memory."""
    _new_tensors(_shapes(recipe, len(classes)), start, recipe, classes)


def other_classes(start: Start, classes: ClassTable) -> bool:
    """Whether a class id of the checkpoint may mean something else here: names or their order differ."""
    try:
        return ClassTable.from_dict(start.saved.classes).names != classes.names
    except SegshardsError as error:
        raise FormatError(start.path, f"{error}; {checkpoint.REMEDY}") from None


def _new_tensors(own: dict[str, Tensor], start: Start, recipe: Recipe, classes: ClassTable) -> set[str]:
    """Names of the tensors that start anew: where the classes are others, those that one class more would change.

    Raises:
        SettingsError, FormatError: as `begin`.
    """
    anew: set[str] = set()
    if other_classes(start, classes):
        more = _shapes(recipe, len(classes) + 1)
        anew = {name for name, tensor in own.items() if more[name].shape != tensor.shape}
    _refuse(start, recipe, anew, own)
    return anew


def _network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the memory of classes (train/models/memory_bank.py), which a new run begins without."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("bank.")}


def _shapes(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """The state dict of the recipe's network for `count` classes, without numbers."""
    config = recipe.model.model_copy(update={"weights": "none"})
    with torch.device("meta"):
        shapes: dict[str, Tensor] = build_model(config, count, recipe.loss).state_dict()
    return shapes


def _refuse(start: Start, recipe: Recipe, anew: set[str], own: dict[str, Tensor]) -> None:
    """Raise SettingsError at the first tensor, but for those of `anew`, that one side lacks or that differs in form."""
    given = _network(start.saved.model)
    for name in dict.fromkeys([*own, *given]):
        found, expected = _form(given.get(name)), _form(own.get(name))
        if found != expected and name not in anew:
            raise SettingsError(
                f"--start {start.path}: weights of another architecture: {name} found {found}, expected {expected}"
                f"{_settings(start.saved.recipe, recipe)}; start from a run with the same [model], or change this one's"
            )


def _form(tensor: Tensor | None) -> str:
    """Shape, and what else is unusual of a tensor, in words."""
    if tensor is None:
        return "none"
    usual = (torch.float32, torch.strided)
    kinds = [str(kind).removeprefix("torch.") for kind in (tensor.dtype, tensor.layout) if kind not in usual]
    return " ".join([str(list(tensor.shape)), *kinds])


def _settings(before: dict[str, Any], recipe: Recipe) -> str:
    """Settings of [model] that may be the reason, in words."""
    now, was = recipe.to_dict()["model"], before.get("model")
    if not isinstance(was, dict):
        return ""
    keys = [key for key in {**now, **was} if key not in SHAPELESS and was.get(key) != now.get(key)]
    found = [f"model.{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in keys[:3]]
    return f" ({'; '.join(found)})" if found else ""
