"""Ladder networks: timm's features under timm's names, shapes at every stride, each part against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from shards.errors import SettingsError, UserError
from train.config import Model, Recipe, from_dict
from train.models import build_model
from train.models.ladder import Ladder, LadderDenseNet, Laddered, LadderModel
from train.models.ladder.spp import SpatialPyramid, grids, pooled
from train.models.ladder.steps import LadderStep
from train.models.ladder.units import SEGMENTS, joined


def ladder(**settings: Any) -> Model:
    return Model(arch="ladder", **{"encoder": "densenet121", **settings})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> DenseNet:
    """timm's own DenseNet, small, random down to its running statistics; the code under test gets it from timm."""
    torch.manual_seed(0)
    net = DenseNet(growth_rate=8, block_config=(2, 2, 4, 2))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)

    real = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if not name.startswith(("tiny", "densenet")):
            return real(name, pretrained=pretrained, **options)
        made = DenseNet(growth_rate=8, block_config=(2, 2, 4, 2))
        made.load_state_dict(net.state_dict())
        return made

    monkeypatch.setattr("train.models.ladder.densenet.timm.create_model", create_model)
    net.features.pool0 = nn.MaxPool2d(2, 2)  # the ladder's
    return net.eval()


def tiny_model(encoder: nn.Module, down: int, **settings: Any) -> LadderModel:
    decoder = Ladder(encoder.channels, [24, 16, 16][: len(encoder.channels) - 1], 5, **settings)
    parts = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "multiple": down, "smallest_batch": 2}
    return LadderModel(encoder=encoder, decoder=decoder, **parts)


def test_the_maps_are_timms_where_nothing_is_split(tiny: DenseNet) -> None:
    encoder = LadderDenseNet("tiny", False, 32, 2).eval()
    images = torch.randn(2, 3, 64, 96)
    stages = [tiny.features.norm0, *(tiny.features.get_submodule(f"denseblock{i}") for i in (1, 2, 3, 4))]
    expected: list[Tensor] = []
    for stage in stages:
        stage.register_forward_hook(lambda module, inputs, out: expected.append(out))
    with torch.no_grad():
        tiny.features(images)
        found = [torch.cat(m, 1) for m in encoder(images)]
    assert encoder.strides == [2, 4, 8, 16, 32]
    assert [m.shape[1] for m in found] == encoder.channels
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_split_block_pools_after_half_of_its_units(tiny: DenseNet) -> None:
    encoder = LadderDenseNet("tiny", False, 64, 4).eval()
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        found = [torch.cat(m, 1) for m in encoder(images)]
        x = images
        for name, layer in tiny.features.named_children():
            if name == "denseblock3":
                break
            x = layer(x)
        maps = [x]
        for i, unit in enumerate(tiny.features.denseblock3.values()):
            if i == 2:
                split = torch.cat(maps, 1)
                maps = [F.avg_pool2d(split, 2)]
            maps.append(unit(maps))
        whole = torch.cat(maps, 1)
        last = tiny.features.denseblock4(tiny.features.transition3(whole))
    assert encoder.strides == [4, 8, 16, 32, 64]
    for one, other in zip(found[2:], (split, whole, last), strict=True):
        torch.testing.assert_close(one, other)


def test_dilation_keeps_the_stride_and_spreads_the_taps(tiny: DenseNet) -> None:
    encoder = LadderDenseNet("tiny", False, 8, 4, dilated=True).eval()
    assert encoder.strides == [4, 8]
    rates = [block.units[0].conv2.dilation for block in encoder.blocks]
    assert rates == [(1, 1), (1, 1), (2, 2), (4, 4)]
    found = encoder(torch.randn(1, 3, 64, 64))
    assert [tuple(m[0].shape[-2:]) for m in found] == [(16, 16), (8, 8)]
    assert [sum(part.shape[1] for part in m) for m in found] == encoder.channels


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("densenet121", [256, 512, 640, 1024, 1024]),
        ("densenet169", [256, 512, 768, 1280, 1664]),
        ("densenet161", [384, 768, 1248, 2112, 2208]),
    ],
)
def test_channels_of_the_skips_and_of_db4(name: str, channels: list[int]) -> None:
    """Source: the release of Krešo et al., as listed in its constructor."""
    with torch.device("meta"):
        assert LadderDenseNet(name, False, 64, 4).channels == channels


