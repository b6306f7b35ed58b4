"""Tiny shard sets, built once a session; tests that damage one take a copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.cache import CacheSettings
from tests.shards.build import build
from tests.shards.server import Server


@pytest.fixture(scope="session", params=["webdataset", "zarr"])
def shard_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a shard set in each format."""
    folder = tmp_path_factory.mktemp(request.param)
    build(folder, request.param)
    return folder


@pytest.fixture(scope="session")
def zarr_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a shard set in Zarr stores."""
    folder = tmp_path_factory.mktemp("stores")
    build(folder, "zarr")
    return folder


@pytest.fixture(scope="session")
def tar_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a shard set in tar shards."""
    folder = tmp_path_factory.mktemp("tars")
    build(folder)
    return folder


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is asked directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def quick(tmp_path: Path) -> CacheSettings:
    """Settings that give up after few tries; not so soon that a busy machine looks like a stalled server."""
    return CacheSettings(tmp_path / "cache", timeout=2, retries=2, pause=0.001)


@pytest.fixture
def server(tar_set: Path) -> Iterator[Server]:
    """A web server of the tar set."""
    with Server(tar_set) as running:
        yield running
