"""Sets at URLs that are larger than their cache: read shard by shard, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import shards
from shards import SettingsError
from shards.cache import CacheSettings
from shards.loader import Loader
from tests.shards.server import Server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_what_a_split_takes_is_the_bytes_of_its_files(shard_set: Path) -> None:
    for scale in ("1", "1/2"):
        folder = shard_set / "train" / scale.replace("/", "-")
        expected = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert shards.open(shard_set, "train", scale).stored == expected


def test_runs_from_anywhere_need_a_cache_that_holds_all(shard_set: Path, tmp_path: Path) -> None:
    local = shards.open(shard_set, "train", "1/2")
    assert local.store.room is None
    Loader(local, batch=2)
    with Server(shard_set) as server:

        def opened(most: int) -> shards.ShardDataset:
            return shards.open(server.url, "train", "1/2", cache=CacheSettings(tmp_path / "cache", most=most))

        short, enough = opened(local.stored - 1), opened(local.stored)
        assert short.store.room == local.stored - 1
        with pytest.raises(SettingsError) as caught:
            Loader(short, batch=2)
        said = str(caught.value)
        assert said.startswith(f"{server.url}: {local.stored / 1e9:.3g} GB found")
        assert f"a cache of {(local.stored - 1) / 1e9:.3g} GB" in said
        assert "give run=None, window=4" in said
        assert f"SEGSHARDS_CACHE_GB={local.stored * 1.1 / 1e9:.3g}" in said
        assert "\n" not in said
        Loader(short, batch=2, shuffle=False)
        whole = [s.key for batch in Loader(short, batch=2, run=None, window=1).epoch(0) for s in batch]
        assert whole == [s.key for batch in Loader(local, batch=2, run=None, window=1).epoch(0) for s in batch]
        assert len([s for batch in Loader(enough, batch=2).epoch(0) for s in batch]) == 5


def test_a_cache_that_cannot_be_used_is_told_by_whoever_reads(tar_set: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with Server(tar_set) as server:
        ds = shards.open(server.url, "train", "1/2", cache=tmp_path / "cache")
        loader = Loader(ds, batch=2, threads=0)
        with pytest.raises(shards.UserError, match="cannot be used"):
            next(loader.epoch(0))
