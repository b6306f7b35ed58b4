"""Curves as one SVG file, without a plotting library: `plot([Curve("road", "#844084", [(0, 0.9), (8, 0.8)])], ...)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 400  # of the plot itself, in pixels
LEFT, TOP, BOTTOM, LEGEND = 56, 16, 48, 210


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Args:
        name: in the legend.
        colour: as SVG names it.
        points: (x, y); y in 0..1, None where there is no value.
        bold: drawn thick.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]
    bold: bool = False


def plot(curves: Sequence[Curve], title: str, x_label: str, y_label: str) -> str:
    """An SVG of all curves, y from 0 to 100 per cent, x from 0 to the largest, a legend at the right.

    Args:
        curves: at least one point among them.
        title: above.
        x_label, y_label: of the axes.
    """
    most = max(x for curve in curves for x, _ in curve.points) or 1
    height = max(HEIGHT, 18 * len(curves))
    lines = "".join(_line(curve, most, height) for curve in curves)
    names = "".join(_name(curve, place) for place, curve in enumerate(curves))
    whole = (LEFT + WIDTH + LEGEND, TOP + height + BOTTOM)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole[0]}" height="{whole[1]}" '
        f'viewBox="0 0 {whole[0]} {whole[1]}" font-family="sans-serif" font-size="12" fill="#333">'
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
        f"{_axes(most, height)}{lines}{names}"
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + height + 38}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(14 {TOP + height / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        f"</svg>\n"
    )


def _axes(most: float, height: int) -> str:
    parts = []
    for per_cent in range(0, 101, 20):
        y = TOP + height * (1 - per_cent / 100)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{per_cent}</text>')
    step = next(s for power in range(12) for s in (10**power, 2 * 10**power, 5 * 10**power) if most <= 10 * s)
    for x in range(0, int(most) + 1, step):
        place = LEFT + WIDTH * x / most
        parts.append(f'<path d="M{place:.1f} {TOP + height}v5" stroke="#999"/>')
        parts.append(f'<text x="{place:.1f}" y="{TOP + height + 18}" text-anchor="middle">{x}</text>')
    return "".join(parts)


def _line(curve: Curve, most: float, height: int) -> str:
    """A polyline through each stretch of points that have a value, and a dot on every point."""
    places = [None if y is None else (LEFT + WIDTH * x / most, TOP + height * (1 - y)) for x, y in curve.points]
    stretches: list[list[str]] = [[]]
    for place in places:
        if place is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{place[0]:.1f},{place[1]:.1f}")
    width = 3 if curve.bold else 1.5
    drawn = (
        f'<polyline points="{" ".join(stretch)}" fill="none" stroke="{curve.colour}" stroke-width="{width}"/>'
        for stretch in stretches
        if stretch
    )
    dots = (f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="{width}" fill="{curve.colour}"/>' for p in places if p)
    return f'<g stroke-linejoin="round">{"".join(drawn)}{"".join(dots)}</g>'


def _name(curve: Curve, place: int) -> str:
    x, y = LEFT + WIDTH + 16, TOP + 12 + 18 * place
    weight = ' font-weight="bold"' if curve.bold else ""
    return (
        f'<path d="M{x} {y - 4}h18" stroke="{curve.colour}" stroke-width="3"/>'
        f'<text x="{x + 24}" y="{y}"{weight}>{escape(curve.name)}</text>'
    )
