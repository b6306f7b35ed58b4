"""The recipes of ladder networks: the paper's settings, tables and epochs; each trains a step, small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
from timm.models.densenet import DenseNet
from torch import nn

from tests.train.conftest import Call
from train.checkpoint import load
from train.config import load_recipe, recipe_names
from train.mixture import of_source
from train.models.build import build_model
from train.run import open_run


class Row(NamedTuple):
    """What the paper prints of a recipe, and what of [model] is not that of LDN121."""

    encoder: str
    down: int
    up: int
    crop: int
    rescale: tuple[float, float]
    images: int
    epochs: int
    encoder_lr: float  # factor on the rate of pretrained weights; 1: random numbers
    scores: tuple[float, ...]  # mIoU
    settings: dict[str, Any] = {}  # noqa: RUF012


HALF, FULL = (0.25, 1.0), (0.5, 2.0)
AUG, VOC = 10_582, 1_464
WIDE = {"spp_width": 512}
ROWS = {
    "ldn121-64-4-cityscapes": Row("densenet121", 64, 4, 768, FULL, 2975, 300, 0.25, (79.0,)),
    "ldn121-64-4-cityscapes-dws": Row("densenet121", 64, 4, 768, FULL, 2975, 300, 0.25, (78.6,), {"depthwise": True}),
    "ldn161-64-4-cityscapes": Row("densenet161", 64, 4, 768, FULL, 2975, 300, 0.25, (79.1, 80.7), {"spp_width": 256}),
    "lrn18-32-4-cityscapes": Row("resnet18", 32, 4, 768, FULL, 2975, 300, 0.25, (76.1,), WIDE),
    "ldn121-32-4-cityscapes-half": Row("densenet121", 32, 4, 448, HALF, 2975, 300, 0.25, (76.6,)),
    "lrn18-32-4-cityscapes-half": Row("resnet18", 32, 4, 448, HALF, 2975, 300, 0.25, (70.9,), WIDE),
    "lddn121-8-4-cityscapes-half": Row(
        "densenet121", 8, 4, 448, HALF, 2975, 300, 0.25, (75.5,), {"dilated": 8, **WIDE}
    ),
    "lddn121-16-4-cityscapes-half": Row(
        "densenet121", 16, 4, 448, HALF, 2975, 300, 0.25, (75.8,), {"dilated": 16, **WIDE}
    ),
    "ddn121-8-cityscapes-half": Row("densenet121", 8, 8, 448, HALF, 2975, 300, 0.25, (72.5,), {"dilated": 8, **WIDE}),
    "dn121-32-cityscapes-half": Row("densenet121", 32, 32, 448, HALF, 2975, 300, 0.25, (66.2,), WIDE),
    "ldn121-64-4-s4-cityscapes-half": Row(
        "densenet121", 64, 4, 448, HALF, 2975, 300, 0.25, (76.0, 44.0, 59.5), {"split_block": 4}
    ),
    "ldn121-64-4-s4-vistas": Row(
        "densenet121", 64, 4, 448, (0.157, 0.628), 18_000, 300, 0.25, (73.0, 68.7, 64.7), {"split_block": 4}
    ),
    "ldn121-32-4-camvid": Row("densenet121", 32, 4, 512, FULL, 367, 400, 0.25, (77.3,)),
    "ldn121-32-4-camvid-random": Row("densenet121", 32, 4, 512, FULL, 367, 800, 1.0, (70.9,)),
    "ldn121-16-2-camvid-half": Row("densenet121", 16, 2, 448, FULL, 367, 800, 1.0, (69.5,)),
    "ldn121-16-2-camvid-half-imagenet": Row("densenet121", 16, 2, 448, FULL, 367, 400, 0.25, (75.8,)),
    "ldn121-32-4-voc": Row("densenet121", 32, 4, 512, FULL, VOC, 100, 0.125, (76.4,)),
    "ldn161-32-4-voc-aug": Row("densenet161", 32, 4, 512, FULL, AUG, 100, 0.125, (), {"spp_width": 256}),
    "ldn161-32-4-voc": Row("densenet161", 32, 4, 512, FULL, VOC, 100, 0.125, (80.4, 81.9, 78.6), {"spp_width": 256}),
    "ldn169-32-4-voc-aug": Row("densenet169", 32, 4, 512, FULL, AUG, 100, 0.125, (), WIDE),
    "ldn169-32-4-voc": Row("densenet169", 32, 4, 512, FULL, VOC, 100, 0.125, (80.5,), WIDE),
}
MIXED = {
    "ldn121-64-4-s4-cityscapes-vistas": Row(
        "densenet121", 64, 4, 448, HALF, 20_975, 300, 0.25, (76.2, 73.9, 68.7), {"split_block": 4}
    ),
    "ldn169-64-4-rob": Row("densenet169", 64, 4, 768, FULL, 2 * 3_745, 300, 0.25, (), WIDE),  # half of them rooms
}
ALL = ROWS | MIXED
SMALL = (
    "loop.steps=1", "loop.batch=2", "loop.image_every=0", "data.workers=0", "augment.crop=[64,64]",
    "model.weights=none",
)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's DenseNets have few and narrow layers."""
    real = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if name.startswith("densenet"):
            return DenseNet(growth_rate=8, block_config=(2, 2, 4, 2))
        return real(name, pretrained=pretrained, **options)

    monkeypatch.setattr("train.models.ladder.densenet.timm.create_model", create_model)


