"""The sound shard sets that every case damages a copy of; written by `prep.pipeline.build` from tiny fakes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import fake_cityscapes
from tests.prep.builds import run_build

SPLITS = {"train": 5, "test": 2}
SIZE = (32, 48)
STORE, FEW = "train/1-2/train-1-2.zarr/", ("1/train-1.zarr/seg.png/data", "1/train-1.zarr/key/offsets")
OPTIONS = {
    "jpeg": {"image_format": "jpeg:90"},
    "png": {"image_format": "keep"},
    "webp": {"image_format": "webp"},
    "zarr": {"image_format": "jpeg:90", "format": "zarr"},
    "other": {"image_format": "jpeg:90"},  # other pictures and labels under the same keys
}


@dataclass(frozen=True)
class Bases:
    """Folders of the sound sets, by name."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def tars(self, name: str, split: str = "train", scale: str = "1") -> list[str]:
        """Tar shards of a split and scale, below the set's folder."""
        return sorted(p.relative_to(self[name]).as_posix() for p in (self[name] / split / scale).glob("*.tar"))

    def files(self, name: str) -> list[str]:
        """Files of a set; of its Zarr stores, which are alike, one whole and a few parts of the others."""
        paths = sorted(p.relative_to(self[name]).as_posix() for p in self[name].rglob("*") if p.is_file())
        return [p for p in paths if ".zarr/" not in p or p.startswith(STORE) or any(part in p for part in FEW)]


def make_bases(folder: Path) -> Bases:
    """Build all sets below `folder`; one sample of each is quarantined."""
    for name, options in OPTIONS.items():
        raw = fake_cityscapes(folder / f"raw-{name}", SPLITS, SIZE, seed=int(name == "other"))
        next((raw / "leftImg8bit/train/aachen").glob("*_000002_*")).write_bytes(b"not a picture")
        run_build("cityscapes", raw, folder / name, shard_size=16_000, **options)
        shutil.rmtree(raw)
    return Bases(folder)
