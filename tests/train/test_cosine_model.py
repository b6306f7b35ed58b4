"""The cosine head and the encoders under it: ViT tokens against timm's own, gains and covariances against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn

from shards.errors import SettingsError, UserError
from tests.train.conftest import recipe
from train.config import Model, Optim
from train.models import Cosined, CosineModel, build_model
from train.models.cosine import gains
from train.models.features import PatchTokens, is_vit
from train.optim import build_optimizer
from train.plan import make_plan

VIT = "test_vit"  # timm's own for tests: depth 6, width 64, patch 16, 160 x 160


def model_of(num_classes: int = 5, **settings: Any) -> CosineModel:
    values = {"arch": "linear", "encoder": VIT, "head": "cosine", "dropout": 0.0, **settings}
    made = build_model(Model(**values), num_classes)
    assert isinstance(made, CosineModel)
    return made


def images(h: int, w: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(0)) * 255


@pytest.mark.parametrize(("h", "w"), [(160, 160), (32, 80)])
def test_a_vits_map_is_timms_normalised_patch_tokens(h: int, w: int) -> None:
    encoder = PatchTokens(VIT, False).eval()
    plain = timm.create_model(VIT, dynamic_img_size=True).eval()
    nn.init.normal_(plain.norm.weight)
    plain.load_state_dict(encoder.model.state_dict() | {k: v for k, v in plain.state_dict().items() if "head" in k})
    nn.init.normal_(plain.norm.weight)
    encoder.model.norm.weight.data.copy_(plain.norm.weight)
    x = images(h, w) / 255
    with torch.no_grad():
        tokens, (found,) = plain.forward_features(x), encoder(x)
    assert found.shape == (2, 64, h // 16, w // 16)
    patches = tokens[:, plain.num_prefix_tokens :].reshape(2, h // 16, w // 16, 64)
    torch.testing.assert_close(found.permute(0, 2, 3, 1), patches)
    assert float(found.std(1).sub(1).abs().max()) < 3  # without the last norm tokens are of any size


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_224.augreg_in21k", "vit_small_patch16_384"])
def test_published_vits_are_known(name: str) -> None:
    assert is_vit(name)
    with torch.device("meta"):
        model = model_of(encoder=name)
    assert model.vectors.weight.shape[1] == {"vit_t": 192, "vit_b": 768, "vit_s": 384}[name[:5]]
    assert not is_vit("resnet18")


@pytest.mark.parametrize("name", [VIT, "test_vit2", "test_vit3"])  # class token; register; pooled by attention
def test_every_parameter_learns(name: str) -> None:
    model = model_of(encoder=name).train()
    out = model(images(48, 64))
    (gains(out.features[0].flatten(1).t(), out.table, out.gamma, True).sum() + out.features[..., 0].sum()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    ids = [id(p) for group in build_optimizer(model, Optim()).param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "stride"),
    [
        ({}, 16),
        ({"arch": "deeplabv3plus", "encoder": "mobilenetv3_small_050", "decoder_channels": 64}, 4),
        ({"arch": "ladder", "encoder": "mobilenetv3_small_050", "auxiliary": False, "down": 32, "up": 4}, 4),
        ({"arch": "segformer", "encoder": "mit_b0", "decoder_channels": 64}, 4),
        ({"arch": "hrnet", "encoder": "mobilenetv3_small_050", "decoder_channels": 64}, 4),
        ({"arch": "linear", "encoder": "mobilenetv3_small_050", "output_stride": 8}, 8),
    ],
    ids=lambda value: value.get("arch", "vit") if isinstance(value, dict) else "",
)
def test_features_and_vectors_are_of_unit_length_over_any_decoder(settings: dict[str, Any], stride: int) -> None:
    for dim in (6, None):
        model = model_of(7, cosine_dim=dim, **settings).train()
        out = model(images(50, 70))
        d = dim or out.table.shape[1]
        padded = [side + -side % model.multiple for side in (50, 70)]
        assert isinstance(out, Cosined)
        assert out.features.shape == (2, d, padded[0] // stride, padded[1] // stride)
        assert (out.table.shape, out.size, out.stride, out.step) == ((7, d), (50, 70), stride, stride)
        torch.testing.assert_close(out.features.norm(dim=1), torch.ones_like(out.features[:, 0]))
        torch.testing.assert_close(out.table.norm(dim=1), torch.ones(7))
        last = [m for m in model.decoder.modules() if isinstance(m, nn.Conv2d)][-1]
        assert last.bias is None
        assert out._replace(stride=0).step * 2 > stride


def test_the_projection_starts_as_the_release_draws_it() -> None:
    torch.manual_seed(0)
    model = model_of(4000, cosine_dim=None)
    (last,) = [m for m in model.decoder.modules() if isinstance(m, nn.Conv2d)]
    assert last.weight.shape == (64, 64, 1, 1)
    assert float(last.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.1)
    assert float(model.vectors.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.gamma().detach()) == 1.0
    fixed = model_of(3, score="scaled", score_scale=20.0)
    assert (float(fixed.gamma()), [n for n, _ in fixed.named_parameters() if "gamma" in n]) == (20.0, [])
    assert not fixed(images(32, 32)).standardised


@given(st.integers(0, 999), st.integers(1, 40), st.integers(2, 6), st.integers(1, 9))
def test_gains_are_gamma_over_the_deviation_of_the_cosines(seed: int, c: int, d: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    features, table = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rng.normal(size=(k, d)) for k in (n, c)))
    want = 1.7 / np.sqrt((features @ table.T).var(1) + 1e-5)
    got = gains(torch.tensor(features), torch.tensor(table), torch.tensor(1.7, dtype=torch.float64), True)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)
    plain = gains(torch.tensor(features), torch.tensor(table), torch.tensor(1.7, dtype=torch.float64), False)
    np.testing.assert_array_equal(plain.numpy(), 1.7)


def test_gains_in_float32_of_classes_that_hardly_differ() -> None:
    """A mean that is 100 times the deviation must not eat the digits."""
    base, noise = torch.ones(1, 32), torch.randn(9000, 32, generator=torch.Generator().manual_seed(1)) * 0.01
    table, rows = nn.functional.normalize(base + noise, dim=1), nn.functional.normalize(torch.randn(5, 32), dim=1)
    want = 1 / torch.sqrt((rows.double() @ table.double().t()).var(1, correction=0) + 1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # it must not take part
        got = gains(rows, table, torch.tensor(1.0), True)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)


def test_gradients_of_gains() -> None:
    torch.manual_seed(0)
    parts = (torch.randn(4, 3).double(), torch.randn(6, 3).double(), torch.tensor(1.3).double())
    inputs = [part.requires_grad_() for part in parts]
    assert torch.autograd.gradcheck(lambda *given: gains(*given, True), inputs)


def test_weights_of_a_classifier_at_another_image_size(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = timm.create_model(VIT, img_size=96)  # a grid of 6 x 6 where the encoder's own is 10 x 10
    nn.init.normal_(other.pos_embed)
    path = tmp_path / "vit.safetensors"
    save_file(other.state_dict(), path)
    model = model_of(weights=str(path))
    own = model.encoder.model.pos_embed.detach()
    assert torch.equal(model.encoder.model.norm.weight, other.norm.weight)
    prefix = other.num_prefix_tokens
    assert torch.equal(own[:, :prefix], other.pos_embed[:, :prefix])
    grid = other.pos_embed[:, prefix:].detach().reshape(1, 6, 6, 64).permute(0, 3, 1, 2)
    full = nn.functional.interpolate(grid, size=(10, 10), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(own[:, prefix:], full.permute(0, 2, 3, 1).reshape(1, 100, 64))
    save_file({**other.state_dict(), "pos_embed": torch.zeros(1, 31 + prefix, 64)}, path)
    with pytest.raises(UserError, match=r"other shapes for .*pos_embed"):
        model_of(weights=str(path))


def test_stochastic_depth() -> None:
    rates = [m.drop_prob for m in model_of(drop_path=0.2).encoder.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.2)
    assert not [m for m in model_of().encoder.modules() if isinstance(m, DropPath)]
    with pytest.raises(SettingsError, match=r"model.drop_path = 0.1: expected 0 with densenet121"):
        model_of(encoder="densenet121", drop_path=0.1, output_stride=32)
    with pytest.raises(SettingsError, match=r'expected 0 with model.arch = "deeplabv3plus"'):
        model_of(arch="deeplabv3plus", encoder="resnet18", drop_path=0.1)


def test_what_does_not_go_together_is_told_in_a_line() -> None:
    with pytest.raises(SettingsError, match=r'model.auxiliary = true: expected false with model.head = "cosine"'):
        model_of(arch="ladder", encoder="mobilenetv3_small_050")
    with pytest.raises(SettingsError, match=f"model.output_stride = 8: expected 16, the patch of {VIT}"):
        model_of(output_stride=8)


def test_the_plan_counts_what_the_loss_keeps() -> None:
    few, many = (
        make_plan(
            recipe(
                data={"target_stride": 16},
                model={"arch": "linear", "encoder": VIT, "head": "cosine", "output_stride": 16},
                augment={"crop": [96, 96]},
            ),
            classes,
            {"a": 1},
            (96, 96),
        )
        for classes in (10, 10_010)
    )
    table = 10_000 * 64 * 4
    assert many.parameters - few.parameters == 10_000 * 64
    assert 2 * table <= many.activation_memory - few.activation_memory <= 2.2 * table  # unit vectors and a gradient