def train(call: Call, shards: Path | list[str], name: str, out: Path, *more: object) -> str:
    """One small step of a recipe; what was said."""
    given = [word for place in ([shards] if isinstance(shards, Path) else shards) for word in ("--shards", place)]
    encoder = ("model.encoder=mobilenetv3_small_050",) if name.startswith("lrn") else ()
    settings = [word for setting in (*SMALL, *encoder) for word in ("--set", setting)]
    words = (*given, "--recipe", name, "--out", out, "--device", "cpu", *settings, *more)
    code, said, err = call("seg-train", *words)
    assert code == 0, err
    return said


def test_the_table_is_of_all_of_them() -> None:
    assert sorted(ALL) == [name for name in recipe_names() if load_recipe(name).model.arch == "ladder"]


@pytest.mark.parametrize("name", ALL)
def test_settings_are_the_papers(name: str) -> None:
    row, recipe = ALL[name], load_recipe(name)
    model, optim, schedule, loop = recipe.model, recipe.optim, recipe.schedule, recipe.loop
    assert (model.arch, model.encoder, model.down, model.up) == ("ladder", row.encoder, row.down, row.up)
    usual = {
        "spp": "paper",
        "spp_width": "paper",
        "depthwise": False,
        "dilated": None,
        "auxiliary": True,
        "split_block": 3,
    }
    assert {key: getattr(model, key) for key in usual} == {**usual, **row.settings}
    assert model.segments == ("unit+stem+td+tu" if row.encoder.startswith("densenet") else "none")
    assert model.weights == ("none" if row.encoder_lr == 1.0 else "timm")
    assert (recipe.augment.crop, recipe.augment.rescale, recipe.augment.flip) == ((row.crop,) * 2, row.rescale, True)
    assert (recipe.data.mode, recipe.data.labels, recipe.data.split) == ("rescale", "nearest", "train")
    assert (recipe.loss.aux_weight, recipe.loss.kind) == (0.4, "cross-entropy")
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay) == ("amsgrad", 4e-4, (0.9, 0.99), 1e-4)
    assert optim.encoder_lr_scale == row.encoder_lr
    assert (schedule.name, schedule.unit, schedule.min_lr) == ("cosine", "epoch", 1e-6)
    assert loop.batch == 16
    assert abs(loop.steps * 16 - row.epochs * row.images) < 16
    assert (loop.accumulate, recipe.mixture is None) == ((2, False) if name in MIXED else (1, True))
    assert recipe.eval.input_scale == {FULL: "1", HALF: "1/2"}.get(row.rescale, "1/3")
    splits = {"camvid": "test", "kitti": "train"}
    assert [(e.value, e.metric) for e in recipe.expected] == [(value, "miou") for value in row.scores]
    assert all(e.split == splits.get(e.dataset, "val") for e in recipe.expected)
    assert not row.scores or str(row.scores[0]) in recipe.description


@pytest.mark.parametrize("name", ROWS)
def test_each_trains_a_step(call: Call, shard_set: Path, small: None, tmp_path: Path, name: str) -> None:
    assert "done: step 1, loss " in train(call, shard_set, name, tmp_path / "run")


@pytest.mark.parametrize("name", MIXED)
def test_each_mixture_trains_a_step_with_the_shard_sets_of_its_comment(
    call: Call, shard_set: Path, small: None, tmp_path: Path, name: str
) -> None:
    named = re.findall(r"--shards ([a-z-]+)=(\S+)", _text(name))
    assert [source for source, _ in named] == [source.name for source in load_recipe(name).mixture.sources]
    said = train(
        call, [f"{source}={shard_set}" for source, _ in named], name, tmp_path / "run", "--set", "loop.batch=4"
    )
    assert "done: step 1, loss " in said


def test_sources_of_cityscapes_and_vistas_are_their_own_recipes() -> None:
    """Each is drawn by its size and rescaled as where it is alone."""
    names = ("ldn121-64-4-s4-cityscapes-half", "ldn121-64-4-s4-vistas")
    recipe = load_recipe("ldn121-64-4-s4-cityscapes-vistas")
    alone = [load_recipe(name) for name in names]
    for source, other, place in zip(recipe.mixture.sources, alone, (0, 1), strict=True):
        assert of_source(recipe, place).augment == other.augment
        assert (source.split, source.labels) == ("train", "pixel")
    shares = [source.share for source in recipe.mixture.sources]
    assert shares[1] / shares[0] == pytest.approx(18_000 / 2_975, rel=0.01)
    assert recipe.model == alone[0].model == alone[1].model


