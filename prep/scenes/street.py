"""What stands still in a procedural scene: sky, ground, houses. Drawn first, from far to near. See `prep.scenes`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from prep.scenes.canvas import Camera, Canvas, Colour, Points, scaled, upright

ROAD, SIDEWALK, BUILDING, VEGETATION, TERRAIN, SKY = 7, 8, 11, 21, 22, 23  # Cityscapes label ids
FAR = 110.0  # metres: where the street ends
NOISE_SIZE = 1024

FACADES: tuple[Colour, ...] = (
    (196, 178, 150),
    (168, 120, 98),
    (210, 200, 186),
    (150, 148, 146),
    (188, 152, 108),
    (126, 110, 104),
    (176, 186, 190),
    (206, 172, 142),
)


@dataclass(frozen=True)
class Street:
    """The plan of one street: half widths in metres, and the light.

    Args:
        road: half the road's width.
        walk: x at which the sidewalk ends, from the middle.
        front: x at which houses begin; between walk and front lies grass.
        sun: -1 or +1, the side that is lit.
        light: brightness of the day, about 1.
        tint: factors for red, green and blue.
    """

    road: float
    walk: float
    front: float
    sun: int
    light: float
    tint: Colour

    @staticmethod
    def draw(rng: np.random.Generator) -> Street:
        """A random plan."""
        road = rng.uniform(3.6, 6.4)
        walk = road + rng.uniform(2.2, 4.0)
        front = walk + rng.choice([0.0, 0.0, rng.uniform(1.5, 5)])
        warm = rng.uniform(-0.06, 0.08)
        sun = int(rng.choice([-1, 1]))
        return Street(road, walk, front, sun, rng.uniform(0.72, 1.08), (1 + warm, 1.0, 1 - warm))


def noise(rng: np.random.Generator, octaves: tuple[int, ...]) -> Points:
    """Smooth noise [NOISE_SIZE, NOISE_SIZE] of mean 0 and deviation 1, the sum of grids with the given cell sizes."""
    total = np.zeros((NOISE_SIZE, NOISE_SIZE))
    for cell in octaves:
        grid = rng.standard_normal((max(2, NOISE_SIZE // cell), max(2, NOISE_SIZE // cell))).astype(np.float32)
        total += cv2.resize(grid, (NOISE_SIZE, NOISE_SIZE), interpolation=cv2.INTER_LINEAR)
    return np.asarray((total - total.mean()) / total.std())


def camera(rng: np.random.Generator, height: int, width: int) -> Camera:
    """A car's camera for a final size, with a little play in every measure."""
    focal = 2 * width * rng.uniform(0.72, 0.95)
    return Camera(focal, width * rng.uniform(0.85, 1.15), 2 * height * rng.uniform(0.38, 0.47), rng.uniform(1.3, 1.7))


