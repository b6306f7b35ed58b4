"""What a run would cost, before it starts: `seg-train --shards DIR --recipe NAME --out RUN --dry-run`.

The network is measured on torch's meta device: shapes without numbers, so a plan takes a second and no memory, and
nothing is downloaded. The memory is an estimate of what training holds at once: parameters, gradients, optimiser
state, and what the forward pass saves for the backward pass; workspaces of the kernels and the allocator's slack come
on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from train.config import Recipe
from train.losses import soft_cross_entropy
from train.losses.cosine import dense_scores, rows_of, steep_rows
from train.mixture import turns
from train.models import Cosined, Embedded, SegmentationModel, build_model
from train.objective import build_objective

MEASURED = 512  # side, in pixels, of the square on which multiply-adds are counted
PLANES = 4  # classes a cell that the loss is measured with
MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """The figures of a planned run; memory in bytes, for one device.

    Args:
        recipe: what is planned.
        parameters: of the network, of which `encoder_parameters` are the encoder's.
        multiply_adds: of one forward pass, for a million input pixels.
        per_device: images that one device works on at once.
        size: (height, width) of one of them.
        weights_memory: parameters, buffers and gradients.
        optimiser_memory: the optimiser's state.
        activation_memory: what the forward pass saves, in float32.
        samples: of each source.
        bank_memory: what a mixture remembers of its classes.
    """

    recipe: Recipe
    parameters: int
    encoder_parameters: int
    multiply_adds: float
    per_device: int
    size: tuple[int, int]
    weights_memory: int
    optimiser_memory: int
    activation_memory: int
    samples: Mapping[str, int]
    bank_memory: int = 0

    @property
    def memory(self) -> int:
        """All of it, in float32."""
        return self.weights_memory + self.optimiser_memory + self.activation_memory + self.bank_memory

    @property
    def epochs(self) -> float:
        """Passes over all samples; in a mixture, over those of its first source."""
        if self.recipe.mixture is not None:
            return next(iter(self.epochs_by_source.values()))
        total = sum(self.samples.values())
        return self.recipe.loop.steps * self.recipe.loop.batch / total if total else 0.0

    @property
    def epochs_by_source(self) -> dict[str, float]:
        """Passes over the samples of each source of a mixture."""
        mixture, loop = self.recipe.mixture, self.recipe.loop
        if mixture is None:
            return {}
        seen = turns(mixture).before(loop.steps * mixture.parts) * (loop.batch // mixture.parts)
        pairs = zip(self.samples.items(), seen.tolist(), strict=True)
        return {name: count / samples if samples else 0.0 for (name, samples), count in pairs}

    def lines(self) -> list[str]:
        """The plan for people, a line a fact."""
        model = self.recipe.model
        h, w = self.size
        parts = (self.weights_memory, self.optimiser_memory, self.activation_memory)
        weights, state, saved = (f"{part / MIB:,.0f}" for part in parts)
        bank = f", memory of classes {self.bank_memory / MIB:,.0f}" if self.bank_memory else ""
        return [
            f"recipe      {self.recipe.name}: {self.recipe.description}",
            f"model       {model.arch} over {model.encoder}, weights {model.weights}",
            f"parameters  {self.parameters / 1e6:.2f} M ({self.encoder_parameters / 1e6:.2f} M in the encoder)",
            f"compute     {self.multiply_adds / 1e9:.2f} G multiply-adds a megapixel, forward",
            f"memory      {self.memory / MIB:,.0f} MiB a device for {self.per_device} x {h} x {w} in float32: weights "
            f"and gradients {weights}, optimiser {state}, activations {saved} (about half of these under bf16){bank}",
            *self._samples(),
        ]

    def _samples(self) -> list[str]:
        """Steps and what they show: a line for all sources, or one for each of a mixture."""
        mixture, loop = self.recipe.mixture, self.recipe.loop
        steps = f"steps       {loop.steps:,} of {loop.batch} images in {loop.accumulate} part(s)"
        if mixture is None:
            sources = ", ".join(f"{name} {count:,}" for name, count in self.samples.items())
            return [f"{steps}, {self.epochs:.1f} epochs", f"samples     {sources}"]
        quotas, epochs = turns(mixture).quotas, self.epochs_by_source
        lines = [
            f"source      {source.name}: {source.labels} labels, {self.samples[source.name]:,} samples, {quota} of "
            f"every {sum(quotas)} parts, {epochs[source.name]:.1f} epochs"
            for source, quota in zip(mixture.sources, quotas, strict=True)
        ]
        return [f"{steps} of {loop.batch // mixture.parts} x {mixture.parts} by source", *lines]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "recipe": self.recipe.name,
            "parameters": self.parameters,
            "encoder_parameters": self.encoder_parameters,
            "multiply_adds_per_megapixel": self.multiply_adds,
            "memory_bytes": self.memory,
            "weights_bytes": self.weights_memory,
            "optimiser_bytes": self.optimiser_memory,
            "activation_bytes": self.activation_memory,
            "images_per_device": self.per_device,
            "image_size": list(self.size),
            "steps": self.recipe.loop.steps,
            "epochs": self.epochs,
            "samples": dict(self.samples),
            **({"bank_bytes": self.bank_memory} if self.bank_memory else {}),
            **({"epochs_by_source": self.epochs_by_source} if self.recipe.mixture is not None else {}),
        }


def make_plan(
    recipe: Recipe,
    num_classes: int,
    samples: Mapping[str, int],
    size: tuple[int, int],
    world_size: int = 1,
    remembered: Sequence[int] = (),
) -> Plan:
    """Measure what a recipe needs.

    Args:
        recipe: the run.
        num_classes: C of the class table.
        samples: labelled samples of each source, by the source's name.
        size: (height, width) of a training sample where the recipe does not crop; of a mixture, of its largest samples.
        world_size: devices that share the global batch.
        remembered: the classes that a cosine head keeps a memory of.

    Raises:
        SettingsError: the network cannot be built.
    """
    config = recipe.model if recipe.model.weights == "none" else recipe.model.model_copy(update={"weights": "none"})
    model = build_model(config, num_classes, recipe.loss, remembered)
    bank = getattr(model, "bank", None)
    model = model.to("meta")
    size = size if recipe.mixture is not None else recipe.augment.crop or size
    per_device = max(1, recipe.loop.batch // (recipe.loop.accumulate * world_size))
    parameters = sum(p.numel() for p in model.parameters())
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    states = {"sgd": 1 if recipe.optim.momentum else 0, "adamw": 2, "amsgrad": 3}[recipe.optim.name]
    return Plan(
        recipe=recipe,
        parameters=parameters,
        encoder_parameters=sum(p.numel() for p in model.encoder_parameters()),
        multiply_adds=multiply_adds(model),
        per_device=per_device,
        size=size,
        weights_memory=held + 4 * parameters,
        optimiser_memory=4 * parameters * states,
        activation_memory=saved_bytes(model, _loss(recipe), (per_device, *size), recipe.data.target_stride),
        samples=dict(samples),
        bank_memory=0 if bank is None else bank.bytes,
    )


def _loss(recipe: Recipe) -> nn.Module:
    """The recipe's loss, or what stands in for one that cannot run without numbers."""
    return build_objective(recipe) if recipe.model.head == "dense" else KeepsGradients()


