"""The commands as people call them: help, lists, one-line errors, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tests.train.conftest import MAINS, Call
from tests.train.shardset import scene, write
from train.config import recipe_names

RECIPE = """
description = "for tests"
[data]
scales = ["1/2"]
workers = 0
[model]
arch = "linear"
encoder = "mobilenetv3_small_050"
output_stride = 8
[loop]
steps = 3
batch = 2
image_every = 0
[eval]
input_scale = "1/2"
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_entry_points_are_those_of_the_project() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    for name, main in MAINS.items():
        module, _, function = scripts[name].partition(":")
        assert getattr(sys.modules[module], function) is main


@pytest.mark.parametrize("name", MAINS)
def test_help_has_an_example_and_every_option_a_text(call: Call, name: str) -> None:
    code, out, _ = call(name, "--help")
    assert code == 0
    assert "Example:" in out
    assert name in out.partition("Example:")[2]
    commands = re.findall(
        r"^  (\w+)", out.partition("Commands:")[2].partition("Example:")[0], re.M
    )  # of a command that has some
    for page in [call(name, command, "--help")[1] for command in commands] or [out]:
        assert "Example:" in page
        assert "--quiet" in page


def test_help_does_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['x', '--help']; import {0}; {0}.main()"
    for module in ("train.cli", "train.cli_eval", "train.cli_predict"):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_list_names_every_recipe_first(call: Call) -> None:
    code, out, _ = call("seg-train", "--list")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 1 for line in lines)


def test_train_twice_resume_and_score(call: Call, shard_set: Path, recipe_file: Path, tmp_path: Path) -> None:
    common = ("seg-train", "--shards", shard_set, "--recipe", recipe_file, "--out", tmp_path / "run", "--device", "cpu")
    code, out, _ = call(*common)
    assert code == 0
    assert "done: step 3, loss " in out
    with pytest.MonkeyPatch.context() as patch:  # said before a network is built, whose weights may be far away
        patch.setattr("train.loop.build_model", lambda *args: pytest.fail("a network was built"))
        code, out, err = call(*common)
    assert code == 2
    assert "holds a run already: add --resume" in err
    log = (tmp_path / "run" / "log.jsonl").read_text()
    code, out, _ = call(*common, "--resume", "--quiet")
    assert (code, out) == (0, "")
    assert (tmp_path / "run" / "log.jsonl").read_text() == log  # the summary of the run is still there
    code, _, err = call(*common, "--resume", "--set", "optim.lr=0.5")
    assert code == 2
    assert "optim.lr was 0.01, is 0.5" in err
    code, out, _ = call("seg-train", "--shards", shard_set, "--out", tmp_path / "run", "--resume")
    assert code == 0
    assert "is finished: step 3, nothing left to do" in out


def test_dry_run_prints_a_plan_and_writes_nothing(
    call: Call, shard_set: Path, recipe_file: Path, tmp_path: Path
) -> None:
    common = ("seg-train", "--shards", shard_set, "--recipe", recipe_file, "--out", tmp_path / "run")
    code, out, _ = call(*common, "--dry-run")
    assert code == 0
    for word in ("parameters", "multiply-adds", "memory", "steps       3", f"{shard_set} 11"):
        assert word in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("seg-train", "--shards", "{empty}", "--recipe", "nosuchrecipe", "--out", "{out}"), "no recipe named"),
        (("seg-train", "--shards", "{empty}", "--recipe", "{recipe}", "--out", "{out}"), "no manifest.json"),
        (("seg-train", "--shards", "{empty}", "--out", "{out}"), "Missing option '--recipe'"),
        (("seg-train", "--recipe", "{recipe}", "--out", "{out}"), "Missing option '--shards'"),
        (("seg-train", "--shards", "{set}", "--recipe", "{recipe}"), "Missing option '--out'"),
        (("seg-train", "--shards", "{set}", "--recipe", "{recipe}", "--out", "{out}", "--device", "cuda"), "no CUDA"),
        (("seg-train", "--shards", "{set}", "--recipe", "{recipe}", "--out", "{out}", "--resume"), "no run to resume"),
        (("seg-train", "--shards", "{set}", "--recipe", "{recipe}", "--out", "{out}", "--set", "optim.lrr=1"), "lr"),
        (("seg-train", "--shards", "{set}", "--recipe", "{recipe}", "--out", "{recipe}"), "is a file"),
        (("seg-train", "--shards", "{set}", "--out", "{out}", "--resume", "--set", "a.b=1"), "no run to resume"),
        (("seg-eval", "--run", "{empty}", "--shards", "{set}"), "no run in"),
        (("seg-eval", "--run", "{empty}", "--shards", "{set}", "--scales", "1,x"), "--scales '1,x'"),
        (("seg-eval", "--run", "{empty}", "--shards", "{set}", "--scales", "0"), "--scales '0'"),
        (("seg-eval", "--shards", "{set}"), "Missing option '--run'"),
        (("seg-predict", "--run", "{empty}", "--out", "{out}", "x.jpg"), "no run in"),
        (("seg-predict", "--run", "{empty}", "--out", "{out}"), "Missing argument"),
    ],
)
def test_user_errors_are_one_line(
    call: Call,
    shard_set: Path,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    found: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    names = {"{empty}": tmp_path / "empty", "{out}": tmp_path / "out", "{set}": shard_set, "{recipe}": recipe_file}
    code, _, err = call(*(names.get(word, word) for word in words))
    lines = [line for line in err.strip().splitlines() if line.strip() and not line.startswith(("Usage:", "Try "))]
    assert code == 2
    assert len(lines) == 1
    assert found in lines[0]


def test_class_tables_that_differ_between_sources(
    call: Call, shard_set: Path, recipe_file: Path, tmp_path: Path
) -> None:
    from shards.classes import ClassTable

    other = write(tmp_path / "other", {"train": [scene(0)]}, classes=ClassTable.make(("a", "b", "c", "d")))
    words = ("--recipe", recipe_file, "--out", tmp_path / "run")
    code, _, err = call("seg-train", "--shards", shard_set, "--shards", other, *words)
    assert code == 2
    assert "class tables of" in err
    assert "differ: class 0 is 'road' and 'a'" in err
    assert not (tmp_path / "run").exists()
