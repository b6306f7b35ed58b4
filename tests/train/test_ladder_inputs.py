"""Ladders on odd inputs, and what their settings come to: any size, padding, residuals, how much is computed twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.densenet import DenseNet
from torch import nn

from tests.train.test_ladder_model import ladder, tiny, tiny_model
from tests.train.test_recompute import Convolutions
from train.config import Model
from train.models import build_model
from train.models.ladder import LadderDenseNet
from train.models.ladder.units import SEGMENTS, halved

__all__ = ["tiny"]  # the fixture


@pytest.mark.parametrize(
    "config",
    [ladder(down=128), ladder(down=16, up=2), ladder(down=8, up=8, dilated=8), ladder(encoder="resnet18", down=32)],
    ids=["128->4", "16->2", "dilated 8", "resnet18"],
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(h=st.integers(32, 80), w=st.integers(32, 80))
def test_every_network_takes_every_size(tiny: DenseNet, config: Model, h: int, w: int) -> None:
    """Training and evaluation; auxiliary logits lie on the grid of the padded input."""
    model = build_model(config, 3)
    images = torch.randint(256, (2, 3, h, w), dtype=torch.uint8)
    out = model.train()(images)
    assert out.logits.shape == (2, 3, h, w)
    padded = [-(-side // config.down) * config.down for side in (h, w)]
    strides = [config.down // 2**i for i in range(len(out.steps))]
    assert [step.shape[2:] for step in out.steps] == [(padded[0] // k, padded[1] // k) for k in strides]
    assert [pool.shape[2] for pool in out.pools] == [8, 4, 2, 1]
    with torch.no_grad():
        logits = model.eval()(images[:1])
    assert logits.shape == (1, 3, h, w)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [(32, 256), (256, 32)])
def test_padding_is_the_mean_colour(tiny: DenseNet, size: tuple[int, int]) -> None:
    """A ratio of 1:8 that needs padding below and right: as if the picture itself went on in its mean colour."""
    model = tiny_model(LadderDenseNet("tiny", False, 64, 8), 64).eval()
    images = torch.rand(1, 3, *size) * 255
    whole = torch.full((1, 3, 64 if size[0] == 32 else 256, 256 if size[1] == 256 else 64), 0.5 * 255)
    whole[..., : size[0], : size[1]] = images
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(whole)[..., : size[0], : size[1]])


def test_dropout_is_of_training_alone(tiny: DenseNet) -> None:
    images, net = torch.randn(2, 3, 64, 64), LadderDenseNet("tiny", False, 32, 4, dropout=0.5).eval()
    with torch.no_grad():
        plain = LadderDenseNet("tiny", False, 32, 4).eval()(images)
        assert all(torch.equal(torch.cat(a, 1), torch.cat(b, 1)) for a, b in zip(net(images), plain, strict=True))
        maps = torch.cat(net.train()(images)[-1], 1)
    assert 0.4 < (maps[:, -8:] == 0).float().mean() < 0.6  # of the last unit's own


def test_settings_of_the_steps_reach_them() -> None:
    with torch.device("meta"):
        plain = build_model(ladder(), 3).decoder.steps
        bare = build_model(ladder(ladder_residual=False), 3).decoder.steps
        thin = build_model(ladder(depthwise=True), 3).decoder.steps
    assert [step.across is None for step in plain] == [False] * 4
    assert [step.across is None for step in bare] == [True] * 4
    assert [hasattr(step.blend, "depthwise") for step in plain] == [False] * 4
    assert [step.blend.depthwise.groups for step in thin] == [256, 256, 256, 128]
    assert [step.out for step in plain] == [256, 256, 128, 128]


def test_a_segment_holds_little_and_computes_no_convolution_twice_for_nothing(tiny: DenseNet) -> None:
    """Of a unit the 1x1, of a step up what stands before its 3x3, of transitions and heads none; the stem's."""
    chosen, images = SEGMENTS["unit+stem+td+tu"], torch.rand(2, 3, 64, 64) * 255
    counts: list[Counter[int]] = []
    for segments in (frozenset(), chosen):
        model = tiny_model(LadderDenseNet("tiny", False, 64, 8, segments=segments), 64, segments=segments).train()
        with Convolutions() as convolutions:
            out = model(images)
            sum(part.square().mean() for part in (out.logits, *out.steps, *out.pools)).backward()
        counts.append(Counter(convolutions.seen))
    units, steps = 10, 3
    residuals = 2  # of three steps, those whose widths differ
    assert [step.across.__class__.__name__ for step in model.decoder.steps].count("NormActConv") == residuals
    narrow = sum(not isinstance(step.narrow, nn.Identity) for step in model.decoder.steps)
    assert counts[1] - counts[0] == {7: 1, 1: units + steps + residuals + narrow}  # by kernel


def test_halved_is_torchs_average_and_its_gradient() -> None:
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    own, expected = halved(maps), F.avg_pool2d(maps, 2, 2)
    assert torch.equal(own, expected)
    (other,) = torch.autograd.grad((expected * expected.exp()).sum(), maps)
    (found,) = torch.autograd.grad((own * own.exp()).sum(), maps)
    assert torch.equal(found, other)
