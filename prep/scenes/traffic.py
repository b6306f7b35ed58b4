"""What moves along a street: cars, people, cyclists. See `prep.scenes`.

Every function draws one thing at x metres to the right and z metres ahead.
"""

from __future__ import annotations

import numpy as np

from prep.scenes.canvas import Board, Canvas, Colour, Points, pick, scaled, shadow

PERSON, RIDER, CAR, BICYCLE = 24, 25, 26, 33  # Cityscapes label ids

PAINTS: tuple[Colour, ...] = (
    (178, 182, 186),
    (44, 46, 52),
    (226, 226, 222),
    (140, 30, 34),
    (38, 62, 120),
    (92, 100, 104),
    (60, 84, 66),
    (196, 160, 62),
)
CLOTHES: tuple[Colour, ...] = ((40, 44, 70), (150, 42, 46), (70, 90, 76), (198, 190, 176), (34, 34, 36), (70, 110, 160))
SKIN: tuple[Colour, ...] = ((224, 178, 148), (150, 104, 76), (198, 146, 112))


def car(canvas: Canvas, rng: np.random.Generator, x: float, z: float, oncoming: bool) -> None:
    """A car that is seen from behind, or from the front where it comes towards us."""
    paint, n = pick(rng, PAINTS), canvas.new_instance(CAR)
    half, length, high = rng.uniform(0.82, 0.98), rng.uniform(3.7, 4.8), rng.uniform(1.4, 1.75)
    waist = 0.58 * high
    shadow(canvas, x, z + length / 2, half + 0.35, length / 2 + 0.5)
    side = -1.0 if x > 0 else 1.0  # the flank that faces the camera
    flank = x + side * half
    dark, glass = scaled(paint, 0.72), (38.0, 46.0, 54.0)
    _wheels(canvas, flank, side, z, length, n)
    body = [(flank, 0.2, z), (flank, 0.2, z + length), (flank, waist, z + length), (flank, waist, z)]
    canvas.quads(np.array(body), dark, CAR, n)
    top = [(x - half, waist, z), (x + half, waist, z), (x + half, waist, z + length), (x - half, waist, z + length)]
    canvas.quads(np.array(top), scaled(paint, 1.15), CAR, n)
    f0, f1 = (1.1, 0.4) if oncoming else (0.35, 1.2)  # where the cabin begins and ends
    roof = flank - side * 0.18
    cabin = [
        (flank, waist, z + f0), (flank, waist, z + length - f1),
        (roof, high, z + length - f1 - 0.5), (roof, high, z + f0 + 0.55),
    ]  # fmt: skip
    canvas.quads(np.array(cabin), glass, CAR, n)
    canvas.quads(_rear(x, half - 0.02, half - 0.2, waist, high, z + f0, 0.55), scaled(paint, 0.9), CAR, n)
    canvas.quads(_rear(x, half - 0.12, half - 0.28, waist + 0.05, high - 0.1, z + f0, 0.5), glass, CAR, n)
    canvas.quads(_rear(x, half, half, 0.2, waist, z, 0.0), paint, CAR, n)
    _front(canvas, (x, z), half, waist, oncoming, n)


def _rear(x: float, low: float, high: float, y0: float, y1: float, z: float, lean: float) -> Points:
    return np.array([(x - low, y0, z), (x + low, y0, z), (x + high, y1, z + lean), (x - high, y1, z + lean)])


def _wheels(canvas: Canvas, flank: float, side: float, z: float, length: float, n: int) -> None:
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for middle in (z + 0.85, z + length - 0.85):
        tyre = np.stack([0 * turn + flank, 0.33 + 0.33 * np.sin(turn), middle + 0.33 * np.cos(turn)], axis=-1)
        canvas.quads(tyre, (26, 26, 28), CAR, n)
        inner = tyre - np.array([side * 0.25, 0, 0])
        canvas.quads(inner, (20, 20, 22), CAR, n)


