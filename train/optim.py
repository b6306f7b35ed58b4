"""Optimisers, their parameter groups, and learning rates as pure functions of the step.

`build_optimizer(model, config.optim)` then, each step, `set_rates(optimizer, step, ...)`: nothing about the schedule
is stored, so a resumed run continues with the same rates.

The class table of an embedding head is a group of its own: its own factor on the learning rate, momentum and power of
"poly", and no weight decay, as only its directions mean something: decay would shrink the lengths and so speed the
directions up. A learnt temperature is another group, alike but at a hundredth of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from train.config import Optim, Schedule
from train.models import EmbeddingModel, SegmentationModel

GROUP_SCALE = "lr_scale"  # a group's factor on the common learning rate
GROUP_POWER = "power"  # a group's own power of schedule "poly", where it has one
TEMPERATURE_SCALE = 0.01  # at full rate the temperature outruns the embeddings: a softmax that is all but uniform


def learning_rate(step: int, steps: int, optim: Optim, schedule: Schedule, epoch: Fraction | None = None) -> float:
    """The common learning rate of step 0 <= step < steps (a group multiplies it with its own `lr_scale`).

    Warm-up is linear: step i of n warm-up steps runs at (i + 1) / (n + 1) of the rate that the schedule then takes
    up; "poly" is (1 - t) ** power and "cosine" (1 + cos(pi t)) / 2 of the rate, t the share of the steps after the
    warm-up that are done. No rate after the warm-up is below `min_lr`. With schedule.unit = "epoch", t is the share
    that was done when the step's epoch began; `epoch` is the number of steps that one has: samples over batch.
    """
    if schedule.unit == "epoch" and epoch is None:
        raise ValueError('schedule.unit = "epoch": the number of steps in an epoch is needed')
    warmup = schedule.warmup_steps
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    at = float(step // epoch * epoch) if schedule.unit == "epoch" and epoch is not None else step
    done = min(1.0, max(0.0, at - warmup) / max(1, steps - warmup))
    return max(schedule.min_lr, optim.lr * _decay(schedule, done))


def _decay(schedule: Schedule, done: float) -> float:
    if schedule.name == "poly":
        return float((1.0 - done) ** schedule.power)
    if schedule.name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[GROUP_SCALE]


def set_rates(
    optimizer: torch.optim.Optimizer,
    step: int,
    steps: int,
    optim: Optim,
    schedule: Schedule,
    epoch: Fraction | None = None,
) -> float:
    """Give every group its learning rate of 0 <= step < steps; the common rate. Arguments as in `learning_rate`."""
    common = learning_rate(step, steps, optim, schedule, epoch)
    set_lr(optimizer, common)
    for group in optimizer.param_groups:
        if GROUP_POWER in group:
            own = schedule.model_copy(update={"power": group[GROUP_POWER]})
            group["lr"] = learning_rate(step, steps, optim, own, epoch) * group[GROUP_SCALE]
    return common


def parameter_groups(model: SegmentationModel, config: Optim) -> list[dict[str, Any]]:
    """The trainable parameters in up to four groups: encoder or decoder, with or without weight decay; and last the
    class table of an embedding head and its temperature, where that is learnt.

    Every trainable parameter is in exactly one group, in the order of the model's own listing, so that an
    optimiser's state can be stored by position. Norm parameters and biases are those with fewer than two dimensions.
    """
    groups: list[dict[str, Any]] = []
    for name, parameters, scale in (
        ("encoder", model.encoder_parameters(), config.encoder_lr_scale),
        ("decoder", model.decoder_parameters(), 1.0),
    ):
        groups += _by_decay(name, [p for p in parameters if p.requires_grad], scale, config)
    return [*groups, *_of_table(model, config)] if isinstance(model, EmbeddingModel) else groups


def _of_table(model: EmbeddingModel, config: Optim) -> list[dict[str, Any]]:
    own = [("embeddings", model.classes, 1.0), ("temperature", model.temperature, TEMPERATURE_SCALE)]
    common: dict[str, Any] = {"weight_decay": 0.0, GROUP_POWER: config.embedding_power}
    if config.name == "sgd":
        common["momentum"] = config.embedding_momentum
    groups = []
    for name, module, factor in own:
        scale = config.embedding_lr_scale * factor
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups += [{"name": name, "params": parameters, GROUP_SCALE: scale, "lr": config.lr * scale, **common}]
    return [group for group in groups if group["params"]]


def _by_decay(name: str, parameters: list[nn.Parameter], scale: float, config: Optim) -> list[dict[str, Any]]:
    common = {GROUP_SCALE: scale, "lr": config.lr * scale}
    if config.decay_norm_and_bias:
        split = [(name, parameters, config.weight_decay)]
    else:
        plain = [p for p in parameters if p.ndim < 2]
        split = [(name, [p for p in parameters if p.ndim >= 2], config.weight_decay), (f"{name} plain", plain, 0.0)]
    return [{"name": n, "params": ps, "weight_decay": decay, **common} for n, ps, decay in split if ps]


def build_optimizer(model: SegmentationModel, config: Optim) -> torch.optim.Optimizer:
    """SGD, AdamW or AMSGrad over `parameter_groups`."""
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "amsgrad":
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, amsgrad=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale the gradients down to a joint L2 norm of `max_norm` (None: leave them); the norm before, on their device.

    Reading the result as a number waits for the accelerator: do so only when a line is logged.
    """
    return torch.nn.utils.clip_grad_norm_(list(parameters), math.inf if max_norm is None else max_norm)
