"""The canvas on which `prep.scenes` draws: colours, label ids and instance ids at twice the final size.

An image is the 2x2 mean of what is drawn, a label is one of the four cells: as with a real camera, colours mix at the
edges and labels do not. Places are given in metres: x to the right, y up from the ground, z away from the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Colour = tuple[float, float, float]  # RGB, 0..255
Points = npt.NDArray[np.float64]

NEAR = 1.0  # metres: nothing is drawn nearer
FIRST_THING = 24  # Cityscapes ids from here on count instances
SHIFT = 4  # cv2 takes sixteenths of a pixel


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street, without roll.

    Args:
        focal: focal length in drawn pixels.
        centre: x of the vanishing point in drawn pixels.
        horizon: y of the horizon in drawn pixels.
        height: of the camera above the ground, in metres.
    """

    focal: float
    centre: float
    horizon: float
    height: float

    def project(self, points: Points) -> Points:
        """Metres [..., 3] (x, y, z) to drawn pixels [..., 2] (x, y)."""
        z = np.maximum(points[..., 2], NEAR)
        x = self.centre + self.focal * points[..., 0] / z
        y = self.horizon + self.focal * (self.height - points[..., 1]) / z
        return np.stack([x, y], axis=-1)

    def pixels(self, metres: float, z: float) -> float:
        """Length in drawn pixels of something `metres` long at distance z."""
        return self.focal * metres / max(z, NEAR)


class Canvas:
    """Three planes of one size that are drawn together.

    Args:
        height, width: the final size; the planes are twice as large.
        camera: where it is seen from.
        haze: the colour that far things fade to.
    """

    def __init__(self, height: int, width: int, camera: Camera, haze: Colour) -> None:
        self.camera, self.haze = camera, haze
        self.size = (height, width)
        self.colour = np.zeros((2 * height, 2 * width, 3), np.uint8)
        self.label = np.zeros((2 * height, 2 * width), np.uint8)
        self.instance = np.zeros((2 * height, 2 * width), np.uint16)
        self._counts: dict[int, int] = {}

    def new_instance(self, label: int) -> int:
        """The value that marks the next object of a class: label * 1000 + n for things, else the label itself."""
        if label < FIRST_THING:
            return label
        n = self._counts.get(label, 0)
        self._counts[label] = n + 1
        return label * 1000 + n

    def hazy(self, colour: Colour, z: float) -> Colour:
        """A colour as it is seen through z metres of air."""
        a = 1 - float(np.exp(-max(z, 0.0) / 320))
        r, g, b = (c + a * (h - c) for c, h in zip(colour, self.haze, strict=True))
        return r, g, b

    def fill(self, polygons: Points, colour: Colour, label: int | None = None, instance: int | None = None) -> None:
        """Fill one polygon [n, 2] or several of one length [m, n, 2], in drawn pixels.

        Without a label only the colour changes: a window is still a part of its building.
        """
        many = polygons[None] if polygons.ndim == 2 else polygons
        fixed = np.round(np.clip(many, -2e5, 2e5) * (1 << SHIFT)).astype(np.int32)
        for plane, value in self._planes(colour, label, instance):
            for p in fixed:
                cv2.fillPoly(plane, [p], value, lineType=cv2.LINE_8, shift=SHIFT)

    def quads(self, points: Points, colour: Colour, label: int | None = None, instance: int | None = None) -> None:
        """Fill polygons that are given in metres, [n, 3] or [m, n, 3]; the mean distance sets the haze."""
        z = float(points[..., 2].mean())
        self.fill(self.camera.project(points), self.hazy(colour, z), label, instance)

    def ellipse(
        self, centre: Points, radii: tuple[float, float], colour: Colour, label: int | None, instance: int | None = None
    ) -> None:
        """Fill an ellipse given in drawn pixels."""
        middle = (int(centre[0] * 16), int(centre[1] * 16))
        axes = (max(8, int(radii[0] * 16)), max(8, int(radii[1] * 16)))
        for plane, value in self._planes(colour, label, instance):
            cv2.ellipse(plane, middle, axes, 0, 0, 360, value, -1, cv2.LINE_8, SHIFT)

    def line(
        self,
        points: Points,
        width: float,
        colour: Colour,
        label: int | None,
        instance: int | None = None,
        closed: bool = False,
    ) -> None:
        """Draw a line [n, 2] in drawn pixels, at least two wide so that a final pixel sees it."""
        fixed = np.round(np.clip(points, -1e5, 1e5) * (1 << SHIFT)).astype(np.int32)
        for plane, value in self._planes(colour, label, instance):
            cv2.polylines(plane, [fixed], closed, value, max(2, round(width)), cv2.LINE_8, SHIFT)

    def shade(self, polygon: Points, factor: float) -> None:
        """Darken what lies below a polygon [n, 2] (drawn pixels); labels stay."""
        mask = np.zeros(self.label.shape, np.uint8)
        cv2.fillPoly(mask, [np.round(np.clip(polygon, -2e5, 2e5) * 16).astype(np.int32)], 1, shift=SHIFT)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            return
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        dark = cv2.convertScaleAbs(self.colour[box], alpha=factor)
        np.copyto(self.colour[box], dark, where=mask[box].astype(bool)[..., None])

    def _planes(self, colour: Colour, label: int | None, instance: int | None) -> list[tuple[Any, Any]]:
        planes: list[tuple[Any, Any]] = [(self.colour, tuple(float(min(max(c, 0), 255)) for c in colour))]
        if label is not None:
            planes += [(self.label, label), (self.instance, label if instance is None else instance)]
        return planes


