"""What stands along a street: lamps, signs, lights, trees, fences, bins. See `prep.scenes`.

Every function draws one thing at x metres to the right and z metres ahead; thin parts keep a width of at least one
final pixel, as labels of real scenes do.
"""

from __future__ import annotations

import numpy as np

from prep.scenes.canvas import Board, Canvas, Colour, pick, scaled, shadow, upright

FENCE, POLE, LIGHT, SIGN, VEGETATION, STATIC = 13, 17, 19, 20, 21, 4  # Cityscapes label ids
BINS: tuple[Colour, ...] = ((92, 100, 104), (60, 84, 66), (44, 46, 52), (196, 160, 62))


def lamp_post(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A street lamp whose arm reaches over the road."""
    board, high, s = Board(canvas, x, z), rng.uniform(5.5, 8), -1.0 if x > 0 else 1.0
    grey: Colour = (104, 108, 106)
    board.line([(0, 0), (0, high), (s * 0.4, high + 0.3), (s * 1.6, high + 0.4)], 0.11, grey, POLE)
    board.line([(0, 0), (0, 1.0)], 0.18, grey, POLE)
    board.line([(s * 1.3, high + 0.38), (s * 1.9, high + 0.42)], 0.16, (188, 190, 186), POLE)


def sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic sign on a thin pole: round, three-cornered or square."""
    board, y, kind = Board(canvas, x, z), rng.uniform(2.1, 2.9), int(rng.integers(4))
    board.line([(0, 0), (0, y + 0.2)], 0.07, (150, 152, 150), POLE)
    red, blue, white = (190.0, 26.0, 34.0), (24.0, 74.0, 160.0), (240.0, 240.0, 236.0)
    if kind == 0:
        board.disc((0, y), 0.36, red, SIGN)
        board.disc((0, y), 0.26, white, SIGN)
        board.line([(-0.1, y), (0.1, y)], 0.14, (20, 20, 20), SIGN)
    elif kind == 1:
        board.fill([(-0.44, y - 0.34), (0.44, y - 0.34), (0, y + 0.42)], red, SIGN)
        board.fill([(-0.27, y - 0.24), (0.27, y - 0.24), (0, y + 0.22)], white, SIGN)
    elif kind == 2:
        board.fill([(-0.34, y - 0.34), (0.34, y - 0.34), (0.34, y + 0.34), (-0.34, y + 0.34)], blue, SIGN)
        board.fill([(-0.12, y - 0.24), (0.0, y - 0.24), (0.0, y + 0.24), (-0.12, y + 0.24)], white, SIGN)
    else:
        board.disc((0, y), 0.36, blue, SIGN)
        board.line([(-0.18, y - 0.1), (0.14, y + 0.14)], 0.1, white, SIGN)


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic light; one of its lamps is lit."""
    board, y, lit = Board(canvas, x, z), rng.uniform(2.3, 3.2), int(rng.choice([0, 0, 1, 2]))
    board.line([(0, 0), (0, y)], 0.12, (84, 88, 88), POLE)
    board.fill([(-0.24, y), (0.24, y), (0.24, y + 1.15), (-0.24, y + 1.15)], (26, 28, 28), LIGHT)
    for i, glow in enumerate([(240.0, 44.0, 40.0), (250.0, 186.0, 40.0), (60.0, 220.0, 130.0)]):
        board.disc((0, y + 0.94 - 0.36 * i), 0.14, glow if i == lit else scaled(glow, 0.25), LIGHT)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A trunk with a crown of many leaves."""
    board, high, wide = Board(canvas, x, z), rng.uniform(4.2, 8.5), rng.uniform(1.2, 2.4)
    shadow(canvas, x, z, wide, 1.2, 0.72)
    board.line([(0, 0), (rng.uniform(-0.2, 0.2), 0.7 * high)], rng.uniform(0.2, 0.36), (84, 70, 56), VEGETATION)
    _leaves(board, rng, (0, high - wide * 0.7), (wide, wide * 0.85), 46)


def hedge(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A low bush."""
    board, wide, high = Board(canvas, x, z), rng.uniform(0.7, 1.5), rng.uniform(0.8, 1.7)
    _leaves(board, rng, (0, high * 0.45), (wide, high * 0.5), 26)


def _leaves(
    board: Board, rng: np.random.Generator, middle: tuple[float, float], radii: tuple[float, float], count: int
) -> None:
    green: Colour = (rng.uniform(58, 96), rng.uniform(92, 122), rng.uniform(42, 62))
    turn, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
    for a, r in zip(turn, reach, strict=True):
        dx, dy = r * np.cos(a) * radii[0], r * np.sin(a) * radii[1]
        bright = 0.82 + 0.3 * dy / radii[1] + rng.uniform(-0.16, 0.16)  # crowns are lit from above
        size = rng.uniform(0.16, 0.36) * min(radii)
        board.disc((middle[0] + dx, middle[1] + dy), size, scaled(green, bright), VEGETATION)


def fence(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A fence along the street, from z on: rails and bars over a dark ground."""
    length, high = rng.uniform(6, 14), rng.uniform(0.9, 1.5)
    tone: Colour = pick(rng, ((70, 74, 76), (120, 92, 66), (58, 84, 66)))
    canvas.quads(upright(x, z, z + length, 0, high), scaled(tone, 0.55), FENCE)
    bars = [upright(x, a, a + 0.07, 0.05, high + 0.05) for a in np.arange(z, z + length, 0.3)]
    canvas.quads(np.stack(bars), tone)
    for y in (0.15, high - 0.1):
        canvas.quads(upright(x, z, z + length, y, y + 0.08), scaled(tone, 1.25))


def bin_(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A litter bin: static, a class that no benchmark scores."""
    board = Board(canvas, x, z)
    board.fill([(-0.25, 0), (0.25, 0), (0.28, 0.95), (-0.28, 0.95)], pick(rng, BINS), STATIC)
    board.fill([(-0.3, 0.88), (0.3, 0.88), (0.26, 1.05), (-0.26, 1.05)], (44, 46, 46), STATIC)
