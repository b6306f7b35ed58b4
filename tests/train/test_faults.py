"""Disks that fill up or fail while a run writes: one line, the last checkpoint as it was, and the run goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.prep.faults import small_disk
from tests.train.conftest import Call
from tests.train.test_checkpoint import example
from tests.train.test_cli import RECIPE
from train import checkpoint, runlog


def big(step: int) -> checkpoint.Checkpoint:
    """A checkpoint of about 400 KB."""
    saved = example(step)
    saved.model["more"] = torch.zeros(100_000)
    return saved


@pytest.mark.parametrize("most", [0, 100, 1_000, 9_000, 200_000, 399_000])
def test_a_checkpoint_that_the_kernel_cuts_short(tmp_path: Path, most: int) -> None:
    """A limit on the size of files, at its start, in its middle and at its end (ulimit -f)."""
    path, before = tmp_path / "checkpoint.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.save(path, example(step=3))
    old = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        with pytest.raises(OSError, match=r"File too large.*checkpoint\.pt"):
            checkpoint.save(path, big(step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["checkpoint.pt"]  # noqa: PTH208  # and no half one that takes up room
    checkpoint.save(path, big(step=4))
    assert checkpoint.load(path).step == 4


def test_errors_that_are_not_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    saved = example(step=1)
    saved.versions["torch"] = lambda: None  # type: ignore[assignment]  # cannot be stored
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(tmp_path / "checkpoint.pt", saved)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_sync_or_rename_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, example(step=3))
    old = path.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, broken)
        with pytest.raises(OSError, match="Input/output error"):
            checkpoint.save(path, example(step=4))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["checkpoint.pt"]  # noqa: PTH208


def test_a_full_disk_in_training_is_one_line_and_the_run_goes_on(call: Call, shard_set: Path, tmp_path: Path) -> None:
    """Room for one checkpoint and half of the next; then the disk grows and the run ends as if nothing had been."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    words = ["seg-train", "--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--quiet"]
    words += ["--set", "loop.checkpoint_every=1", "--set", "optim.lr=0.01"]
    assert call(*words, "--out", tmp_path / "whole")[0] == 0
    size = (tmp_path / "whole" / checkpoint.NAME).stat().st_size // 1024
    with small_disk(tmp_path / "disk", f"{size * 3 // 2 + 60}k") as again:
        out = tmp_path / "disk" / "run"
        code, _, err = call(*words, "--out", out)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "disk full" in err
        assert checkpoint.NAME in err
        assert checkpoint.load(out / checkpoint.NAME).step == 1
        again("size=200m")
        code, _, err = call(*words[:3], "--resume", "--out", out, "--quiet")
        assert code == 0, err
        found, expected = (checkpoint.load(folder / checkpoint.NAME) for folder in (out, tmp_path / "whole"))
        assert found.step == expected.step == 3
        torch.testing.assert_close(found.model, expected.model, rtol=0, atol=0)
        assert [line["step"] for line in runlog.read_log(out) if "loss" in line] == [1, 2, 3]


def test_no_room_for_run_json_leaves_no_run(call: Call, shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    words = ["seg-train", "--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--quiet"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        code, _, err = call(*words, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "run.json" in err
    assert not (tmp_path / "run" / "run.json").exists()
    assert call(*words, "--out", tmp_path / "run", "--set", "loop.steps=1")[0] == 0
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["format_version"]