def scaled(colour: Colour, factor: float) -> Colour:
    """A colour made brighter or darker, the same hue."""
    r, g, b = (min(255.0, c * factor) for c in colour)
    return r, g, b


def pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """One of the colours, a little varied."""
    r, g, b = (c * rng.uniform(0.85, 1.15) for c in colours[int(rng.integers(len(colours)))])
    return r, g, b


class Board:
    """An upright plane at (x, z) on which flat figures are drawn, in metres from its foot.

    Args:
        canvas: what is drawn on.
        x, z: the foot.
    """

    def __init__(self, canvas: Canvas, x: float, z: float) -> None:
        self.canvas, self.z = canvas, z
        self.foot = canvas.camera.project(np.array([x, 0.0, z]))
        self.unit = canvas.camera.pixels(1.0, z)

    def at(self, *places: tuple[float, float]) -> Points:
        """Places (right, up) in metres to drawn pixels [n, 2]."""
        p = np.asarray(places, dtype=np.float64)
        return np.asarray(self.foot + p * self.unit * np.array([1.0, -1.0]))

    def fill(self, places: list[tuple[float, float]], colour: Colour, label: int, instance: int | None = None) -> None:
        """Fill a polygon."""
        self.canvas.fill(self.at(*places), self.canvas.hazy(colour, self.z), label, instance)

    def line(
        self, places: list[tuple[float, float]], width: float, colour: Colour, label: int, instance: int | None = None
    ) -> None:
        """Draw a line `width` metres wide."""
        self.canvas.line(self.at(*places), width * self.unit, self.canvas.hazy(colour, self.z), label, instance)

    def disc(
        self, place: tuple[float, float], radius: float, colour: Colour, label: int, instance: int | None = None
    ) -> None:
        """Fill a circle."""
        r = radius * self.unit
        self.canvas.ellipse(self.at(place)[0], (r, r), self.canvas.hazy(colour, self.z), label, instance)

    def ring(
        self, place: tuple[float, float], radius: float, width: float, colour: Colour, label: int, instance: int
    ) -> None:
        """Draw a circle's line: a wheel."""
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = self.at(place) + radius * self.unit * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
        self.canvas.line(points, width * self.unit, self.canvas.hazy(colour, self.z), label, instance, closed=True)


def shadow(canvas: Canvas, x: float, z: float, width: float, depth: float, factor: float = 0.55) -> None:
    """A soft dark patch on the ground below a thing."""
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    spot = np.stack([x + width * np.cos(turn), 0 * turn, z + depth * np.sin(turn)], axis=-1)
    canvas.shade(canvas.camera.project(spot), factor)


def upright(x: float, z0: float, z1: float, y0: float, y1: float) -> Points:
    """A rectangle along the street at x, [4, 3] metres."""
    return np.array([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], dtype=np.float64)
