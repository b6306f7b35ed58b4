"""What Table 9 puts in the place of the ladder's pyramid, and DenseNet units as the release builds them untrained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.densenet import DenseLayer
from torch import Tensor, nn

from shards.errors import SettingsError
from tests.train.test_ladder_training import LADDER, ladder
from train.config import Model, Recipe
from train.losses.auxiliary import auxiliary_loss
from train.models import build_model
from train.models.ladder import Laddered, LadderModel
from train.models.ladder.densenet import DenseUnit
from train.models.ladder.spp import NoPyramid, SquarePyramid, context_of
from train.models.ladder.units import SEGMENTS

TINY = {**LADDER["model"], "up": 8}


def stirred(module: nn.Module) -> nn.Module:
    """`module` in evaluation mode with random statistics."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def network(**settings: Any) -> LadderModel:
    torch.manual_seed(0)
    model = build_model(Model(**{**TINY, **settings}), 5)
    assert isinstance(model, LadderModel)
    return model


def applied(unit: nn.Module, x: Tensor) -> Tensor:
    """BN, ReLU, convolution in evaluation mode, written out."""
    norm, conv = unit.norm, unit.conv
    scaled = (x - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var[:, None, None] + norm.eps)
    active = (scaled * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    return nn.functional.conv2d(active, conv.weight, padding=conv.kernel_size[0] // 2)


@torch.no_grad()
def test_square_grids_pool_the_same_cells_at_any_aspect() -> None:
    torch.manual_seed(0)
    spp = stirred(SquarePyramid(32).double())
    maps = torch.randn(2, 32, 12, 18, dtype=torch.float64)
    context, means = spp(maps)
    projected = applied(spp.project, maps)
    parts = [projected]
    assert [tuple(mean.shape) for mean in means] == [(2, 16, n, n) for n in (6, 3, 2, 1)]
    for n, level, mean in zip((6, 3, 2, 1), spp.levels, means, strict=True):
        h, w = 12 // n, 18 // n
        for i in range(n):
            for j in range(n):
                cell = projected[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w].mean((2, 3))
                torch.testing.assert_close(mean[:, :, i, j], cell)
        parts.append(nn.functional.interpolate(applied(level, mean), (12, 18), mode="bilinear"))
    assert [part.shape[1] for part in parts] == [16, 8, 8, 8, 8]
    assert context.shape[1] == spp.out == 16
    torch.testing.assert_close(context, applied(spp.fuse, torch.cat(parts, 1)))


@torch.no_grad()
def test_without_a_pyramid_a_3x3_sees_the_projected_map() -> None:
    torch.manual_seed(0)
    module = stirred(NoPyramid(32).double())
    maps = torch.randn(2, 32, 5, 7, dtype=torch.float64)
    context, means = module(maps)
    torch.testing.assert_close(context, applied(module.fuse, applied(module.project, maps)))
    assert (context.shape[1], module.out, means) == (8, 8, [])
    assert module.fuse.conv.kernel_size == (3, 3)


def test_paper_is_the_usual_pyramid() -> None:
    assert type(context_of("paper", 64)).__name__ == "SpatialPyramid"
    assert context_of("paper", 64, 512).out == 512


@pytest.mark.parametrize(("kind", "pools"), [("square", [(6, 6), (3, 3), (2, 2), (1, 1)]), ("none", [])])
@pytest.mark.parametrize("size", [(40, 90), (256, 32)])
def test_they_train_with_auxiliary_losses(kind: str, pools: list[tuple[int, int]], size: tuple[int, int]) -> None:
    model = network(spp=kind).train()
    out = model(torch.rand(2, 3, *size) * 255)
    assert isinstance(out, Laddered)
    assert out.logits.shape == (2, 5, *size)
    assert [tuple(step.shape[2:]) for step in out.steps] == [
        (-(-size[0] // 32) * k, -(-size[1] // 32) * k) for k in (1, 2)
    ]
    assert [tuple(pool.shape[2:]) for pool in out.pools] == pools
    ids, weights = torch.randint(0, 5, (2, 1, *size)), torch.ones(2, 1, *size)
    auxiliary_loss(out, ids, weights, (32, 16), 32).backward()
    heads = [*model.decoder.step_heads, *model.decoder.pool_heads]
    assert len(heads) == 2 + len(pools)
    assert all(head.conv.weight.grad.abs().sum() > 0 for head in heads)
    assert isinstance(model.eval()(torch.rand(1, 3, *size) * 255), Tensor)


@pytest.mark.parametrize(("kind", "size", "works"), [
    ("square", (32, 128), False), ("none", (32, 32), False), ("none", (32, 33), True), ("paper", (32, 128), True),
])  # fmt: skip
def test_a_training_batch_of_one_works_where_no_norm_sees_one_number(
    kind: str, size: tuple[int, int], works: bool
) -> None:
    model, images = network(spp=kind).train(), torch.rand(1, 3, *size) * 255
    if works:
        assert isinstance(model(images), Laddered)
        return
    with pytest.raises(SettingsError, match=r"found a training batch of 1 image .* expected at least 2"):
        model(images)


def unit(short: bool, segments: str = "none", width: int = 16, growth: int = 4) -> DenseUnit:
    torch.manual_seed(1)
    layer = DenseLayer(width, growth, 4)
    made = DenseUnit(layer, 1, 0.0, SEGMENTS[segments], short)
    assert isinstance(stirred(made), DenseUnit)
    return made


@torch.no_grad()
def test_a_short_unit_is_norm_relu_3x3_of_its_input() -> None:
    short, maps = unit(True), torch.randn(2, 16, 6, 7)
    expected = nn.functional.conv2d(
        nn.functional.batch_norm(
            maps, short.norm2.running_mean, short.norm2.running_var, short.norm2.weight, short.norm2.bias, eps=1e-5
        ).relu(),
        short.conv2.weight,
        padding=1,
    )
    assert short.conv2.weight.shape == (4, 16, 3, 3)
    torch.testing.assert_close(short(maps[:, :10], maps[:, 10:]), expected)


@pytest.mark.parametrize("width", [15, 16, 17])
def test_units_are_short_only_where_their_1x1_does_not_narrow(width: int) -> None:
    assert unit(True, width=width).conv2.in_channels == (width if width <= 16 else 16)
    assert unit(False, width=width).conv2.in_channels == 16


@pytest.mark.parametrize("segments", ["3x3", "cat-1x1", "cat-1x1, 3x3", "unit"])
def test_short_units_are_recomputed_like_others(segments: str) -> None:
    maps = torch.randn(2, 16, 6, 7)
    found = []
    for name in ("none", segments):
        made, given = unit(True, name).train(), maps.clone().requires_grad_()
        made(given[:, :10], given[:, 10:]).square().sum().backward()
        found.append([given.grad, made.conv2.weight.grad, made.norm2.running_mean, made.norm2.running_var])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_older_variant_halves_the_last_block() -> None:
    """Table 7's s4: DB3 whole, at stride 16, and DB4 cut after 8 of its 16 units."""
    with torch.device("meta"):
        encoders = [build_model(Model(arch="ladder", encoder="densenet121", split_block=n), 5).encoder for n in (3, 4)]
    assert [encoder.strides for encoder in encoders] == [[4, 8, 16, 32, 64]] * 2
    assert [encoder.channels for encoder in encoders] == [[256, 512, 640, 1024, 1024], [256, 512, 1024, 768, 1024]]
    assert [[len(block.units) for block in encoder.blocks] for encoder in encoders] == [
        [6, 12, 12, 12, 16],
        [6, 12, 24, 8, 8],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spp": "square", "spp_width": 512}, 'model.spp_width = 512 with model.spp = "square": expected "paper"'),
        ({"spp": "none", "up": 32}, "expected model.auxiliary = false"),
        ({"spp": "pspnet"}, "spp"),
        ({"short_units": True}, "model.short_units = true: expected false with a ladder over mobilenetv3_small_050"),
        ({"short_units": True, "encoder": "densenet121", "weights": "timm"}, 'expected weights = "none"'),
        ({"split_block": 4}, "model.split_block = 4: expected model.down = 64 and a DenseNet"),
        ({"split_block": 4, "encoder": "densenet121"}, "model.split_block = 4: expected model.down = 64"),
        ({"arch": "linear", "down": None, "up": None, "spp": "none"}, 'expected model.arch = "ladder"'),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in {**TINY, **settings}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Model(**given)


def test_stored_ladder_recipes_are_those_from_before() -> None:
    usual = ladder().to_dict()["model"]
    assert {"spp", "short_units", "split_block"}.isdisjoint(usual)
    other = ladder(model={**LADDER["model"], "spp": "none"}).to_dict()
    assert other["model"] == {**usual, "spp": "none"}
    assert Recipe.model_validate(other).model.spp == "none"
