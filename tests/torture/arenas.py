"""The builds that are tortured: tar and Zarr sets in one process, and in worker processes."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes import fake_camvid
from tests.torture.builder import Job
from tests.torture.trial import Arena, make_arena

OPTIONS: Mapping[str, Any] = {"scales": "1,1/2", "shard_size": 22_000}
BUILDS: dict[str, Mapping[str, Any]] = {
    "webdataset": OPTIONS,
    "zarr": {**OPTIONS, "format": "zarr"},
    "two processes": {**OPTIONS, "workers": 2},
}
SHARE_OF_PROCESSES = {"two processes": 50}  # one trial in so many: starting processes takes seconds


MEMORY = Path("/dev/shm")  # SIGKILL loses nothing that was written, so disks add nothing but time


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder to torture builds in, in memory where there is such a place."""
    return tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


def arenas(folder: Path, sabotage: str | None = None, names: tuple[str, ...] = tuple(BUILDS)) -> dict[str, Arena]:
    """Prepare the named builds below `folder`."""
    root = make_source(folder / "raw")
    return {name: _arena(folder / name, Job(root, BUILDS[name]), sabotage) for name in names}


def make_source(root: Path) -> Path:
    """A fake CamVid of several shards, with a sample that goes to quarantine."""
    fake_camvid(root, {"train": 13, "val": 9})
    next((root / "train").iterdir()).write_bytes(b"")
    return root


def _arena(folder: Path, job: Job, sabotage: str | None) -> Arena:
    for name in ("warm", "whole"):  # the first one pays for compiled kernels being loaded
        chunks = _build(job, folder / name)
    return make_arena(dataclasses.replace(job, sabotage=sabotage), folder / "scratch", chunks, folder / "whole", None)


def _build(job: Job, out: Path) -> int:
    """Build undisturbed in this process, without workers (which cannot be forked); returns its chunks."""
    alone = {name: value for name, value in job.options.items() if name != "workers"}
    return dataclasses.replace(job, options=alone)(out)