def test_timms_state_dict_loads_by_name_and_another_architectures_does_not(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model("densenet121").state_dict()
    save_file(state, tmp_path / "own.safetensors")
    model = build_model(ladder(weights=str(tmp_path / "own.safetensors"), down=128), 3)
    units = [unit for block in model.encoder.blocks if block.number == 3 for unit in block.units]
    assert len(units) == 24
    for i in (1, 12, 13, 24):  # both halves of the split block
        assert units[i - 1].conv2.weight.equal(state[f"features.denseblock3.denselayer{i}.conv2.weight"])
    assert model.encoder.stem.conv0.weight.equal(state["features.conv0.weight"])
    assert model.encoder.downs[-2].norm.running_var.equal(state["features.transition3.norm.running_var"])
    short = {key: tensor for key, tensor in state.items() if "denseblock4.denselayer16.conv2" not in key}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"lacks features\.denseblock4\.denselayer16\.conv2\.weight"):
        build_model(ladder(weights=str(tmp_path / "short.safetensors")), 3)
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"do not fit encoder densenet121"):
        build_model(ladder(weights=str(tmp_path / "other.safetensors")), 3)


SETUPS = [
    (ladder(down=64), 4, [64, 32, 16, 8]),
    (ladder(down=32), 4, [32, 16, 8]),
    (ladder(down=32, up=2), 2, [32, 16, 8, 4]),
    (ladder(down=16, up=2), 2, [16, 8, 4]),
    (ladder(down=128), 4, [128, 64, 32, 16, 8]),
    (ladder(down=32, up=32), 32, []),
    (ladder(down=8, up=8, dilated=8), 8, []),
    (ladder(down=16, dilated=16), 4, [16, 8]),
    (ladder(down=32, encoder="resnet18", spp_width=512), 4, [32, 16, 8]),
    (ladder(down=8, encoder="resnet18", dilated=8), 4, [8]),
    (ladder(down=16, encoder="dpn68", up=2), 2, [16, 8, 4]),
]


@pytest.mark.parametrize(("config", "up", "strides"), SETUPS, ids=lambda x: None)
def test_every_stride_is_where_the_names_say(tiny: DenseNet, config: Model, up: int, strides: list[int]) -> None:
    """The DenseNets are small here: only their strides are looked at."""
    model = build_model(config, 7).train()
    out = model(torch.rand(1, 3, 128, 256))
    assert isinstance(out, Laddered)
    assert out.logits.shape == (1, 7, 128, 256)
    assert [tuple(s.shape) for s in out.steps] == [(1, 7, 128 // s, 256 // s) for s in strides]
    assert [tuple(p.shape[1:]) for p in out.pools] == [(7, 8, 16), (7, 4, 8), (7, 2, 4), (7, 1, 2)]
    assert model.coarse(torch.rand(2, 3, 128, 128)).shape == (2, 7, 128 // up, 128 // up)


def test_the_first_convolution_has_stride_one_at_16_to_2_and_no_block_is_split() -> None:
    with torch.device("meta"):
        encoder = LadderDenseNet("densenet121", False, 16, 2)
    assert encoder.stem.conv0.stride == (1, 1)
    assert encoder.channels == [256, 512, 1024, 1024]


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (40, 320), (320, 40)])
def test_any_size_gives_logits_at_the_inputs_size(tiny: DenseNet, size: tuple[int, int]) -> None:
    model = tiny_model(LadderDenseNet("tiny", False, 32, 4), 32)
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    out = model.train()(images)
    assert out.logits.shape == (2, 5, *size)
    sum(part.square().mean() for part in (out.logits, *out.steps, *out.pools)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]  # DistributedDataParallel would wait for it
    logits = model.eval()(images[:1])
    assert isinstance(logits, Tensor)
    assert logits.shape == (1, 5, *size)
    assert {id(p) for p in model.encoder_parameters()} == {id(p) for p in model.encoder.parameters()}


def test_a_batch_of_one_trains_where_it_has_statistics_and_is_refused_elsewhere(tiny: DenseNet) -> None:
    model = tiny_model(LadderDenseNet("tiny", False, 32, 4), 32).train()
    with pytest.raises(SettingsError, match=r"training batch of 1 image of 64 x 64.*expected at least 2"):
        model(torch.rand(1, 3, 64, 64) * 255)
    out = model(torch.rand(1, 3, 64, 128) * 255)  # the coarsest grid has two cells
    assert torch.isfinite(out.logits).all()
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_without_auxiliary_heads_training_gives_logits_alone(tiny: DenseNet) -> None:
    model = tiny_model(LadderDenseNet("tiny", False, 32, 4), 32, auxiliary=False).train()
    out = model(torch.rand(2, 3, 32, 32))
    assert isinstance(out, Tensor)
    out.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (5, 3), (23, 30), (9, 72)])
