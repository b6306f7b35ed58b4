"""Networks: sizes, geometry, weights that land where timm puts them, errors people can act on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.errors import SettingsError, UserError
from tests.real import real_data
from train.config import Model
from train.models import SegmentationModel, build_model

TINY = [
    Model(arch="deeplabv3plus", encoder="mobilenetv3_small_050", decoder_channels=8),
    Model(arch="deeplabv3plus", encoder="tf_efficientnet_lite0", output_stride=8, decoder_channels=8),
    Model(arch="segformer", encoder="mit_b0", decoder_channels=8, output_stride=32),
    Model(arch="segformer", encoder="convnext_atto", decoder_channels=8, output_stride=32),
    Model(arch="hrnet", encoder="hrnet_w18_small", decoder_channels=8, output_stride=32),
    Model(arch="hrnet", encoder="mobilenetv3_small_050", decoder_channels=8, output_stride=32),
    Model(arch="linear", encoder="resnet18", output_stride=8),
    Model(arch="linear", encoder="mobilenetv3_small_050", output_stride=32),
]


def ident(config: object) -> str:
    return f"{config.arch}-{config.encoder}" if isinstance(config, Model) else str(config)


def images(h: int, w: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, 3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("config", TINY, ids=ident)
def test_logits_lie_on_the_grid_of_any_input_and_every_parameter_learns(config: Model) -> None:
    model = build_model(config, 5)
    assert model.eval()(images(33, 70, 1)).shape == (1, 5, 33, 70)
    logits = model.train()(images(64, 40))
    assert logits.shape == (2, 5, 64, 40)
    logits.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]  # DistributedDataParallel would wait for it
    ids = {id(p) for p in model.encoder_parameters()} | {id(p) for p in model.decoder_parameters()}
    assert ids == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("config", "stride"), [(TINY[0], 4), (TINY[2], 4), (TINY[4], 4), (TINY[6], 8), (TINY[7], 32)], ids=ident
)
def test_coarse_logits_have_the_documented_stride(config: Model, stride: int) -> None:
    model = build_model(config, 5).eval()
    assert model.coarse(images(64, 128)).shape == (2, 5, 64 // stride, 128 // stride)


def test_hrnet_keeps_the_four_streams_and_not_the_classifiers_maps() -> None:
    model = build_model(TINY[4], 5)
    first = model.decoder[1].mix[0]
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 16 + 32 + 64 + 128


def test_hrnet_w48_has_the_papers_720_channels() -> None:
    with torch.device("meta"):
        model = build_model(Model(arch="hrnet", encoder="hrnet_w48", decoder_channels=720, output_stride=32), 19)
    assert model.decoder[1].mix[0].in_channels == 720


def test_padding_is_cropped_back_and_upsampling_keeps_pixel_centres() -> None:
    """A network of no layers: its output is the padded, normalised, pooled and upsampled input itself."""
    net = SegmentationModel(
        encoder=nn.AvgPool2d(4), decoder=nn.Identity(), mean=(0, 0, 0), std=(1 / 255,) * 3, multiple=8
    )
    ramp = torch.arange(37.0).expand(1, 3, 35, 37)
    inner = net(ramp)[..., 4:28, 4:28]
    assert inner.shape[-2:] == (24, 24)
    torch.testing.assert_close(inner, ramp[..., 4:28, 4:28])  # a linear ramp stays where it was


def test_logits_are_float32_before_they_are_upsampled() -> None:
    """On CUDA the gradient of a bilinear resize is summed in the type of its input: bfloat16 would lose most of it."""
    model = build_model(Model(arch="linear", encoder="mobilenetv3_small_050", output_stride=8), 3).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.coarse(torch.zeros(2, 3, 64, 64)).dtype == torch.bfloat16
        assert model(torch.zeros(2, 3, 64, 64)).dtype == torch.float32


def test_the_hubs_retries_are_not_printed() -> None:
    build_model(Model(arch="linear", encoder="mobilenetv3_small_050", output_stride=8), 3)
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_deeplab_upsamples_inside_by_pixel_centres_too() -> None:
    ups = [m for m in build_model(TINY[0], 5).modules() if isinstance(m, nn.Upsample)]
    assert ups
    assert not any(m.align_corners for m in ups)


def test_bytes_and_floats_give_the_same_logits() -> None:
    model = build_model(TINY[0], 5).eval()
    torch.testing.assert_close(model(images(32, 32)), model(images(32, 32).float()))


def test_statistics_are_the_encoders_unless_the_recipe_has_its_own() -> None:
    model = build_model(TINY[1], 5)
    torch.testing.assert_close(model.mean.flatten(), torch.full((3,), 127.5))  # EfficientNet-Lite's
    own = build_model(TINY[0].model_copy(update={"mean": (0.0, 0.5, 1.0), "std": (1.0, 0.5, 0.25)}), 5)
    normal = own.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    torch.testing.assert_close(normal.flatten(), torch.tensor([1.0, 1.0, 0.0]))
    assert not any("mean" in key and "running" not in key for key in own.state_dict())


def test_frozen_norms_stay_in_evaluation_mode_and_keep_their_statistics() -> None:
    model = build_model(TINY[0].model_copy(update={"freeze_norm": True}), 5).train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items() if "running" in k}
    model(images(64, 64))
    assert all(torch.equal(v, model.encoder.state_dict()[k]) for k, v in before.items())
    assert any(m.training for m in model.decoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_batch_of_one_is_refused_where_its_norm_cannot_train() -> None:
    model = build_model(TINY[0], 5).train()
    with pytest.raises(SettingsError, match=r"training batch of 1.*at least 2.*loop\.batch"):
        model(images(32, 32, batch=1))
    assert model.eval()(images(32, 32, batch=1)).shape[0] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "resnet500"}, "did you mean 'resnet5"),
        ({"encoder": "mit_b2", "arch": "hrnet"}, "no encoder named 'mit_b2'"),
        ({"encoder": "vgg11"}, "does not fit model.arch"),
        ({"weights": "/nowhere/w.safetensors"}, "not found"),
        ({"weights": "/nowhere/w.pth"}, "expected"),
    ],
)
def test_what_cannot_be_built_says_why_in_one_line(changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(TINY[0].model_copy(update=changes), 5)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole timm classifier's weights, random."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    save_file(dict(timm.create_model("mobilenetv3_small_050").state_dict()), path)
    return path


@pytest.mark.parametrize("arch", ["deeplabv3plus", "segformer", "hrnet", "linear"])
def test_features_equal_plain_timms_with_the_same_weights(arch: str, weights: Path) -> None:
    config = Model.model_validate(
        {"arch": arch, "encoder": "mobilenetv3_small_050", "weights": str(weights), "output_stride": 16}
    )
    model = build_model(config, 5).eval()
    classifier = timm.create_model("mobilenetv3_small_050", features_only=True)
    whole = timm.create_model("mobilenetv3_small_050")
    whole.load_state_dict(load_file(weights), strict=True)
    classifier.load_state_dict({k: v for k, v in whole.state_dict().items() if k in classifier.state_dict()})
    inputs = model.normalise(images(64, 64))
    ours, theirs = model.encoder(inputs), classifier.eval()(inputs)
    strided = [m for m in ours if m.shape[-1] in (32, 16, 8, 4)]
    assert len(strided) >= 3
    torch.testing.assert_close(strided[0], theirs[0])
    torch.testing.assert_close(strided[1], theirs[1])
    torch.testing.assert_close(strided[2], theirs[2])


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto", "hrnet_w18_small"])
def test_weights_load_where_timm_flattens_names(encoder: str, tmp_path: Path) -> None:
    whole = timm.create_model(encoder)
    save_file(dict(whole.state_dict()), tmp_path / "w.safetensors")
    arch = "hrnet" if encoder.startswith("hrnet") else "linear"
    config = Model.model_validate(
        {"arch": arch, "encoder": encoder, "weights": str(tmp_path / "w.safetensors"), "output_stride": 32}
    )
    model = build_model(config, 3)
    own = {k.removeprefix("model.").replace(".", "_"): v for k, v in model.encoder.state_dict().items()}
    shared = [(k, v) for k, v in whole.state_dict().items() if k.replace(".", "_") in own]
    assert len(shared) == len(own)
    assert all(torch.equal(own[k.replace(".", "_")], v) for k, v in shared)


@pytest.mark.parametrize(("down", "dilated"), [(32, None), (16, None), (16, 16)])
def test_weights_load_into_a_ladder_over_any_encoder(down: int, dilated: int | None, tmp_path: Path) -> None:
    whole = timm.create_model("resnet18")
    save_file(dict(whole.state_dict()), tmp_path / "w.safetensors")
    settings = {"encoder": "resnet18", "weights": str(tmp_path / "w.safetensors"), "down": down, "dilated": dilated}
    own = build_model(Model.model_validate({"arch": "ladder", **settings}), 3).encoder.state_dict()
    given = whole.state_dict()
    assert len(own) > 60
    assert all(torch.equal(value, given[key.removeprefix("maps.model.")]) for key, value in own.items())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.pop("conv_stem.weight"), "lacks model.conv_stem.weight"),
        (lambda d: d.update({"extra.weight": torch.zeros(1)}), "has unknown extra.weight"),
        (lambda d: d.update({"bn1.weight": torch.zeros(3)}), "has other shapes for model.bn1.weight"),
        (lambda d: d.clear() or d.update({"x": torch.zeros(1)}), "and "),
    ],
)
def test_weights_that_do_not_fit_name_the_first_keys(spoil: object, said: str, weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    assert callable(spoil)
    spoil(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as caught:
        build_model(TINY[0].model_copy(update={"weights": str(tmp_path / "bad.safetensors")}), 5)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04not a tensor file")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build_model(TINY[0].model_copy(update={"weights": str(tmp_path / "w.safetensors")}), 5)


def test_real_efficientnet_lite_weights_give_plain_timms_features() -> None:
    path = next(real_data("weights").glob("efficientnet_lite0*.safetensors"))
    config = Model(encoder="tf_efficientnet_lite0", weights=str(path), decoder_channels=8)
    model = build_model(config, 5).eval()
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(path), strict=True)
    inputs = model.normalise(images(64, 64))
    stem = whole.bn1(whole.conv_stem(inputs))
    fine = whole.blocks[1](whole.blocks[0](stem))  # stride 4
    torch.testing.assert_close(model.encoder(inputs)[2], fine)
