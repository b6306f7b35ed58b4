"""Learning rates as functions of the step, parameter groups, clipping."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.config import Model, Optim, Schedule
from train.models import SegmentationModel, build_model
from train.optim import build_optimizer, clip_gradients, learning_rate, parameter_groups, set_lr, set_rates


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return build_model(Model(encoder="mobilenetv3_small_050", decoder_channels=8), 3)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_equals_torch(power: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=power)
    for step in range(20):
        assert learning_rate(step, 20, Optim(lr=0.3), Schedule(power=power)) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        theirs.step()


def test_cosine_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert learning_rate(step, 20, Optim(lr=0.3), Schedule(name="cosine")) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        theirs.step()


@given(st.sampled_from(["poly", "cosine", "constant"]), st.integers(0, 30), st.floats(0, 0.01), st.integers(1, 60))
def test_rates_rise_through_the_warm_up_and_then_never_rise(name: str, warmup: int, floor: float, steps: int) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup_steps": warmup, "min_lr": floor})
    rates = [learning_rate(step, steps, Optim(lr=0.1), schedule) for step in range(steps)]
    rising, falling = rates[:warmup], rates[warmup:]
    assert all(0 < a < b for a, b in pairwise(rising))
    assert all(a >= b >= floor for a, b in pairwise(falling))
    assert max(rates) <= 0.1
    if falling:
        assert falling[0] == 0.1


@pytest.mark.parametrize(("samples", "batch", "epochs"), [(468, 12, 6), (367, 16, 5), (7, 3, 9)])
def test_by_epochs_every_step_has_the_rate_of_its_epochs_first_sample(samples: int, batch: int, epochs: int) -> None:
    """Also where an epoch ends within a step: the step belongs to the epoch of its first sample."""
    steps = epochs * samples // batch
    optim, schedule = Optim(lr=4e-4), Schedule(name="cosine", unit="epoch", min_lr=1e-6)
    for step in range(steps):
        begun = (step * batch) // samples * samples / batch
        expected = max(1e-6, 2e-4 * (1 + math.cos(math.pi * begun / steps)))
        rate = learning_rate(step, steps, optim, schedule, Fraction(samples, batch))
        assert rate == pytest.approx(expected, rel=1e-12)
    found = {learning_rate(s, steps, optim, schedule, Fraction(samples, batch)) for s in range(steps)}
    assert len(found) == epochs


def test_by_epochs_after_a_warm_up() -> None:
    optim, schedule = Optim(lr=1.0), Schedule(name="poly", power=1.0, unit="epoch", warmup_steps=3)
    rates = [learning_rate(step, 12, optim, schedule, Fraction(4)) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *[1 - 1 / 9] * 4, *[1 - 5 / 9] * 4])
    with pytest.raises(ValueError, match="steps in an epoch"):
        learning_rate(5, 12, optim, schedule)


def test_epochs_reach_every_group() -> None:
    model = build_model(Model(encoder="mobilenetv3_small_050", decoder_channels=8), 3)
    config = Optim(lr=0.1, encoder_lr_scale=0.25)
    optimizer = build_optimizer(model, config)
    set_rates(optimizer, 7, 10, config, Schedule(name="cosine", unit="epoch"), Fraction(5))
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.0125, 0.05])


def test_groups_hold_every_parameter_once_with_its_rate_and_decay(model: SegmentationModel) -> None:
    config = Optim(lr=0.1, encoder_lr_scale=0.1, decay_norm_and_bias=False, weight_decay=0.5)
    groups = parameter_groups(model, config)
    assert [g["name"] for g in groups] == ["encoder", "encoder plain", "decoder", "decoder plain"]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    for group in groups:
        plain = group["name"].endswith("plain")
        assert all((p.ndim < 2) == plain for p in group["params"])
        assert group["weight_decay"] == (0.0 if plain else 0.5)
    optimizer = build_optimizer(model, config)
    set_lr(optimizer, 0.02)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.002, 0.002, 0.02, 0.02])


def test_norms_decay_with_the_rest_where_asked(model: SegmentationModel) -> None:
    groups = parameter_groups(model, Optim(decay_norm_and_bias=True))
    assert [(g["name"], g["weight_decay"]) for g in groups] == [("encoder", 1e-4), ("decoder", 1e-4)]


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(Model(encoder="mobilenetv3_small_050", decoder_channels=8), 3)
    for parameter in model.encoder_parameters():
        parameter.requires_grad_(False)
    assert [g["name"] for g in parameter_groups(model, Optim())] == ["decoder"]


def test_the_optimiser_is_the_recipes(model: SegmentationModel) -> None:
    sgd = build_optimizer(model, Optim(name="sgd", momentum=0.5, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.5, True)
    adamw = build_optimizer(model, Optim(name="adamw", betas=(0.5, 0.6)))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.5, 0.6)


def test_amsgrad_is_the_algorithm_of_the_paper() -> None:
    """Reddi et al. 2018, algorithm 2, with Adam's bias corrections and weight decay in the gradient; by hand."""
    config = Optim.model_validate({"name": "amsgrad", "lr": 0.1, "weight_decay": 0.01})
    assert config.betas == (0.9, 0.99)
    assert Optim.model_validate({"name": "amsgrad", "betas": [0.8, 0.9]}).betas == (0.8, 0.9)
    assert Optim.model_validate({"name": "adamw"}).betas == (0.9, 0.999)
    model = build_model(Model(encoder="mobilenetv3_small_050", decoder_channels=8), 3)
    optimizer = build_optimizer(model, config)
    parameter = next(model.decoder_parameters())
    theta = parameter.detach().double().clone()
    m = v = top = torch.zeros_like(theta)
    for step, size in enumerate((3.0, 0.1, 0.2), 1):  # the first gradient's second moment stays the largest
        parameter.grad = torch.full_like(parameter, size)
        g = size + 0.01 * theta
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        top = torch.maximum(top, v)
        theta = theta - 0.1 * (m / (1 - 0.9**step)) / ((top / (1 - 0.99**step)).sqrt() + 1e-8)
        optimizer.step()
    torch.testing.assert_close(parameter.detach().double(), theta, rtol=1e-4, atol=1e-6)


def test_recipes_by_steps_are_stored_as_ever() -> None:
    assert "unit" not in Schedule().model_dump(mode="json")
    by_epochs = Schedule(unit="epoch").model_dump(mode="json")
    assert by_epochs["unit"] == "epoch"
    assert Schedule.model_validate(by_epochs) == Schedule(unit="epoch")


def test_clipping_bounds_the_joint_norm_and_reports_it() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for p in parameters:
        p.grad = torch.full((3,), 2.0)
    before = (6 * 4.0) ** 0.5
    assert float(clip_gradients(parameters, None)) == pytest.approx(before)
    assert float(parameters[0].grad.norm()) == pytest.approx(before / 2**0.5)
    assert float(clip_gradients(parameters, 1.0)) == pytest.approx(before)
    assert float(torch.cat([p.grad for p in parameters]).norm()) == pytest.approx(1.0, rel=1e-4)
