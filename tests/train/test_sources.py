"""The shard sets of a run: what they say to their stores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import shards
from shards.errors import SettingsError
from shards.manifest import File
from tests.shards.server import Server
from tests.train.conftest import Call, recipe
from tests.train.test_cli import RECIPE
from train.sources import WHOLE_SHARDS, Sources, open_all, open_sources

MIXED = {
    "augment": {"crop": [32, 48]},
    "mixture": {"sources": [{"name": "one"}, {"name": "two"}]},
    "loop": {"batch": 5},
}


class Recording:
    """A store that notes what it is told will be read."""

    def __init__(self, store: Any) -> None:
        self.store, self.heard = store, list[list[str]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def ahead(self, files: Iterable[File]) -> None:
        self.heard.append([file.path for file in files])


def recorded(sources: Sources) -> list[Recording]:
    stores = []
    for opened in sources.sets:
        stores.append(Recording(next(iter(opened.values())).store))
        for dataset in opened.values():
            dataset.store = stores[-1]
    return stores


@pytest.mark.parametrize("mixture", [False, True])
def test_sets_larger_than_the_cache_are_read_shard_by_shard_or_refused(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixture: bool
) -> None:
    """The sources of a run share one cache: they must fit together."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SEGSHARDS_CACHE", str(tmp_path / "cache"))
    size = shards.open(shard_set, "train", "1/2").stored
    with Server(shard_set) as server:
        config = recipe(**(MIXED if mixture else {}))
        words = [f"one={server.url}", f"two={server.url}"] if mixture else [server.url, server.url]
        monkeypatch.setenv("SEGSHARDS_CACHE_GB", repr(2 * size / 1e9))
        open_all(words, config)
        monkeypatch.setenv("SEGSHARDS_CACHE_GB", repr((2 * size - 1) / 1e9))
        with pytest.raises(SettingsError, match=r"GB found, .*data\.run=none.*SEGSHARDS_CACHE_GB=") as caught:
            open_all(words, config)
        assert "\n" not in str(caught.value)
        whole = config.model_copy(update={"data": config.data.model_copy(update={"run": None, "window": 4})})
        assert open_all(words, whole).counts
        if not mixture:
            (tmp_path / "tiny.toml").write_text(RECIPE)
            told = (
                "seg-train",
                "--shards",
                server.url,
                "--shards",
                server.url,
                "--recipe",
                tmp_path / "tiny.toml",
                "--dry-run",
            )
            code, _, err = call(*told, "--out", tmp_path / "run")
            assert (code, err.count("\n")) == (2, 1)
            assert str(caught.value) in err
            assert call(*told, "--out", tmp_path / "run", *WHOLE_SHARDS.split())[0] == 0


def test_all_scales_of_a_set_are_told_of_at_once(shard_set: Path) -> None:
    """A store forgets what it was told before: the scales one after the other would leave the last one alone."""
    config = recipe(data={"labels": "nearest"})  # images at 1/2, hard labels at 1
    sources = open_sources([shard_set, shard_set], config)
    first, second = recorded(sources)
    sources.ahead([11 + 4, 7, 6, 0])  # shards of three samples; eleven samples in each set
    assert first.heard == [
        [f"train/{scale}/train-0000{n}.{end}" for n in (2, 0) for scale in ("1-2", "1") for end in ("jsonl", "tar")]
    ]
    assert second.heard == [[f"train/{scale}/train-00001.{end}" for scale in ("1-2", "1") for end in ("jsonl", "tar")]]
    sources.ahead([0])
    assert [len(first.heard), len(second.heard)] == [2, 1]
