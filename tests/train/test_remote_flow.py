"""A run whose shards are on the web: trained, scored and continued as one whose shards are in a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.shards.server import Server
from tests.train.conftest import Call
from tests.train.test_cli import RECIPE
from train.config import load_recipe
from train.mixture import named_paths


def test_training_and_scoring_over_http(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SEGSHARDS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    results = {}
    with Server(shard_set) as server:
        for name, place in (("url", server.url), ("folder", shard_set)):
            run = tmp_path / name
            words = ("--recipe", tmp_path / "tiny.toml", "--set", "loop.steps=2", "--quiet")
            assert call("seg-train", "--shards", place, *words, "--out", run)[0] == 0
            (source,) = json.loads((run / "run.json").read_text())["sources"]
            assert source["path"] == str(place)
            assert call("seg-norms", "--run", run, "--quiet")[0] == 0  # finds the shards where the run did
            given = ("--shards", place, "--quiet", "--report", run / "report", "--json", run / "scores.json")
            assert call("seg-eval", "--run", run, *given, "--base", place)[0] == 0
            scores = json.loads((run / "scores.json").read_text())
            assert scores["shards"] == str(place)
            results[name] = [line for line in (run / "log.jsonl").read_text().splitlines() if '"loss"' in line]
            results[name] = [{k: v for k, v in json.loads(line).items() if "loss" in k} for line in results[name]]
            results[name].append(scores["miou"])
        tars = [asked.path for asked in server.asked if asked.path.endswith(".tar")]
    assert results["url"] == results["folder"]
    assert len(tars) == len(set(tars)) > 1
    assert list((tmp_path / "cache").iterdir())


def test_words_of_a_mixture_may_be_urls(tmp_path: Path) -> None:
    given = ["pixels=https://host/a?sig=b=c", "pixels=s3://bucket/b", f"tags={tmp_path}"]
    found = named_paths(given, load_recipe("larvseg-wa150"))
    assert found == {"pixels": ("https://host/a?sig=b=c", "s3://bucket/b"), "tags": (tmp_path,)}
    assert named_paths(["https://host/a?sig=b"], load_recipe("demo")) == {"": ("https://host/a?sig=b",)}


def test_a_set_that_cannot_be_reached_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    code, _, err = call("seg-train", "--shards", "http://127.0.0.1:9/none", "--recipe", "demo", "--out", tmp_path / "r")
    assert code == 2
    assert "http://127.0.0.1:9/none/manifest.json" in err
    assert err.count("\n") == 1
