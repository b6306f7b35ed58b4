"""The report: one folder, nothing outside of it, with pictures of evenly spaced samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import shards
from tests.train.shardset import CLASSES, scene
from train.evaluate import Example
from train.report import KINDS, Gallery, error_map, loss_curve, per_cent, write_report

RESULT: dict[str, Any] = {
    "miou": 0.5, "pixel_accuracy": 0.75, "mean_accuracy": 0.6, "fwiou": 0.55, "samples": 20, "split": "val",
    "per_class": {"road": 0.9, "wall": 0.1, "car": None, "person": 0.0},
}  # fmt: skip


def gallery(folder: Path, total: int, size: tuple[int, int] = (64, 96)) -> Gallery:
    """A gallery that has seen `total` scenes."""
    made = Gallery(folder, CLASSES, total)
    for index in range(total):
        raw = scene(index, size)
        assert raw.hard is not None
        made.watch(Example(f"<{index}>", raw.image, raw.image, raw.hard, None), np.zeros(size, np.uint16))
    return made


def test_self_contained(tmp_path: Path) -> None:
    made = gallery(tmp_path, 20)
    log = [{"step": i, "loss": 2.0 / i} for i in range(1, 900)]
    page = write_report(tmp_path, "a <title>", RESULT, CLASSES, made.keys, log).read_text()
    assert made.keys == ["<1>", "<5>", "<8>", "<11>", "<15>", "<18>"]
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 6 * len(KINDS)
    assert all((tmp_path / source).is_file() for source in sources)
    assert "http" not in page
    assert "a &lt;title&gt;" in page
    assert "&lt;5&gt;" in page
    assert "50.00" in page
    assert "90.00" in page
    assert page.count("<polyline") == 1
    assert len(re.findall(r"[\d.]+,[\d.]+", page.partition("polyline")[2])) == 300


def test_fewer_samples_than_pictures(tmp_path: Path) -> None:
    assert gallery(tmp_path, 2).keys == ["<0>", "<1>"]
    assert gallery(tmp_path / "none", 0).keys == []


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    gallery(tmp_path, 1, (700, 1400))
    for kind in KINDS:
        with Image.open(tmp_path / f"00-{kind}.png") as picture:
            assert picture.size == (640, 320)
    with Image.open(tmp_path / "00-label.png") as picture:  # no colours in between classes
        assert {colour for _, colour in picture.getcolors(1 << 20)} <= {*CLASSES.colours, (0, 0, 0)}


def test_error_map() -> None:
    hard = np.array([[0, 1, shards.IGNORE]], np.uint16)
    assert error_map(hard, np.array([[0, 2, 1]], np.uint16)).tolist() == [[[225] * 3, [200, 30, 30], [0, 0, 0]]]


def test_numbers() -> None:
    assert per_cent(0.12345) == "12.35"
    assert per_cent(None) == "-"
    assert "fewer than two" in loss_curve([(1, 2.0)])
    assert "step 7" in loss_curve([(5, 0.0), (7, 0.0)])