def test_grids_are_square_and_pooling_is_torchs(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    for (rows, columns), expected in zip(grids(*size), (8, 4, 2, 1), strict=True):
        assert rows == expected
        assert columns == max(1, round(size[1] / size[0] * rows))
        torch.testing.assert_close(pooled(maps, rows, columns), F.adaptive_avg_pool2d(maps, (rows, columns)))
    assert grids(16, 32) == [(8, 16), (4, 8), (2, 4), (1, 2)]
    assert grids(64, 8)[-1] == (1, 1)


def unit(conv: Any, x: Tensor) -> Tensor:
    """BN (evaluation), ReLU, convolution out of a NormActConv's numbers."""
    n = conv.norm
    x = F.relu(F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, 1e-5))
    if hasattr(conv, "depthwise"):
        x = F.conv2d(x, conv.depthwise.weight, padding=1, groups=x.shape[1])
    kernel = conv.conv.weight.shape[-1]
    return F.conv2d(x, conv.conv.weight, conv.conv.bias, padding=kernel // 2)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("width", "depthwise"), [(160, False), (160, True), (16, False)])
def test_a_step_up_is_its_formula(residual: bool, width: int, depthwise: bool) -> None:
    torch.manual_seed(2)
    step = LadderStep(width, 24, 16, residual, depthwise, frozenset()).eval()
    below, skip = torch.randn(2, width, 3, 5), torch.randn(2, 24, 6, 10)
    above = F.interpolate(below, (6, 10), mode="bilinear", align_corners=False)
    x = unit(step.skip, skip) + above
    if width > 128 and not depthwise:
        assert step.narrow.conv.weight.shape == (128, width, 1, 1)
        x = unit(step.narrow, x)
    x = unit(step.blend, x)
    if residual:
        x = x + (above if width == 16 else unit(step.across, above))
    torch.testing.assert_close(step(below, skip), x)
    torch.testing.assert_close(step(below, skip[:, :5], skip[:, 5:]), x)


@pytest.mark.parametrize(("out", "widths"), [(None, (32, 8, 16)), (512, (512, 128, 512)), (256, (512, 128, 256))])
def test_the_pyramid_is_its_formula(out: int | None, widths: tuple[int, int, int]) -> None:
    torch.manual_seed(3)
    pyramid = SpatialPyramid(64, out).eval()
    maps = torch.randn(2, 64, 9, 17)
    context, means = pyramid(maps)
    x = unit(pyramid.project, maps)
    parts = [x]
    for level, mean, rows in zip(pyramid.levels, means, (8, 4, 2, 1), strict=True):
        expected = F.adaptive_avg_pool2d(x, (rows, max(1, round(17 / 9 * rows))))
        torch.testing.assert_close(mean, expected)
        parts.append(F.interpolate(unit(level, expected), (9, 17), mode="bilinear", align_corners=False))
    assert (x.shape[1], parts[1].shape[1], context.shape[1]) == widths
    torch.testing.assert_close(context, unit(pyramid.fuse, torch.cat(parts, 1)))


def test_norms_have_the_releases_momentum_unless_the_recipe_has_its_own() -> None:
    with torch.device("meta"):
        model, other = build_model(ladder(), 3), build_model(ladder(norm_momentum=0.2), 3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.05, 1e-5)}
    assert {m.momentum for m in other.encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {0.2}


TWICE = {
    "none": set(),
    "3x3": {"conv2"},
    "cat-1x1": {"conv1"},
    "cat-1x1, 3x3": {"conv1", "conv2"},
    "unit": {"conv1", "conv2"},
    "block+stem+td+tu": {"conv1", "conv2", "conv0", "transition", "step", "head"},
    "unit+stem+td+tu": {"conv1", "conv2", "conv0", "transition", "step", "head"},
}


@pytest.mark.parametrize("name", TWICE)
def test_segments_recompute_their_layers_and_change_no_number(tiny: DenseNet, name: str) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 255
    calls: dict[str, int] = {}

    def step(segments: str) -> dict[str, Tensor]:
        torch.manual_seed(5)
        chosen = SEGMENTS[segments]
        model = tiny_model(LadderDenseNet("tiny", False, 64, 8, segments=chosen), 64, segments=chosen).double().train()
        e = model.encoder
        watched = {
            "conv0": e.stem.conv0,
            "conv1": e.blocks[2].units[0].conv1,
            "conv2": e.blocks[4].units[1].conv2,
            "transition": e.downs[0].conv,
            "step": model.decoder.steps[0].blend.conv,
            "head": model.decoder.head.conv,
        }
        calls.clear()
        for key, layer in watched.items():
            layer.register_forward_pre_hook(lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1}))
        out = model(images.double())
        sum(part.square().mean() for part in (out.logits, *out.steps, *out.pools)).backward()
        return {**{n: p.grad for n, p in model.named_parameters()}, **dict(model.named_buffers())}

    expected, found = step("none"), step(name)
    assert {key for key, count in calls.items() if count == 2} == TWICE[name]
    assert set(calls.values()) <= {1, 2}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)


