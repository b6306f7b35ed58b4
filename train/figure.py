"""Pictures for people with words on them: heat maps, marked points, captions, legends. uint8 RGB arrays in, out.

Text is drawn by Pillow, as class names are written in any script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from shards.classes import ClassTable, Colour

U8 = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK = (255, 255, 255), (30, 30, 30)
TEXT, GAP = 13, 4  # pixels: of a letter on a small picture, between two panels
MOST = 40  # classes that a legend names
NARROWEST = 240  # of a picture with a legend
COLUMNS = 4  # panels beside each other, at most


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a colour and what it means."""

    colour: Colour
    text: str


def heat(image: U8, values: npt.NDArray[np.floating], low: float, high: float, alpha: float = 0.6) -> U8:
    """A map [H, W] over its image [H, W, 3]: blue at `low` or less, red at `high` or more."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.cvtColor(
        cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB
    )
    return np.asarray(np.rint(image * (1 - alpha) + colours * alpha), np.uint8)


def marked(picture: U8, y: int, x: int) -> U8:
    """A copy with a white dot, black around, on pixel (y, x)."""
    out = np.ascontiguousarray(picture).copy()
    radius = max(3, round(min(out.shape[:2]) / 60))
    cv2.circle(out, (x, y), radius + 2, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(out, (x, y), radius, (255, 255, 255), -1, cv2.LINE_AA)
    return out


def sheet(panels: Sequence[tuple[str, U8]]) -> U8:
    """Pictures of one size under their captions, at most COLUMNS in a row, all rows alike; captions are cut to fit."""
    h, w = panels[0][1].shape[:2]
    rows = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // rows)
    font, line = _font(h, w)
    out = Image.new("RGB", (columns * (w + GAP) - GAP, rows * (line + h)), PAPER)
    draw = ImageDraw.Draw(out)
    for place, (caption, panel) in enumerate(panels):
        x, y = place % columns * (w + GAP), place // columns * (line + h)
        draw.text((x + 2, y + 1), _fitting(caption, w - 4, font), INK, font)
        out.paste(Image.fromarray(panel), (x, y + line))
    return np.array(out)


def with_legend(picture: U8, entries: Sequence[Entry]) -> U8:
    """The picture with its legend below, in as many columns as fit; texts that are too long are cut."""
    if not entries:
        return picture
    h, w = picture.shape[:2]
    font, line = _font(h, w)
    width, swatch = max(w, NARROWEST), line - 6
    indent = swatch + 8
    widest = max(font.getlength(entry.text) for entry in entries) + indent + 8
    columns = max(1, min(len(entries), int(width // widest)))
    rows = -(-len(entries) // columns)
    out = Image.new("RGB", (width, h + rows * line + 2 * GAP), PAPER)
    out.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(out)
    for place, entry in enumerate(entries):
        x, y = place // rows * (width // columns) + GAP, h + GAP + place % rows * line
        draw.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=entry.colour, outline=INK)
        draw.text((x + indent, y), _fitting(entry.text, width // columns - indent - GAP, font), INK, font)
    return np.array(out)


def classes_shown(
    label: npt.NDArray[np.uint16], classes: ClassTable, base: npt.NDArray[np.bool_] | None
) -> list[Entry]:
    """The classes of a label [H, W] by falling area, with their share of it; those that are not `base` are marked."""
    ids, counts = np.unique(label[label < len(classes)], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    entries = []
    for klass, share in zip(ids[order].tolist(), (counts[order] / label.size).tolist(), strict=True):
        novel = ", novel" if base is not None and not base[klass] else ""
        entries.append(Entry(classes.colours[klass], f"{classes.names[klass]} ({100 * share:.1f} %{novel})"))
    rest = len(entries) - MOST
    return [*entries[:MOST], Entry(PAPER, f"and {rest} more")] if rest > 0 else entries


def _font(h: int, w: int) -> tuple[Font, int]:
    """Letters that fit a picture's size, and the pixels from line to line."""
    size = max(TEXT, min(h, w) // 32)
    return ImageFont.load_default(size), size + 5


def _fitting(text: str, width: float, font: Font) -> str:
    """The text, or as much of it as fits, and three dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
