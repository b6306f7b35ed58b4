"""The embedding head: on the sphere at every stride, one table, settings that fit, norms that are exchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import FormatError, SettingsError
from tests.train.conftest import recipe
from train import checkpoint
from train.config import Loss, Model, Optim, Recipe, Schedule, from_dict
from train.models import Embedded, EmbeddingModel, build_model
from train.models.embedding import ClassEmbeddings, on_sphere
from train.models.norms import groups_of, with_group_norm
from train.optim import build_optimizer, parameter_groups, set_rates
from train.plan import make_plan

ARCHS = [("deeplabv3plus", 16), ("segformer", 32), ("hrnet", 32), ("linear", 8)]


def config(arch: str = "linear", stride: int = 8, **changes: Any) -> Model:
    values = {"arch": arch, "encoder": "mobilenetv3_small_050", "output_stride": stride, "decoder_channels": 8}
    return Model.model_validate({**values, "head": "embedding", "embedding_dim": 5, **changes})


def embedding(chosen: Model, classes: int = 9, loss: Loss | None = None) -> EmbeddingModel:
    torch.manual_seed(0)
    model = build_model(chosen, classes, loss)
    assert isinstance(model, EmbeddingModel)
    return model


def images(h: int = 64, w: int = 96, batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 3, h, w), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("arch", "stride"), ARCHS)
def test_every_decoder_gives_unit_embeddings_and_all_parameters_learn(arch: str, stride: int) -> None:
    model = embedding(config(arch, stride)).train()
    out = model(images())
    assert isinstance(out, Embedded)
    assert out.pixels.shape == (2, 5, 64, 96)
    torch.testing.assert_close(out.pixels.norm(dim=1), torch.ones(2, 64, 96), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.table.norm(dim=1), torch.ones(9), rtol=0, atol=1e-6)
    assert out.tau == 0.05
    torch.manual_seed(2)
    (out.pixels * torch.randn_like(out.pixels)).sum().add((out.table * torch.randn(9, 5)).sum()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("renormalise", [True, False])
def test_normalised_at_the_stride_then_upsampled_then_renormalised_or_not(renormalise: bool) -> None:
    model = embedding(config(renormalise=renormalise)).eval()
    with torch.no_grad():
        raw = model.decoder(model.encoder(model.normalise(images()))).double()  # [2, 5, 8, 12]
        wanted = F.interpolate(raw / raw.norm(dim=1, keepdim=True), size=(64, 96), mode="bilinear")
        inside = float(wanted.norm(dim=1).min())
        assert inside < 0.9999
        wanted = wanted / wanted.norm(dim=1, keepdim=True) if renormalise else wanted
        torch.testing.assert_close(model(images()).pixels.double(), wanted, rtol=0, atol=2e-5)


def test_vectors_of_zeros_have_finite_gradients() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    out = on_sphere(x, 1)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 3))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    half = on_sphere(torch.full((1, 3), 4.0, dtype=torch.bfloat16), 1)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, torch.full((1, 3), 3**-0.5))


def test_under_bf16_embeddings_are_float32() -> None:
    model = embedding(config()).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images())
    assert out.pixels.dtype == out.table.dtype == torch.float32
    torch.testing.assert_close(out.pixels.norm(dim=1), torch.ones(2, 64, 96), rtol=0, atol=1e-4)


def test_the_table_starts_uniform() -> None:
    torch.manual_seed(0)
    weight = ClassEmbeddings(4000, 3).weight.detach()
    assert float(weight.min()) > -1
    assert float(weight.max()) < 1
    assert weight.std() == pytest.approx(3**-0.5, rel=0.02)


def test_names_of_a_dense_networks_state_are_those_of_before() -> None:
    plain = config().model_copy(update={"head": "dense"})
    keys = set(build_model(plain, 9).state_dict())
    assert {key.split(".")[0] for key in keys} == {"encoder", "decoder"}
    ours = set(embedding(config()).state_dict())
    assert ours - keys == {"classes.weight"}
    learnt = set(embedding(config(), loss=Loss(learn_tau=True, search_every=3)).state_dict())
    assert learnt - ours == {"classes.searched", "temperature.log_tau"}


def test_temperature_and_distance_are_the_losss() -> None:
    model = embedding(config(), loss=Loss(distance="plain", tau=0.3))
    assert (model.distance, model(images()).tau) == ("plain", 0.3)
    assert embedding(config()).distance == "squared"


def test_a_learnt_temperature_starts_where_it_is_told() -> None:
    tau = embedding(config(), loss=Loss(learn_tau=True, tau=0.3))(images()).tau
    assert isinstance(tau, Tensor)
    assert tau.requires_grad
    assert float(tau.detach()) == pytest.approx(0.3)


def test_a_class_table_that_has_grown_is_named(tmp_path: Any) -> None:
    small, large = embedding(config(), 4), embedding(config(), 6)
    saved = checkpoint.Checkpoint(small.state_dict(), {}, 0, {}, {}, "", [], {})
    with pytest.raises(FormatError, match=r"holds 4 class embeddings of 5 numbers, the run needs 6 of 5") as caught:
        checkpoint.fit(large, saved, tmp_path / "checkpoint.pt")
    assert "\n" not in str(caught.value)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"loss": {"k": 8}}, 'loss.k is set: expected model.head = "embedding"'),
        ({"loss": {"lvis_negatives": True}}, "loss.lvis_negatives is set"),
        ({"model": {"embedding_dim": 12}}, "model.embedding_dim is set"),
        ({"optim": {"embedding_power": 1.0}}, "optim.embedding_power is set"),
        ({"model": {"head": "embedding"}, "loss": {"kind": "kl"}}, "same gradients"),
        ({"model": {"head": "embedding", "embedding_dim": 1}}, "model.embedding_dim = 1: expected 2 or more"),
        (
            {"model": {"head": "embedding"}, "loss": {"lvis_negatives": True, "search_every": 2}},
            "loss.search_every = 2",
        ),
        ({"model": {"norm": "group", "sync_norm": True}}, "model.sync_norm = True"),
        ({"model": {"norm": "group", "freeze_norm": True}}, "model.freeze_norm = True"),
        ({"model": {"head": "embeding"}}, "model.head = 'embeding'"),
        ({"loss": {"tau": 0}}, "loss.tau = 0"),
    ],
)
def test_settings_that_do_not_fit_the_head_are_one_line(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        recipe(**sections)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_of_either_head_are_stored_with_their_own_settings() -> None:
    dense, own = recipe(), recipe(model={"head": "embedding"}, loss={"k": 3})
    assert from_dict(dense.to_dict()) == dense
    assert from_dict(own.to_dict()) == own
    assert "k" not in dense.to_dict()["loss"]
    assert own.to_dict()["loss"]["tau"] == 0.05
    old = dense.to_dict()  # of a run before there were heads
    for key in ("head", "norm", "sync_norm", "norm_momentum"):
        old["model"].pop(key)
    assert isinstance(from_dict(old), Recipe)
    assert from_dict(old).to_dict() == dense.to_dict()


# --- the optimiser -----------------------------------------------------------------------------------------------


def test_the_table_has_its_own_rate_momentum_and_power_and_no_decay() -> None:
    model = embedding(config(), loss=Loss(learn_tau=True))
    optim = Optim(lr=0.1, encoder_lr_scale=0.1, embedding_lr_scale=2.0, embedding_momentum=0.97, embedding_power=2.0)
    optimiser = build_optimizer(model, optim)
    groups = {group["name"]: group for group in optimiser.param_groups}
    assert list(groups) == ["encoder", "decoder", "embeddings", "temperature"]
    assert groups["embeddings"]["params"] == [model.classes.weight]
    assert [groups[name]["momentum"] for name in groups] == [0.9, 0.9, 0.97, 0.97]
    assert [groups[name]["weight_decay"] for name in groups] == [1e-4, 1e-4, 0.0, 0.0]
    for step in (0, 3, 9):
        left = 1 - step / 10
        common = set_rates(optimiser, step, 10, optim, Schedule(power=0.9))
        assert common == pytest.approx(0.1 * left**0.9)
        wanted = [0.01 * left**0.9, 0.1 * left**0.9, 0.2 * left**2, 0.002 * left**2]
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx(wanted)
    ids = sorted(id(p) for group in parameter_groups(model, optim) for p in group["params"])
    assert ids == sorted(id(p) for p in model.parameters())
    assert "momentum" not in parameter_groups(model, Optim(name="adamw"))[-1]


# --- norms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (16, 1), (8, 1), (24, 1), (40, 2), (88, 4), (13, 1)])
def test_groups_hold_16_channels_or_the_next_number_that_divides(channels: int, groups: int) -> None:
    assert groups_of(channels) == groups


@pytest.mark.parametrize(("arch", "stride"), ARCHS)
def test_group_norm_replaces_every_batch_norm_and_works_on_one_image(arch: str, stride: int) -> None:
    torch.manual_seed(0)
    batch = build_model(config(arch, stride, head="dense"), 3)
    torch.manual_seed(0)
    group = build_model(config(arch, stride, head="dense", norm="group"), 3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in group.encoder.modules())
    own = dict(group.named_parameters())
    assert own.keys() == dict(batch.named_parameters()).keys()
    assert all(torch.equal(own[name], p) for name, p in batch.named_parameters())  # scales and shifts carried over
    assert group.train()(images(batch=1)).shape == (1, 3, 64, 96)


def test_a_group_norm_normalises_16_channels_of_one_image_and_keeps_the_activation() -> None:
    model = build_model(Model(arch="linear", encoder="resnet18", output_stride=8, norm="group"), 3)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert all(norm.num_channels == 16 * norm.num_groups for norm in norms)
    tiny = build_model(config(head="dense", norm="group"), 3)  # its norms hold activations
    acts = [m.act for m in tiny.modules() if isinstance(m, nn.GroupNorm)]
    assert any(not isinstance(act, nn.Identity) for act in acts)
    norm = next(m for m in tiny.modules() if isinstance(m, nn.GroupNorm) and not isinstance(m.act, nn.Identity))
    x = torch.randn(2, norm.num_channels, 4, 4)
    wanted = norm.act(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))
    torch.testing.assert_close(norm(x), wanted)


def test_scale_shift_and_epsilon_of_a_norm_are_carried_over() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(32, eps=0.25))
    nn.init.normal_(net[0].weight)
    nn.init.normal_(net[0].bias)
    scale, shift = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    x = torch.randn(2, 32, 3, 5)
    wide = x.view(2, 2, 16 * 15)
    mean, variance = wide.mean(2, keepdim=True), wide.var(2, unbiased=False, keepdim=True)
    wanted = ((wide - mean) / (variance + 0.25).sqrt()).view(x.shape) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(with_group_norm(net)(x), wanted)


def test_momentum_is_the_encoders() -> None:
    model = build_model(config("deeplabv3plus", 16, head="dense", norm_momentum=0.01), 3)
    found = [
        {m.momentum for m in part.modules() if isinstance(m, nn.BatchNorm2d)} for part in (model.encoder, model.decoder)
    ]
    assert found == [{0.01}, {0.1}]


# --- the plan ----------------------------------------------------------------------------------------------------


def test_a_plan_does_not_grow_with_the_classes() -> None:
    sections: dict[str, Any] = {"model": {"head": "embedding"}, "augment": {"crop": [64, 96]}}
    plans = [make_plan(recipe(**sections), classes, {"a": 10}, (64, 96)) for classes in (19, 1284)]
    assert plans[1].memory - plans[0].memory < 4 * 8 * 12 * 1284  # the table, its gradient and what is kept of it
    dense = make_plan(recipe(augment={"crop": [64, 96]}), 1284, {"a": 10}, (64, 96))
    assert dense.activation_memory > 5 * plans[1].activation_memory
    assert np.isfinite(plans[0].multiply_adds)
