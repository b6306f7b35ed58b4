"""Tiny shard sets, built once a session; tests that damage one take a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.build import build


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
