"""Bad input as a user of ladders meets it, through the commands: what works, and what is one line and exit code 2.

The parts have their own tests: sizes, aspect ratios and batches of one in test_ladder_model.py and
test_ladder_context.py, void cells in test_loss_auxiliary.py, weights in test_models.py and test_start.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.densenet import DenseNet
from torch import nn

import shards
from tests.train.conftest import Call
from tests.train.shardset import Raw, scene, write
from train.checkpoint import load
from train.runlog import read_log

TOML = """
description = "for tests"
[data]
workers = 0
[augment]
crop = [64, 64]
[model]
arch = "ladder"
encoder = "densenet121"
[loop]
steps = 2
batch = 2
image_every = 0
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's DenseNet-121 has few and narrow layers."""
    real = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        made = DenseNet(growth_rate=8, block_config=(2, 2, 4, 2))
        return made if name == "densenet121" else real(name, pretrained=pretrained, **options)

    monkeypatch.setattr("train.models.ladder.densenet.timm.create_model", create_model)


def train(call: Call, folder: Path, shards_at: Path, *settings: str, out: str = "run") -> tuple[int, str, str]:
    (folder / "ladder.toml").write_text(TOML)
    words = [word for setting in settings for word in ("--set", setting)]
    where = ("--shards", shards_at, "--recipe", folder / "ladder.toml", "--out", folder / out)
    return call("seg-train", *where, *words)


def refused(answer: tuple[int, str, str]) -> str:
    """The line that was said; nothing else was."""
    code, _, err = answer
    assert code == 2, err
    lines = [line for line in err.splitlines() if "\r" not in line and line]
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize("size", [(33, 45), (32, 256), (256, 32), (70, 91)])
def test_any_size_trains_and_is_predicted_at_its_own(call: Call, tmp_path: Path, size: tuple[int, int]) -> None:
    made = write(tmp_path / "set", {"train": [scene(i, size) for i in range(2)]})
    code, _, err = train(call, tmp_path, made, "augment.crop=none")
    assert code == 0, err
    assert all(np.isfinite(line["loss"]) for line in read_log(tmp_path / "run") if "loss" in line)
    Image.fromarray(scene(3, size).image).save(tmp_path / "a.png")
    code, _, err = call("seg-predict", "--run", tmp_path / "run", "--out", tmp_path / "out", tmp_path / "a.png")
    assert code == 0, err
    with Image.open(tmp_path / "out" / "a.label.png") as label:
        assert (label.height, label.width) == size


def test_a_batch_of_one_is_refused_where_the_pyramid_has_one_cell(call: Call, tmp_path: Path) -> None:
    square = write(tmp_path / "square", {"train": [scene(0, (64, 64))]})
    said = refused(train(call, tmp_path, square, "loop.batch=1"))
    assert "found a training batch of 1 image of 64 x 64" in said
    assert "expected at least 2 images" in said
    wide = write(tmp_path / "wide", {"train": [scene(0, (64, 128))]})
    code, _, err = train(call, tmp_path, wide, "loop.batch=1", "augment.crop=[64,128]", out="wide-run")
    assert code == 0, err


def test_crops_of_void_alone_teach_nothing_and_break_nothing(call: Call, tmp_path: Path) -> None:
    scenes = [scene(i, (64, 64)) for i in range(2)]
    blank = [Raw(raw.key, raw.image, np.full((64, 64), shards.IGNORE, np.uint16)) for raw in scenes]
    made = write(tmp_path / "set", {"train": blank})
    code, out, err = train(call, tmp_path, made, "optim.weight_decay=0", "optim.name=amsgrad", "optim.lr=0.1")
    assert code == 0, err
    assert "no labelled cell seen" in out
    lines = [line for line in read_log(tmp_path / "run") if "summary" not in line]
    assert [(line["loss"], line["grad_norm"]) for line in lines] == [(None, 0.0)] * 2
    saved = load(tmp_path / "run" / "checkpoint.pt").model
    code, _, err = train(call, tmp_path, made, "optim.weight_decay=0", "loop.steps=1", "optim.lr=1", out="again")
    assert code == 0, err
    for name, tensor in load(tmp_path / "again" / "checkpoint.pt").model.items():
        assert tensor.isfinite().all()
        if "running" not in name and "batches" not in name:
            assert torch.equal(tensor, saved[name]), name


def test_weights_of_another_architecture_are_one_line(call: Call, shard_set: Path, tmp_path: Path) -> None:
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "other.safetensors")
    said = refused(train(call, tmp_path, shard_set, f"model.weights={tmp_path / 'other.safetensors'}"))
    assert "do not fit encoder densenet121: the file lacks" in said
    assert train(call, tmp_path, shard_set, "loop.steps=1", "model.up=8", out="first")[0] == 0
    (tmp_path / "start.toml").write_text(TOML)
    words = ("seg-train", "--shards", shard_set, "--recipe", tmp_path / "start.toml", "--out", tmp_path / "second")
    said = refused(call(*words, "--start", tmp_path / "first"))
    assert "weights of another architecture: decoder.steps.3." in said
    assert "expected [" in said
    assert "model.up was 8, is 4" in said
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.segments=5x5"], "model.segments = '5x5': expected 'none', '3x3', 'cat-1x1'"),
        (["model.segments=unit", "model.encoder=mobilenetv3_small_050", "model.down=32"], 'expected "none", as mobile'),
        (["model.segments=unit", "model.arch=linear"], 'expected model.arch = "ladder"'),
    ],
)
def test_segments_that_name_no_layer_are_one_line(
    call: Call, shard_set: Path, tmp_path: Path, settings: list[str], said: str
) -> None:
    assert said in refused(train(call, tmp_path, shard_set, *settings))
    assert not (tmp_path / "run").exists()
