"""The builds that are tortured: tar and Zarr sets, from nothing and brought up to date, and in worker processes."""

from __future__ import annotations

import dataclasses
import os
import shutil
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
    "update": {**OPTIONS, "update": True},
    "zarr update": {**OPTIONS, "format": "zarr", "update": True},
    "two processes": {**OPTIONS, "workers": 2},
}
SHARE_OF_PROCESSES = {"two processes": 50}  # one trial in so many: starting processes takes seconds


MEMORY = Path("/dev/shm")  # SIGKILL loses nothing that was written, so disks add nothing but time


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder to torture builds in, in memory where there is such a place."""
    return tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


def arenas(folder: Path, sabotage: str | None = None, names: tuple[str, ...] = tuple(BUILDS)) -> dict[str, Arena]:
    """Prepare the named builds below `folder`."""
    root, before = make_source(folder / "raw"), make_source(folder / "before", earlier=True)
    return {name: _arena(folder / name, Job(root, BUILDS[name]), before, sabotage) for name in names}


def make_source(root: Path, earlier: bool = False) -> Path:
    """A fake CamVid of several shards, with a sample that goes to quarantine.

    Earlier it had a sample less, two more, one of them in front, and two with other contents: one good, one bad.
    """
    fake_camvid(root, {"train": 12 if earlier else 13, "val": 9})
    images = sorted((root / "train").iterdir())
    images[3 if earlier else 0].write_bytes(b"")
    if earlier:
        shutil.copyfile(images[5], images[6])
        for split in ("train", "val"):
            text, stem = (root / f"{split}.txt").read_text(), sorted((root / split).iterdir())[1].stem
            for kind in (split, f"{split}annot"):
                shutil.copyfile(root / kind / f"{stem}.png", root / kind / "0000.png")
            (root / f"{split}.txt").write_text(text.splitlines(keepends=True)[0].replace(stem_of(text), "0000") + text)
    return root


def stem_of(listing: str) -> str:
    """The stem of a listing's first sample."""
    return Path(listing.split()[0]).stem


def _arena(folder: Path, job: Job, before: Path, sabotage: str | None) -> Arena:
    scratch = {name: value for name, value in job.options.items() if name not in ("workers", "update")}
    for name in ("warm", "whole"):  # the first one pays for compiled kernels being loaded
        chunks = Job(job.root, scratch)(folder / name)
    start = None
    if "update" in job.options:
        start = folder / "start"
        Job(before, scratch)(start)
    broken = dataclasses.replace(job, sabotage=sabotage)
    return make_arena(broken, folder / "scratch", chunks, folder / "whole", start)
