"""Shard sets and recipes that the trainer's tests share; everything is tiny."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.shardset import scene, write
from train import cli, cli_embeddings, cli_eval, cli_export, cli_grouping, cli_ladder, cli_norms, cli_predict
from train.config import Recipe, from_dict

MAINS: dict[str, Callable[[], None]] = {
    "seg-train": cli.main,
    "seg-eval": cli_eval.main,
    "seg-predict": cli_predict.main,
    "seg-embeddings": cli_embeddings.main,
    "seg-norms": cli_norms.main,
    "seg-export": cli_export.main,
    "seg-ladder": cli_ladder.main,
    "seg-grouping": cli_grouping.main,
}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """call("seg-train", ...) -> exit code, stdout, stderr; in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as ended:
            MAINS[str(words[0])]()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven training and five validation scenes of 64 x 96 at scales 1, 1/2, 1/4, box-filtered, with instances."""
    return write(
        tmp_path_factory.mktemp("shards") / "scenes",
        {"train": [scene(i) for i in range(11)], "val": [scene(i) for i in range(100, 105)]},
        protocol={"instance_sizes": {"car": 200.0, "person": 100.0}},
    )


def recipe(**sections: Any) -> Recipe:
    """A recipe that trains a linear head on a small random encoder in a few steps; `sections` replace its keys."""
    values: dict[str, Any] = {
        "name": "tiny",
        "description": "for tests",
        "data": {"scales": ["1/2"], "workers": 0},
        "model": {"arch": "linear", "encoder": "mobilenetv3_small_050", "output_stride": 8, "dropout": 0.2},
        "optim": {"lr": 0.02},
        "loop": {"steps": 4, "batch": 4, "image_every": 0, "checkpoint_every": 0},
        "eval": {"input_scale": "1/2"},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return from_dict(values)
