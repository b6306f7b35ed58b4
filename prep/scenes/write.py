"""Procedural street scenes in Cityscapes' directory layout: something to train on before any dataset is downloaded.

    python -m prep.scenes data/demo-raw
    python -m prep.scenes data/demo-raw --train 64 --val 16 --size 256x512 --seed 0

writes, with Cityscapes' own label ids,

    leftImg8bit/<split>/<city>/<city>_000000_000019_leftImg8bit.png
    gtFine/<split>/<city>/<city>_000000_000019_gtFine_labelIds.png      8 bit
    gtFine/<split>/<city>/<city>_000000_000019_gtFine_instanceIds.png   16 bit, id * 1000 + n for things

A scene depends on the seed, its split and its number alone; a second run writes only what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

from prep.scenes import furniture, traffic
from prep.scenes import street as street_parts
from prep.scenes.canvas import Canvas, Points
from prep.scenes.street import Street
from shards.errors import SettingsError
from shards.terminal import Progress, main_of

CITIES = {"train": ("ahorn", "birke", "erle", "linde"), "val": ("tanne", "ulme")}
EGO_VEHICLE, OUT_OF_ROI = 1, 3
TEXTURE = {7: 0.05, 8: 0.07, 11: 0.045, 13: 0.08, 21: 0.2, 22: 0.16, 26: 0.02, 24: 0.05}  # contrast by label id

Draw = Callable[[], None]


def scene(
    seed: int, split: str, number: int, size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """One scene of a size (height, width).

    Returns:
        image uint8 [H, W, 3] (RGB), label ids uint8 [H, W], instance ids uint16 [H, W].
    """
    rng = np.random.default_rng([seed, sorted(CITIES).index(split), number])
    haze = (rng.uniform(198, 222), rng.uniform(206, 224), rng.uniform(212, 232))
    canvas = Canvas(*size, street_parts.camera(rng, *size), haze)
    street = Street.draw(rng)
    street_parts.sky(canvas, rng, textures()[1])
    street_parts.skyline(canvas, rng)
    street_parts.ground(canvas, rng, street)
    street_parts.houses(canvas, rng, street)
    for _, draw in sorted(population(canvas, rng, street), key=lambda thing: -thing[0]):
        draw()
    ego_vehicle(canvas, rng)
    return photograph(canvas, rng, street)


def population(canvas: Canvas, rng: np.random.Generator, street: Street) -> list[tuple[float, Draw]]:
    """Everything that stands or moves in the street, as (distance, what draws it)."""
    crowd: list[tuple[float, Draw]] = []

    def put(make: Callable[..., None], x: float, z: float, depth: float = 0.0, **settings: bool) -> None:
        own = np.random.default_rng(rng.integers(1 << 62))  # what one thing draws changes no other
        crowd.append((z + depth, partial(make, canvas, own, x, z, **settings)))

    for s in (-1, 1):
        _furniture(put, rng, street, s)
        for z in np.arange(rng.uniform(5, 14), 80, rng.uniform(6.2, 9)):  # parked cars
            if rng.random() < 0.4:
                put(traffic.car, s * (street.road - 1.0), z + rng.uniform(0, 1), oncoming=bool(s < 0))
    for _ in range(int(rng.integers(1, 4))):
        put(traffic.car, rng.choice([-1, 1]) * 1.5 + rng.uniform(-0.4, 0.4), rng.uniform(9, 60), oncoming=False)
    for _ in range(int(rng.integers(3, 11))):
        side, z = rng.choice([-1, 1]), 5 + 40 * rng.random() ** 1.5
        put(traffic.person, side * rng.uniform(street.road + 0.4, street.walk), z)
    for _ in range(int(rng.integers(0, 3))):  # somebody crosses
        put(traffic.person, rng.uniform(-street.road, street.road), rng.uniform(9, 40))
    for _ in range(int(rng.integers(1, 4))):
        put(traffic.cyclist, rng.uniform(-street.road, street.road), rng.uniform(6, 26))
    return crowd


def _furniture(put: Callable[..., None], rng: np.random.Generator, street: Street, s: int) -> None:
    """Lamps, signs, lights, trees, fences, bicycles and bins along one side."""
    kerb = s * (street.road + 0.5)
    for z in np.arange(rng.uniform(6, 20), 100, rng.uniform(14, 24)):
        put(furniture.lamp_post, kerb, z)
    for _ in range(int(rng.integers(2, 6))):
        put(furniture.sign, kerb + s * rng.uniform(0, 0.4), rng.uniform(5, 45))
    if rng.random() < 0.75:
        for z in (rng.uniform(8, 30), rng.uniform(20, 50)):
            put(furniture.traffic_light, kerb, z)
    green, gap = rng.random(), rng.uniform(5, 11)
    for z in np.arange(rng.uniform(6, 12), 100, gap):
        if rng.random() < green:
            put(furniture.tree, s * rng.uniform(street.walk - 0.6, street.front + 0.2), z)
        if street.front > street.walk and rng.random() < 0.5:
            put(furniture.hedge, s * rng.uniform(street.walk + 0.4, street.front), z + 2)
    if rng.random() < 0.6:
        put(furniture.fence, s * (street.walk - 0.1), rng.uniform(4, 18), depth=12.0)  # all beside it stands before it
    for _ in range(int(rng.integers(0, 3))):
        put(furniture.bin_, s * rng.uniform(street.road + 0.8, street.walk), rng.uniform(5, 25))
        put(traffic.cyclist, s * (street.walk - 0.4), rng.uniform(6, 25), ridden=False)


def ego_vehicle(canvas: Canvas, rng: np.random.Generator) -> None:
    """The bonnet of the car that carries the camera, and two columns outside of the rectified picture."""
    h, w = canvas.label.shape
    middle, radii = np.array([w / 2, 1.06 * h]), (0.62 * w, rng.uniform(0.1, 0.16) * h)
    canvas.ellipse(middle, radii, (52, 54, 58), EGO_VEHICLE)
    canvas.ellipse(middle + np.array([0, 0.03 * h]), (0.5 * w, radii[1]), (72, 76, 84), EGO_VEHICLE)
    for columns in (np.s_[:, :4], np.s_[:, -4:]):
        canvas.colour[columns] = 0
        canvas.label[columns] = canvas.instance[columns] = OUT_OF_ROI


@lru_cache(maxsize=1)
def textures() -> tuple[Points, Points]:
    """Fine and coarse noise [NOISE_SIZE, NOISE_SIZE], the same in every run."""
    rng = np.random.default_rng(20201)
    return street_parts.noise(rng, (1, 2, 4, 16)), street_parts.noise(rng, (16, 48, 128))


def photograph(
    canvas: Canvas, rng: np.random.Generator, street: Street
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Give surfaces their texture, light the scene, and expose it on a sensor of half the canvas' size."""
    h, w = canvas.label.shape
    y, x = rng.integers(0, street_parts.NOISE_SIZE, 2)
    fine = np.roll(textures()[0], (y, x), (0, 1)).astype(np.float32)
    repeats = (-(-h // fine.shape[0]), -(-w // fine.shape[1]))
    grain = np.tile(fine, repeats)[:h, :w]
    contrast = np.zeros(256, np.float32)
    contrast[list(TEXTURE)] = list(TEXTURE.values())
    lit = canvas.colour * (1 + contrast[canvas.label] * grain)[..., None]
    small = cv2.resize(lit, (w // 2, h // 2), interpolation=cv2.INTER_AREA)  # the 2x2 mean
    small *= np.asarray(street.tint, np.float32) * np.float32(street.light)
    small += rng.normal(0, rng.uniform(2, 5), small.shape).astype(np.float32)  # the sensor's noise
    image = np.clip(small, 0, 255).astype(np.uint8)
    return image, canvas.label[::2, ::2].copy(), canvas.instance[::2, ::2].copy()


def write(root: Path, split: str, number: int, seed: int, size: tuple[int, int]) -> bool:
    """Write one scene's three files, the image last; False where it is there already."""
    city = CITIES[split][number % len(CITIES[split])]
    stem = f"{city}_{number // len(CITIES[split]):06d}_000019"
    photo = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    if photo.exists():
        return False
    image, label, instance = scene(seed, split, number, size)
    truth = root / "gtFine" / split / city / f"{stem}_gtFine_"
    _publish(Path(f"{truth}labelIds.png"), label)
    _publish(Path(f"{truth}instanceIds.png"), instance)
    _publish(photo, image[..., ::-1])  # cv2 wants BGR
    return True


def _publish(path: Path, array: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", array)
    if not ok:
        raise OSError(f"{path}: this build of OpenCV does not write PNG")
    partly = path.with_name(f".{path.name}.part")
    partly.write_bytes(data.tobytes())
    partly.replace(path)


def remember(root: Path, settings: dict[str, object]) -> None:
    """Hold a folder to the settings of its first run.

    Raises:
        SettingsError: the folder was begun with others.
    """
    note = root / "scenes.json"
    if note.exists():
        found = json.loads(note.read_text())
        if found != settings:
            raise SettingsError(f"{root} holds scenes of {found}, not {settings}: choose another folder or remove it")
        return
    root.mkdir(parents=True, exist_ok=True)
    partly = note.with_name(".scenes.json.part")
    partly.write_text(json.dumps(settings) + "\n")
    partly.replace(note)


def parse_size(text: str) -> tuple[int, int]:
    """'256x512' to (256, 512).

    Raises:
        SettingsError: it is something else, or no size that fits a street.
    """
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if not match:
        raise SettingsError(f"--size {text}: expected HEIGHTxWIDTH such as 256x512")
    return int(match[1]), int(match[2])


@click.command(epilog="Example: python -m prep.scenes data/demo-raw --train 64 --val 16")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", default=64, show_default=True, type=click.IntRange(0, 999_999), help="Scenes to train on.")
@click.option("--val", default=16, show_default=True, type=click.IntRange(0, 999_999), help="Scenes to evaluate on.")
@click.option("--size", default="256x512", show_default=True, help="HEIGHTxWIDTH of an image.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Another seed, other scenes.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def cli(out: Path, train: int, val: int, size: str, seed: int, quiet: bool) -> None:
    """Write procedural street scenes to OUT, in Cityscapes' directory layout."""
    shape = parse_size(size)
    remember(out, {"size": size, "seed": seed})
    with Progress(train + val, "scenes", quiet) as progress:
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                write(out, split, number, seed, shape)
                progress.advance()


main = main_of(cli)