def _front(canvas: Canvas, place: tuple[float, float], half: float, waist: float, oncoming: bool, n: int) -> None:
    """Lamps, plate, bumper and the two tyres below."""
    x, z = place
    lamp: Colour = (250, 246, 226) if oncoming else (190, 26, 30)
    for s in (-1, 1):
        a, b, y = x + s * (half - 0.02), x + s * (half - 0.32), 0.66 * waist
        canvas.quads(np.array([(a, y, z), (b, y, z), (b, y + 0.17, z), (a, y + 0.17, z)]), lamp)
        canvas.quads(_rear(x + s * (half - 0.17), 0.12, 0.12, 0.0, 0.3, z, 0.0), (24, 24, 26), CAR, n)
    canvas.quads(_rear(x, 0.26, 0.26, 0.42, 0.55, z, 0.0), (222, 222, 214))
    canvas.quads(_rear(x, half, half, 0.2, 0.36, z, 0.0), (40, 40, 42))


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Somebody who walks or stands."""
    board, n = Board(canvas, x, z), canvas.new_instance(PERSON)
    h = rng.uniform(1.5, 1.9)
    coat, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES[3:]), pick(rng, SKIN)
    stride, swing = rng.uniform(0.04, 0.26), rng.uniform(0.02, 0.16)
    shadow(canvas, x, z, 0.35, 0.3, 0.7)
    for s in (-1, 1):
        board.line([(s * 0.05, 0.5 * h), (s * (0.05 + stride), 0.03)], 0.15, trousers, PERSON, n)
        board.line([(s * 0.19, 0.8 * h), (s * (0.21 + swing), 0.48 * h)], 0.1, scaled(coat, 0.85), PERSON, n)
    torso = [
        (-0.16, 0.45 * h),
        (0.16, 0.45 * h),
        (0.22, 0.82 * h),
        (0.08, 0.86 * h),
        (-0.08, 0.86 * h),
        (-0.22, 0.82 * h),
    ]
    board.fill(torso, coat, PERSON, n)
    board.disc((0, 0.93 * h), 0.115, skin, PERSON, n)
    board.disc((0, 0.96 * h), 0.1, scaled(skin, rng.uniform(0.25, 0.6)), PERSON, n)
    if rng.random() < 0.35:
        board.fill(
            [(0.14, 0.4 * h), (0.36, 0.4 * h), (0.36, 0.58 * h), (0.14, 0.58 * h)], pick(rng, CLOTHES), PERSON, n
        )


def cyclist(canvas: Canvas, rng: np.random.Generator, x: float, z: float, ridden: bool = True) -> None:
    """A bicycle seen from the side, with or without its rider."""
    board, n, s = Board(canvas, x, z), canvas.new_instance(BICYCLE), float(rng.choice([-1, 1]))
    paint = pick(rng, PAINTS)
    shadow(canvas, x, z, 0.85, 0.3, 0.7)
    for a in (-0.52, 0.52):
        board.ring((a, 0.34), 0.32, 0.05, (28, 28, 30), BICYCLE, n)
    back, front, pedal, saddle, head = (
        (-0.52 * s, 0.34),
        (0.52 * s, 0.34),
        (-0.05 * s, 0.3),
        (-0.2 * s, 0.9),
        (0.4 * s, 0.86),
    )
    for part in ([back, pedal, saddle, back], [pedal, head, saddle], [front, head, (0.36 * s, 1.02), (0.5 * s, 1.05)]):
        board.line(part, 0.045, paint, BICYCLE, n)
    board.line([(-0.32 * s, 0.93), (-0.1 * s, 0.93)], 0.07, (30, 30, 30), BICYCLE, n)
    if ridden:
        _rider(board, rng, s, canvas.new_instance(RIDER))


def _rider(board: Board, rng: np.random.Generator, s: float, n: int) -> None:
    coat, trousers = pick(rng, CLOTHES), pick(rng, CLOTHES[3:])
    hip, neck, knee = (-0.2 * s, 0.98), (0.08 * s, 1.5), (0.16 * s, 0.72)
    board.line([hip, knee, (-0.02 * s, 0.24)], 0.14, trousers, RIDER, n)
    board.line([hip, neck], 0.3, coat, RIDER, n)
    board.line([neck, (0.3 * s, 1.2), (0.44 * s, 1.06)], 0.1, scaled(coat, 0.85), RIDER, n)
    board.disc((0.14 * s, 1.68), 0.12, pick(rng, SKIN), RIDER, n)
    board.disc((0.13 * s, 1.72), 0.12, pick(rng, PAINTS), RIDER, n)