def test_the_challenges_splits_and_who_is_seen_how_often() -> None:
    """Section 5.4: Cityscapes train+val, KITTI train, WildDash val, ScanNet train+val; half of the images are rooms."""
    recipe = load_recipe("ldn169-64-4-rob")
    sources = {source.name: source for source in recipe.mixture.sources}
    assert {name: source.split for name, source in sources.items()} == {
        "cityscapes": "train", "cityscapes-val": "val", "kitti": "train", "wilddash": "val",
        "scannet": "train", "scannet-val": "val",
    }  # fmt: skip
    total = sum(source.share for source in sources.values())
    seen = {name: recipe.loop.steps * 16 * source.share / total for name, source in sources.items()}
    assert seen["scannet"] + seen["scannet-val"] == pytest.approx(recipe.loop.steps * 8)
    images = {"cityscapes": 2975, "cityscapes-val": 500, "kitti": 200, "wilddash": 70, "scannet": 19_466}
    passes = {name: round(seen[name] / count) for name, count in images.items()}
    assert passes == {"cityscapes": 295, "cityscapes-val": 281, "kitti": 351, "wilddash": 502, "scannet": 45}
    assert round(seen["scannet-val"] / 5_436) == 45


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ldn121-64-4-cityscapes", ["model.down=32"]),
        ("ldn121-64-4-cityscapes", ["model.down=128"]),
        ("ldn121-64-4-cityscapes", ["model.spp=none"]),
        ("ldn121-64-4-cityscapes", ["model.spp=square"]),
        ("ldn121-64-4-cityscapes", ["model.auxiliary=false"]),
        ("ldn121-64-4-cityscapes", ["augment.rescale=[1.0,1.0]"]),
        ("lrn18-32-4-cityscapes", ["model.encoder=resnet50"]),
        ("lrn18-32-4-cityscapes-half", ["model.encoder=resnet101"]),
        ("lrn18-32-4-cityscapes-half", ["model.encoder=dpn68", "model.spp_width=256"]),
        ("ldn121-32-4-cityscapes-half", ["model.down=64"]),
        ("ldn121-32-4-cityscapes-half", ["model.up=2"]),
        ("ldn121-32-4-cityscapes-half", ["model.encoder=densenet169", "model.spp_width=512"]),
        ("ldn161-32-4-voc-aug", ["model.encoder=densenet121", "model.spp_width=paper"]),
        ("ldn161-32-4-voc", ["optim.lr=0.00005", "optim.encoder_lr_scale=1"]),
    ],
)
def test_rows_that_a_comment_reaches_by_a_setting(name: str, settings: list[str]) -> None:
    """Each --set of a recipe's comment is one that the recipe takes."""
    text = " ".join(line.removeprefix("# ") for line in _text(name).splitlines())
    for setting in settings:
        key, _, value = setting.partition("=")
        assert setting in text or value in text.partition(key)[2], setting
    assert load_recipe(name, settings).model.arch == "ladder"


@pytest.mark.parametrize("encoder", ["ldn161", "ldn169"])
def test_two_stages_on_voc(call: Call, shard_set: Path, small: None, tmp_path: Path, encoder: str) -> None:
    first, second = f"{encoder}-32-4-voc-aug", f"{encoder}-32-4-voc"
    assert f"--recipe {second} --start" in _text(second)
    train(call, shard_set, first, tmp_path / "first")
    said = train(call, shard_set, second, tmp_path / "second", "--start", tmp_path / "first")
    assert f"starting from the network of {tmp_path / 'first' / 'checkpoint.pt'}, step 1: " in said
    assert "anew" not in said
    assert json.loads((tmp_path / "second" / "run.json").read_text())["start"]["path"].endswith("first/checkpoint.pt")
    assert open_run(tmp_path / "second").recipe.name == second
    assert load(tmp_path / "second" / "checkpoint.pt").step == 1


@pytest.mark.parametrize("name", ["ldn121-64-4-cityscapes", "ldn121-16-2-camvid-half", "ldn121-32-4-voc"])
def test_what_they_say_of_the_input(name: str) -> None:
    """Cityscapes has the release's mean and deviation (0..255: 73.45 83.21 72.78, 45.20 46.37 45.49)."""
    config = load_recipe(name, ["model.weights=none"]).model
    mean = build_model(config, 11).mean.flatten().tolist()
    expected = [73.45, 83.21, 72.78] if "cityscapes" in name else [255 * x for x in (0.485, 0.456, 0.406)]
    assert mean == pytest.approx(expected, abs=0.05)
    if config.std is not None:
        assert [255 * x for x in config.std] == pytest.approx([45.20, 46.37, 45.49], abs=0.05)


def _text(name: str) -> str:
    """A recipe's comment."""
    path = Path(__file__).parents[2] / "train" / "recipes" / f"{name}.toml"
    return path.read_text(encoding="utf-8").partition("\ndescription")[0]
