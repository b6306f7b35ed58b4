"""The data of the bench: source shard sets, written by seg-prep, and from each the peers' own formats.

streets    procedural scenes of 512 x 1024, JPEG of quality 95, labels as PNG, scales 1 and 1/4
photos     the same scenes as most datasets come: JPEG of quality 90 with halved chroma (4:2:0)
camvid     CamVid's train split of 360 x 480, PNG, where it is at hand (SEGSHARDS_DATA)
thousand   1,000 shards of tiny pictures: how soon does the first batch come?

Each lies in .bench/data/<name>-<samples> and is made once; a peer's own format beside it holds the very same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import shards
from tests.bench.loaders.members import tars
from tests.bench.loaders.peers import BENCH, HERE, ROOT, Peer
from tests.real import real_root

THOUSAND = 1000


@dataclass(frozen=True)
class Material:
    """A source set.

    Args:
        name: "streets", "photos", "camvid" or "thousand".
        folder: holds the shard set, in "shards", and what is made of it.
        samples: of split train.
        chunks: shards of split train at scale 1.
        classes: C.
    """

    name: str
    folder: Path
    samples: int
    chunks: int
    classes: int

    @property
    def shards(self) -> Path:
        """Our shard set."""
        return self.folder / "shards"

    def data(self, peer: Peer) -> Path:
        """A peer's own format."""
        return self.folder / peer.name if peer.writes else self.shards

    def warm(self) -> None:
        """Read every file, so that the disk takes no part in any round."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                path.read_bytes()


def streets(samples: int) -> Material:
    """Procedural street scenes of 512 x 1024."""
    return _made("streets", samples, lambda raw: _streets(raw, samples), ["--image-format", "jpeg:95"], 8.0)


def photos(samples: int) -> Material:
    """The street scenes as JPEGs of the usual kind, stored as they are."""
    return _made("photos", samples, lambda raw: _photos(raw, streets(samples)), [], 8.0)


def camvid() -> Material | None:
    """CamVid, where it is at hand."""
    root = real_root()
    if root is None or not (root / "camvid").is_dir():
        return None
    return _made("camvid", 367, lambda raw: ["camvid", "--root", str(root / "camvid")], [], 8.0)


def thousand(shard_count: int = THOUSAND) -> Material:
    """A set of `shard_count` shards at least, of about four tiny pictures each."""
    made = _made("thousand", shard_count * 4, lambda raw: _tiny(raw, shard_count * 4), ["--image-format", "png"], 0.03)
    if made.chunks < shard_count:
        raise SystemExit(f"{made.chunks} shards in {made.shards}; expected {shard_count}: shards are cut otherwise now")
    return made


def _made(name: str, samples: int, raw: Callable[[Path], list[str]], options: list[str], size: float) -> Material:
    """A shard set by seg-prep, if it is not there yet; `raw` writes the source and names it to seg-prep."""
    folder = BENCH / "data" / f"{name}-{samples}"
    if not (folder / "shards" / "manifest.json").is_file():
        print(f"making {folder.relative_to(ROOT)} ...", flush=True)
        source = raw(folder / "raw")
        command = [sys.executable, "-c", "from prep.cli import main; main()", *source, "--out", str(folder / "shards")]
        command += ["--split", "train", "--scales", "1,1/4", "--shard-size", str(size), "--workers", "2", "--quiet"]
        subprocess.run([*command, *options], check=True, cwd=ROOT)
        shutil.rmtree(folder / "raw", ignore_errors=True)
    dataset = shards.open(folder / "shards", split="train")
    return Material(name, folder, len(dataset), len(tars(folder / "shards")), len(dataset.classes))


def _streets(raw: Path, samples: int) -> list[str]:
    """Scenes without instance ids, which no peer reads."""
    size = ["--train", str(samples), "--val", "1", "--size", "512x1024", "--quiet"]
    subprocess.run([sys.executable, "-m", "prep.scenes", str(raw), *size], check=True, cwd=ROOT)
    for path in (raw / "gtFine").rglob("*_instanceIds.png"):
        path.unlink()
    return ["demo", "--root", str(raw)]


def _photos(raw: Path, scenes: Material) -> list[str]:
    """A folder of images and labels as Pillow writes them."""
    for kind in ("images", "labels"):
        (raw / kind / "train").mkdir(parents=True, exist_ok=True)
    dataset = shards.open(scenes.shards, split="train")
    (raw / "classes.txt").write_text("\n".join(dataset.classes.names) + "\n")
    for number, sample in enumerate(dataset):
        Image.fromarray(sample.image).save(raw / "images" / "train" / f"{number:06d}.jpg", quality=90)
        (raw / "labels" / "train" / f"{number:06d}.png").write_bytes(dataset.members(number)["seg.png"])
    return ["folder", "--root", str(raw)]


def _tiny(raw: Path, samples: int) -> list[str]:
    """Pictures of 32 x 32 in Cityscapes' layout."""
    random = np.random.default_rng(0)
    for kind in ("leftImg8bit", "gtFine"):
        (raw / kind / "train" / "ahorn").mkdir(parents=True, exist_ok=True)
    for number in range(samples):
        stem = f"ahorn_{number:06d}_000019"
        label = np.full((32, 32), 7 + number % 2, np.uint8)
        image = random.integers(0, 255, (32, 32, 3), np.uint8)
        cv2.imwrite(str(raw / "leftImg8bit" / "train" / "ahorn" / f"{stem}_leftImg8bit.png"), image)
        cv2.imwrite(str(raw / "gtFine" / "train" / "ahorn" / f"{stem}_gtFine_labelIds.png"), label)
    return ["demo", "--root", str(raw)]


def stamp_of(source: Material, peer: Peer) -> str:
    """What a peer's format is made of: the set's manifest and the peer's requirements."""
    parts = (source.shards / "manifest.json", peer.requirements, HERE / f"peer_{peer.name}.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
