"""The report of an evaluation: one folder with an index.html that needs nothing else.

    seg-eval --run runs/demo --shards data/demo --split val --report runs/demo/report-val

Scores, IoU of each class, the loss curve, and a few samples as image, label, prediction and errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

import shards
from shards.classes import ClassTable
from shards.manifest import publish_bytes
from shards.picture import colourise
from train.evaluate import Example

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
PICTURES = 6
WIDEST = 640  # pixels of a picture's longer side
RIGHT, WRONG, VOID = (225, 225, 225), (200, 30, 30), (0, 0, 0)
KINDS = ("image", "label", "prediction", "errors")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; text-align: left } td.n { text-align: right }
.row { display: flex; gap: 6px; margin: 4px 0 18px } .row figure { margin: 0; flex: 1 } .row img { width: 100% }
figcaption, .note { color: #666; font-size: 13px } .bar { background: #4a7; height: 11px } .swatch { width: 14px }
"""


@dataclass
class Gallery:
    """Keeps the pictures of some evenly spaced samples while an evaluation goes by.

    Args:
        folder: where PNGs go; it is made.
        classes: for the colours.
        total: samples that will be seen.
    """

    folder: Path
    classes: ClassTable
    total: int
    keys: list[str] = field(default_factory=list)
    seen: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        count = min(PICTURES, self.total)
        self.chosen = {(2 * place + 1) * self.total // (2 * count) for place in range(count)}

    def watch(self, example: Example, prediction: U16) -> None:
        """Look at one sample and its prediction uint16 [H, W]."""
        if self.seen in self.chosen:
            pictures = (
                example.image,
                colourise(example.hard, self.classes),
                colourise(prediction, self.classes),
                error_map(example.hard, prediction),
            )
            for kind, picture in zip(KINDS, pictures, strict=True):
                name = picture_name(len(self.keys), kind)
                Image.fromarray(_fitted(picture, smooth=kind == "image")).save(self.folder / name)
            self.keys.append(example.key)
        self.seen += 1


def write_report(
    folder: Path,
    title: str,
    result: dict[str, Any],
    classes: ClassTable,
    keys: Sequence[str],
    log: list[dict[str, Any]],
) -> Path:
    """Write index.html beside a gallery's pictures.

    Args:
        folder: the gallery's folder.
        title: the page's heading.
        result: what seg-eval writes as JSON.
        classes: names and colours.
        keys: the samples in the gallery, in order.
        log: lines of log.jsonl, for the loss curve.

    Returns:
        The path of index.html.
    """
    facts = ("run", "shards", "split", "samples", "scales", "flip", "input_scale", "step")
    lines = "".join(f"<tr><th>{escape(n)}</th><td>{escape(str(result[n]))}</td></tr>" for n in facts if n in result)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<table>{_score_rows(result)}</table>
<h2>Classes</h2>
<table>{_class_rows(result["per_class"], classes)}</table>
<p class="note">Scores in per cent, at the source's full resolution. A class that is neither in the labels nor predicted
has no IoU and is left out of the mean.</p>
<h2>Training loss</h2>
{loss_curve([(r["step"], r["loss"]) for r in log if r.get("loss") is not None])}
<h2>Samples</h2>
{"".join(_sample_row(index, key) for index, key in enumerate(keys))}
<p class="note">Errors: red where the prediction is wrong, grey where it is right, black where the label is void.</p>
<h2>How</h2>
<table>{lines}</table>
</body></html>
"""
    publish_bytes(folder / "index.html", page.encode())
    return folder / "index.html"


def picture_name(index: int, kind: str) -> str:
    """File name of one picture."""
    return f"{index:02d}-{kind}.png"


def error_map(hard: U16, prediction: U16) -> U8:
    """uint8 [H, W, 3]: where a prediction is right, wrong, or not judged."""
    colours = np.array([RIGHT, WRONG, VOID], np.uint8)
    return colours[np.where(hard == shards.IGNORE, 2, hard != prediction).astype(np.intp)]


def loss_curve(points: Sequence[tuple[int, float]], width: int = 900, height: int = 240) -> str:
    """An inline SVG of (step, loss), thinned to means of neighbours."""
    if len(points) < 2:
        return '<p class="note">fewer than two logged steps</p>'
    groups = np.array_split(np.asarray(points, np.float64), min(len(points), 300))
    steps, losses = np.array([group.mean(0) for group in groups]).T
    low, high = float(min(losses.min(), 0.0)), float(losses.max())
    x = 50 + (width - 60) * (steps - steps[0]) / max(steps[-1] - steps[0], 1e-12)
    y = 10 + (height - 40) * (high - losses) / max(high - low, 1e-12)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="training loss by step">'
        f'<path d="M50 10V{height - 30}H{width - 10}" fill="none" stroke="#999"/>'
        f'<polyline points="{path}" fill="none" stroke="#27b" stroke-width="1.5"/>'
        f'<g font-size="12" fill="#666"><text x="4" y="16">{high:.3g}</text>'
        f'<text x="4" y="{height - 30}">{low:.3g}</text>'
        f'<text x="50" y="{height - 12}">step {points[0][0]}</text>'
        f'<text x="{width - 10}" y="{height - 12}" text-anchor="end">step {points[-1][0]}</text></g></svg>'
    )


def per_cent(score: float | None) -> str:
    """A score in 0..1 as people print it, "-" for None."""
    return "-" if score is None else f"{100 * score:.2f}"


def _score_rows(result: dict[str, Any]) -> str:
    names = {
        "miou": "mean IoU", "miou_base": "mean IoU, base classes", "miou_novel": "mean IoU, novel classes",
        "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy",
        "fwiou": "frequency-weighted IoU", "category_miou": "mean category IoU", "iiou": "mean iIoU",
        "category_iiou": "mean category iIoU",
    }  # fmt: skip
    found = ((text, result[name]) for name, text in names.items() if name in result)
    return "".join(f'<tr><th>{text}</th><td class="n">{per_cent(score)}</td></tr>' for text, score in found)


def _class_rows(per_class: dict[str, float | None], classes: ClassTable) -> str:
    rows = []
    for name, colour in zip(classes.names, classes.colours, strict=True):
        score = per_class[name]
        swatch = f'<td class="swatch" style="background: rgb{tuple(colour)}"></td>'
        bar = f'<td style="width: 320px"><div class="bar" style="width: {100 * (score or 0):.1f}%"></div></td>'
        rows.append(f'<tr>{swatch}<td>&nbsp;{escape(name)}</td><td class="n">{per_cent(score)}</td>{bar}</tr>')
    return "".join(rows)


def _sample_row(index: int, key: str) -> str:
    figures = "".join(
        f'<figure><img src="{picture_name(index, kind)}" alt="{kind}"><figcaption>{kind}</figcaption></figure>'
        for kind in KINDS
    )
    return f'<p>{escape(key)}</p><div class="row">{figures}</div>\n'


def _fitted(picture: U8, smooth: bool) -> U8:
    """The picture with its longer side at most WIDEST."""
    h, w = picture.shape[:2]
    ratio = WIDEST / max(h, w)
    if ratio >= 1:
        return np.ascontiguousarray(picture)
    how = cv2.INTER_AREA if smooth else cv2.INTER_NEAREST_EXACT
    size = (max(1, round(w * ratio)), max(1, round(h * ratio)))
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)