class KeepsGradients(nn.Module):
    """Stands in for the losses of an embedding or a cosine head, which look at numbers: like them it keeps, from
    forward to backward, the gradients of pixels and table and nothing of the candidates (train/losses/rows.py).
    Targets finer than a cosine head's features need dense scores besides."""

    def forward(self, output: Embedded | Cosined, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(output, Cosined) and ids.shape[2] > output.features.shape[2]:
            scores = dense_scores(output, output.table, (ids.shape[2], ids.shape[3]))
            return soft_cross_entropy(scores, ids, weights)
        rows = steep_rows(output, output.table) if isinstance(output, Cosined) else rows_of(output.pixels)
        kept = [torch.empty_like(tensor.detach()) for tensor in (rows, output.table)]
        return (rows * kept[0]).sum() + (output.table * kept[1]).sum(), weights.sum()


def multiply_adds(model: SegmentationModel) -> float:
    """Multiply-adds of one forward pass for a million pixels of input (a network on the meta device)."""
    model.eval()
    image = torch.empty(1, 3, MEASURED, MEASURED, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return int(counter.get_total_flops()) / 2 / (MEASURED * MEASURED / 1e6)


def saved_bytes(model: SegmentationModel, loss: nn.Module, shape: tuple[int, int, int], target_stride: int = 1) -> int:
    """Bytes that a training step's forward pass saves for its backward pass, parameters left out.

    Args:
        model: a network on the meta device.
        loss: the recipe's.
        shape: (batch, height, width).
        target_stride: pixels of the images for a cell of the targets, along each side.
    """
    batch, h, w = shape
    cells = (-(-h // target_stride), -(-w // target_stride))
    own = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Any] = {}  # by storage, kept alive so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    model.train()
    images = torch.empty(batch, 3, h, w, device="meta")
    ids = torch.zeros(batch, PLANES, *cells, dtype=torch.int32, device="meta")
    weights = torch.ones(batch, PLANES, *cells, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model(images), ids, weights)
    return sum(storage.nbytes() for storage in saved.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