def test_an_encoder_ends_at_the_pyramid_and_one_map_is_not_copied() -> None:
    with torch.device("meta"):
        encoder = build_model(ladder(encoder="resnet18", down=16), 3).encoder
    assert any("layer3" in name for name, _ in encoder.named_parameters())
    assert not [name for name, _ in encoder.named_parameters() if "layer4" in name]  # they would have no gradient
    x = torch.zeros(1, 2, 3, 3)
    assert joined((x,)) is x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "linear", "encoder": "resnet18", "down": 32}, 'model.down is set: expected model.arch = "ladder"'),
        ({"up": 8, "down": 8}, "model.dilated = none with model.down = 8: expected the same number"),
        ({"dilated": 16, "down": 32}, "model.dilated = 16 with model.down = 32: expected the same number"),
        ({"down": 16, "up": 32}, "model.up = 32: expected at most model.down = 16"),
        ({"head": "embedding"}, 'expected "dense" or "cosine" with model.arch = "ladder"'),
        ({"encoder": "resnet18", "down": 32, "dropout": 0.2}, "expected 0 with a ladder over resnet18"),
        ({"encoder": "resnet18", "down": 32, "segments": "unit"}, 'expected "none", as resnet18 has no such layers'),
        ({"segments": "5x5"}, "segments"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(name="x", description="y", model={"arch": "ladder", "encoder": "densenet121", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet18", "down": 64}, r"strides \[2, 4, 8, 16, 32\], and model.down = 64"),
        ({"encoder": "convnext_atto", "down": 32, "up": 2}, r"model.down and model.up ask for \[2, 4, 8, 16, 32\]"),
        ({"encoder": "densenetblur121d"}, "its stem is not a 7x7 convolution and a max-pool"),
    ],
)
def test_encoders_without_the_strides_are_refused(settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(SettingsError, match=message):
        build_model(ladder(**settings), 3)


def test_recipes_store_a_ladders_settings_and_no_other_recipe_does() -> None:
    base = {"name": "x", "description": "y"}
    stored = from_dict({**base, "model": {"arch": "ladder", "encoder": "densenet121", "up": 2, "down": 16}}).to_dict()
    assert (stored["model"]["down"], stored["model"]["up"], stored["model"]["dropout"]) == (16, 2, 0.0)
    assert from_dict(stored).to_dict() == stored
    dense = Recipe(name="x", description="y").to_dict()
    assert "down" not in dense["model"]
    assert "embedding_dim" not in dense["model"]
    assert from_dict(dense).to_dict() == dense