def sky(canvas: Canvas, rng: np.random.Generator, clouds: Points) -> None:
    """A gradient from the zenith to the haze, with clouds."""
    h, w = canvas.label.shape
    top: Colour = ((92, 138, 200), (140, 160, 186), (172, 178, 186), (112, 150, 206))[int(rng.integers(4))]
    t = np.linspace(0, 1, h)[:, None, None] ** 0.7
    t = np.minimum(t * h / max(canvas.camera.horizon, 1), 1)
    base = np.asarray(top) * (1 - t) + np.asarray(canvas.haze) * t  # [h, 1, 3]
    y, x = rng.integers(0, NOISE_SIZE // 2, 2)
    field = clouds[y : y + NOISE_SIZE // 3, x : x + NOISE_SIZE // 2]
    cover = cv2.resize(field, (w, h), interpolation=cv2.INTER_LINEAR)[..., None]
    cover = np.clip(cover * 0.35 + rng.uniform(-0.2, 0.35), 0, 0.8)
    canvas.colour[:] = np.clip(base * (1 - cover) + np.asarray((236, 238, 240)) * cover, 0, 255)
    canvas.label[:] = SKY
    canvas.instance[:] = SKY


def ground_quad(x0: float, x1: float, z0: float, z1: float, y: float = 0.0) -> Points:
    """A rectangle on the ground, [4, 3] metres."""
    return np.array([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)], dtype=np.float64)


def ground(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """Grass, sidewalks with slabs and kerb, road with markings."""
    grass: Colour = (rng.uniform(90, 130), rng.uniform(112, 135), rng.uniform(60, 80))
    canvas.quads(ground_quad(-200, 200, 1, 900), grass, TERRAIN)
    tone = rng.uniform(128, 172)
    slab: Colour = (tone, tone - rng.uniform(2, 10), tone - rng.uniform(6, 20))
    for s in (-1, 1):
        canvas.quads(ground_quad(s * street.road, s * street.walk, 1, FAR), slab, SIDEWALK)
        joints = [
            ground_quad(s * street.road, s * street.walk, z, z + 0.05) for z in np.arange(2, 34, rng.uniform(1, 2))
        ]
        canvas.quads(np.stack(joints), scaled(slab, 0.82))
        canvas.quads(ground_quad(s * street.road, s * (street.road + 0.25), 1, FAR), scaled(slab, 1.22), SIDEWALK)
    asphalt = rng.uniform(74, 112)
    canvas.quads(ground_quad(-street.road, street.road, 1, FAR), (asphalt, asphalt, asphalt + 4), ROAD)
    _markings(canvas, rng, street)


def _markings(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    paint: Colour = (205, 205, 200)
    dashes = [ground_quad(-0.08, 0.08, z, z + 3) for z in np.arange(rng.uniform(1, 6), FAR - 10, 7.5)]
    canvas.quads(np.stack(dashes), paint)
    edge = street.road - rng.uniform(0.3, 2.2)
    for s in (-1, 1):
        if rng.random() < 0.7:
            canvas.quads(ground_quad(s * edge, s * (edge + 0.12), 1, FAR), paint)
    if rng.random() < 0.4:  # a zebra crossing
        z = rng.uniform(8, 22)
        bars = [ground_quad(x, x + 0.5, z, z + 3.2) for x in np.arange(-street.road + 0.3, street.road - 0.5, 1.0)]
        canvas.quads(np.stack(bars), paint)
    for _ in range(int(rng.integers(0, 4))):  # patches of newer asphalt
        x, z = rng.uniform(-street.road, street.road - 1), rng.uniform(5, 30)
        patch = canvas.camera.project(ground_quad(x, x + rng.uniform(0.6, 2), z, z + rng.uniform(1, 6)))
        canvas.shade(patch, rng.uniform(0.8, 0.92))


def skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Far houses and trees that close the view."""
    for _ in range(18):
        x, w, z = rng.uniform(-90, 90), rng.uniform(8, 22), rng.uniform(FAR, FAR + 60)
        box = np.array([(x, 0, z), (x + w, 0, z), (x + w, rng.uniform(6, 22), z), (x, rng.uniform(6, 22), z)])
        if rng.random() < 0.5:
            box[3, 1] = box[2, 1]
            canvas.quads(box, FACADES[int(rng.integers(len(FACADES)))], BUILDING)
        else:
            for a in np.linspace(x, x + w, 9):
                middle = canvas.camera.project(np.array([a, rng.uniform(1, 6), z]))
                r = canvas.camera.pixels(rng.uniform(1.5, 4), z)
                canvas.ellipse(middle, (1.3 * r, r), canvas.hazy((70, 96, 54), z), VEGETATION)


def houses(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """A row of houses on either side, with gaps, drawn from far to near."""
    for s in (-1, 1):
        row: list[tuple[float, float]] = []
        z = rng.uniform(0.5, 3)
        while z < FAR:
            length = rng.uniform(7, 17)
            if rng.random() < 0.84:
                row.append((z, min(z + length, FAR)))
            z += length + rng.choice([0.0, 0.0, rng.uniform(2, 8)])
        for z0, z1 in reversed(row):
            _house(canvas, rng, street, s, z0, z1)


def _house(canvas: Canvas, rng: np.random.Generator, street: Street, s: int, z0: float, z1: float) -> None:
    x, top = s * street.front, rng.uniform(6.5, 19)
    wall = FACADES[int(rng.integers(len(FACADES)))]
    lit = scaled(wall, (1.12 if s != street.sun else 0.72) * rng.uniform(0.88, 1.08))
    gable = np.array([(x, 0, z0), (x + s * 14, 0, z0), (x + s * 14, top, z0), (x, top, z0)])
    canvas.quads(gable, scaled(wall, 0.84), BUILDING)
    canvas.quads(upright(x, z0, z1, 0, top), lit, BUILDING)
    canvas.quads(upright(x, z0, z1, top - 0.5, top), scaled(lit, 0.7))  # the cornice
    canvas.quads(upright(x, z0, z1, 0, rng.uniform(0.4, 1.0)), scaled(lit, 0.72))
    storey, bay = rng.uniform(2.8, 3.6), rng.uniform(2.0, 3.2)
    pane: Colour = (rng.uniform(44, 90), rng.uniform(54, 100), rng.uniform(66, 116))
    wide, tall = rng.uniform(0.42, 0.62) * bay, rng.uniform(0.45, 0.62) * storey
    frames, panes = [], []
    for y in np.arange(storey + 0.7, top - tall - 0.6, storey):
        for z in np.arange(z0 + 0.7, z1 - wide - 0.3, bay):
            frames.append(upright(x, z - 0.12, z + wide + 0.12, y - 0.12, y + tall + 0.12))
            panes.append(upright(x, z, z + wide, y, y + tall))
    if panes:
        canvas.quads(np.stack(frames), scaled(lit, rng.choice([0.75, 1.25])))
        for part in np.array_split(np.stack(panes), 3):  # panes reflect differently
            if len(part):
                canvas.quads(part, scaled(pane, rng.uniform(0.7, 1.6)))
    _ground_floor(canvas, rng, x, z0, z1)


def _ground_floor(canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float) -> None:
    """Doors or shop windows, now and then under an awning."""
    shop = rng.random() < 0.5
    for z in np.arange(z0 + 0.8, z1 - 2.2, rng.uniform(2.6, 4.0)):
        wide = 2.0 if shop else 1.1
        canvas.quads(upright(x, z, z + wide, 0.5 if shop else 0, 2.5), (48, 46, 52) if shop else (86, 58, 42))
    if shop and rng.random() < 0.6:
        awning: Colour = (rng.uniform(90, 190), rng.uniform(40, 120), rng.uniform(40, 110))
        canvas.quads(upright(x, z0 + 0.5, z1 - 0.5, 2.6, 3.2), awning)
