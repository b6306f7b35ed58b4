"""The README's pictures, made of procedural scenes only; run `make demo` first.

    python -m tests.bench.pictures [--out docs] [--run runs/demo]

Writes soft-label.png (image and source label; below, at 1/8, the nearest-neighbour label and the soft label)
and demo.png (image, label, prediction and errors of some val scenes, from the report of `make demo`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import shards
from prep.scenes import write as scenes
from prep.taxonomy import load_classes, load_remap
from shards.picture import blend, colourise

U8 = npt.NDArray[np.uint8]
WINDOW = np.s_[56:184, 248:504]  # of a scene of 256 x 512
ZOOM, GAP = 2, 6
COLOURS = 256  # of the palette: small files


def enlarge(picture: U8, factor: int) -> U8:
    """Every cell as factor x factor pixels."""
    return np.repeat(np.repeat(picture, factor, 0), factor, 1)


def beside(pictures: list[U8]) -> U8:
    """Pictures of one height in a row, with white between."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def above(pictures: list[U8]) -> U8:
    """Pictures of one width in a column, with white between."""
    return np.ascontiguousarray(beside([p.transpose(1, 0, 2) for p in pictures]).transpose(1, 0, 2))


def soft_label(number: int) -> U8:
    """Image and label above; nearest-neighbour and soft label at 1/8 below."""
    image, ids, _ = scenes.scene(0, "val", number, (256, 512))
    classes = load_classes("demo-14")
    hard = np.ascontiguousarray(load_remap("demo-34_to_14", "demo").apply(ids, "picture")[WINDOW])
    soft = shards.soften(hard, "1/8", "box")
    nearest = colourise(np.ascontiguousarray(hard[4::8, 4::8]), classes)
    top = beside([enlarge(image[WINDOW], ZOOM), enlarge(colourise(hard, classes), ZOOM)])
    small = [enlarge(picture, 8 * ZOOM) for picture in (nearest, blend(soft, classes))]
    return above([top, beside(small)])


def report(folder: Path, count: int) -> U8:
    """The first samples of a report: image, label, prediction, errors."""
    rows = []
    for index in range(count):
        kinds = ("image", "label", "prediction", "errors")
        files = [folder / f"{index:02d}-{kind}.png" for kind in kinds]
        if not files[0].exists():
            raise SystemExit(f"{files[0]} not found: run make demo first")
        rows.append(beside([np.asarray(Image.open(f).convert("RGB").resize((320, 160))) for f in files]))
    return above(rows)


def save(picture: U8, path: Path) -> None:
    """Write a PNG with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.shape[1]}x{picture.shape[0]}, {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--scene", type=int, default=1)
    options = parser.parse_args()
    save(soft_label(options.scene), options.out / "soft-label.png")
    save(report(options.run / "report", 3), options.out / "demo.png")


if __name__ == "__main__":
    main()
