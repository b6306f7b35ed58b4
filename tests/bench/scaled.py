"""Scaled decoding of JPEGs (data.scaled_decode) against whole decoding: time, and how much the pixels differ.

    python -m tests.bench.scaled FOLDER_OF_JPEGS [--images 40] [--rounds 7]

For several ratios: CPU milliseconds of an image decoded and resized to that share of its size by the triangle filter,
either way (median over rounds, mean over images), and the difference of the two results: root mean square, largest of
an image on average, and PSNR. The last row is what re-encoding the result once as a JPEG of quality 95 does, for scale.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import shards
from shards.codec import ImageFormat, decode_image, encode_image
from shards.codec.scaled import decode_image_scaled, factor_for
from tests.bench.timing import alternate, markdown

RATIOS = (0.5, 0.4, 0.25, 0.2, 0.125)


def whole(data: bytes, size: tuple[int, int]) -> np.ndarray:
    return shards.resize_image_to(decode_image(data), size, "triangle")


def scaled(data: bytes, size: tuple[int, int]) -> np.ndarray:
    return shards.resize_image_to(decode_image_scaled(data, size), size, "triangle")


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Root mean square and largest difference, in levels of 255."""
    delta = a.astype(np.float64) - b
    return float(np.sqrt((delta**2).mean())), float(np.abs(delta).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    files = [path.read_bytes() for path in sorted(given.folder.rglob("*.jpg"))[: given.images]]
    stored = [decode_image(data).shape[:2] for data in files]
    rows = []
    for ratio in RATIOS:
        work = [(d, (round(h * ratio), round(w * ratio))) for d, (h, w) in zip(files, stored, strict=True)]
        jobs = {
            "whole": lambda work=work: [whole(*one) for one in work],
            "scaled": lambda work=work: [scaled(*one) for one in work],
        }
        spent = {name: 1e3 * x / len(work) for name, x in alternate(jobs, given.rounds, time.process_time).items()}
        pairs = [(whole(*one), scaled(*one)) for one in work]
        found = np.mean([difference(*pair) for pair in pairs], axis=0)
        factor = factor_for(stored[0], work[0][1])
        rows.append(_row(ratio, f"1/{factor}", f"{spent['whole']:.2f}", f"{spent['scaled']:.2f}", spent, found))
    again = [(one, decode_image(encode_image(one, ImageFormat("jpeg", 95)))) for one, _ in pairs]
    rows.append(_row("-", "JPEG 95", "", "", None, np.mean([difference(*pair) for pair in again], axis=0)))
    height, width = np.mean(stored, axis=0)
    print(f"{len(files)} JPEGs of {given.folder.name}, {width:.0f} x {height:.0f} on average")
    print(markdown(["ratio", "decoded at", "whole ms", "scaled ms", "faster", "RMS", "largest", "PSNR dB"], rows))


def _row(ratio: object, how: str, a: str, b: str, spent: dict[str, float] | None, found: np.ndarray) -> list[object]:
    times = f"{spent['whole'] / spent['scaled']:.2f}" if spent else ""
    return [ratio, how, a, b, times, f"{found[0]:.2f}", f"{found[1]:.0f}", f"{20 * np.log10(255 / found[0]):.1f}"]


if __name__ == "__main__":
    main()
