"""The plan's figures against what a real training step does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.config import Model, from_dict
from train.losses import build_loss
from train.models import build_model
from train.plan import make_plan, multiply_adds, saved_bytes


def recipe(**sections: Any) -> Any:
    model = {"encoder": "mobilenetv3_small_050", "decoder_channels": 8}
    return from_dict({"name": "r", "description": "d", "model": model, **sections})


def test_parameters_epochs_and_memory() -> None:
    chosen = recipe(
        loop={"steps": 100, "batch": 8, "accumulate": 2},
        augment={"crop": [64, 96]},
        optim={"name": "adamw"},
    )
    plan = make_plan(chosen, 5, {"a": 30, "b": 10}, (0, 0), world_size=2)
    model = build_model(chosen.model, 5)
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert plan.epochs == pytest.approx(100 * 8 / 40)
    assert (plan.per_device, plan.size) == (2, (64, 96))
    assert plan.optimiser_memory == 8 * plan.parameters
    assert plan.weights_memory >= 8 * plan.parameters
    text = "\n".join(plan.lines())
    for fact in ("deeplabv3plus", "mobilenetv3_small_050", "a 30, b 10", "20.0 epochs", "megapixel"):
        assert fact in text
    assert json.loads(json.dumps(plan.to_dict()))["steps"] == 100


def test_activations_equal_those_of_a_real_step() -> None:
    config = Model(encoder="mobilenetv3_small_050", decoder_channels=8)
    loss = build_loss(recipe().loss)
    planned = saved_bytes(build_model(config, 5).to("meta"), loss, (2, 64, 96))
    model = build_model(config, 5).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss(model(torch.zeros(2, 3, 64, 96)), torch.zeros(2, 4, 64, 96).int(), torch.ones(2, 4, 64, 96))
    real = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert planned == pytest.approx(real, rel=0.05)


def test_multiply_adds_of_a_known_network() -> None:
    config = Model(arch="linear", encoder="resnet50", output_stride=32)
    per_megapixel = multiply_adds(build_model(config, 1000).to("meta"))
    at_224 = per_megapixel * 224 * 224 / 1e6
    assert at_224 == pytest.approx(4.09e9 + 49 * 2048 * 1000, rel=0.02)  # ResNet-50's published 4.1 G, with our head


def test_planning_fetches_no_weights() -> None:
    model = {"encoder": "mobilenetv3_small_050", "weights": "/nowhere.safetensors"}
    assert make_plan(recipe(model=model), 5, {"a": 1}, (64, 64)).parameters > 0


def test_no_samples_is_no_epochs() -> None:
    assert make_plan(recipe(), 5, {}, (64, 64)).epochs == 0.0
    assert isinstance(build_loss(recipe().loss), nn.Module)
