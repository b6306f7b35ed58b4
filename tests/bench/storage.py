"""Bytes of stored soft labels against the source's label PNGs and against dense float16 planes.

    python -m tests.bench.storage [--maps 100]

Prints a row for each set of labels and each scale (filter box): bytes of all soft.npz, their ratio to the label PNGs
as the dataset ships them (or as we encode them, for procedural labels), and how many times smaller they are than
float16 planes of [h, w, C + 1]. Sets, the real ones where they are at hand (SEGSHARDS_DATA): CamVid; the labels of
ADE20K's full release at their own size and with the short side at 512 as in its benchmark release; procedural streets;
procedural maps of 150 classes at 512 x 683. The last depend on how many regions we draw, so two numbers of regions
are shown, and the real labels are what counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import shards
from prep.datasets import load_reader
from shards.codec import decode_soft, encode_hard, encode_soft
from tests.bench.maps import U16, regions, street
from tests.bench.timing import markdown
from tests.real import real_root

SCALES = ("1/2", "1/4", "1/8")
ADE_SIZE = (512, 683)


def camvid(root: Path) -> Iterator[tuple[U16, int]]:
    """Every CamVid label with the bytes of its PNG."""
    reader = load_reader("camvid")
    for split in reader.splits(root):
        for sample in reader.samples(root, split):
            if sample.label is not None:
                data = sample.label.read_bytes()
                yield reader.decode_label(data, sample.key), len(data)


def ade(root: Path, short_side: int | None) -> Iterator[U16]:
    """ADE20K full labels (id = R // 10 * 256 + G, 0 = void), ids counted within an image; resized by nearest pixel."""
    for path in sorted(root.rglob("*_seg.png")):
        with Image.open(path) as image:
            colour = np.asarray(image.convert("RGB")).astype(np.int64)
        ids = colour[..., 0] // 10 * 256 + colour[..., 1]
        hard = np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.uint16)
        hard[ids == 0] = shards.IGNORE
        if short_side:
            factor = short_side / min(hard.shape)
            size = (round(hard.shape[1] * factor), round(hard.shape[0] * factor))
            hard = np.asarray(cv2.resize(hard, size, interpolation=cv2.INTER_NEAREST), np.uint16)
        yield hard


def encoded(hards: Iterable[U16], classes: int) -> Iterator[tuple[U16, int]]:
    """Labels with the bytes of the PNG that we make of them."""
    for hard in hards:
        yield hard, len(encode_hard(hard, classes))


def measure(name: str, classes: int, labels: Iterable[tuple[U16, int]]) -> list[list[str]]:
    """Rows of the table for one set of labels."""
    soft_bytes, dense_bytes = dict.fromkeys(SCALES, 0), dict.fromkeys(SCALES, 0)
    count = png_bytes = 0
    for hard, png in labels:
        count, png_bytes = count + 1, png_bytes + png
        for scale in SCALES:
            soft = shards.soften(hard, scale, "box")
            data = encode_soft(soft)
            if decode_soft(data, name) != soft:
                raise SystemExit(f"{name}: a soft label did not survive storage")
            soft_bytes[scale] += len(data)
            dense_bytes[scale] += soft.shape[0] * soft.shape[1] * (classes + 1) * 2
    return [
        [
            name,
            str(count),
            scale,
            f"{png_bytes / count / 1e3:.1f} kB",
            f"{soft_bytes[scale] / count / 1e3:.1f} kB",
            f"{soft_bytes[scale] / png_bytes:.2f}",
            f"{dense_bytes[scale] / soft_bytes[scale]:,.0f}x",
        ]
        for scale in SCALES
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=100, help="procedural maps of each kind")
    number = range(parser.parse_args().maps)
    rows: list[list[str]] = []
    data = real_root()
    if data is not None:
        rows += measure("CamVid (real, 11 classes)", 11, camvid(data / "camvid"))
        full = data / "layouts" / "ade20k-full-3images"
        if full.is_dir():
            rows += measure("ADE20K (real, as 150 classes), own size", 150, encoded(ade(full, None), 150))
            rows += measure("ADE20K (real, as 150 classes), short side 512", 150, encoded(ade(full, 512), 150))
    else:
        print("real labels not found: set SEGSHARDS_DATA to measure them", end="\n\n")
    streets = (street(n, (512, 1024)) for n in number)
    rows += measure("procedural streets (19 classes)", 19, encoded(streets, 19))
    for count in (20, 60):
        rooms = (regions(n, 150, ADE_SIZE, count) for n in number)
        rows += measure(f"procedural, 150 classes, {count} regions", 150, encoded(rooms, 150))
    header = ["labels", "maps", "scale", "label PNG", "soft.npz", "soft / PNG", "dense float16 / soft"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
