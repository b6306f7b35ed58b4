"""Grouping by features (LarvSeg, section 3.2): scores against loops over pixels, draws, pictures, the command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from shards import resize_image_to
from shards.classes import ClassTable
from shards.errors import SettingsError
from shards.order import generator
from tests.train.conftest import MAINS, Call
from tests.train.shardset import scene, write
from tests.train.test_cli import RECIPE
from train.distributed import World
from train.evaluate import Example, Split, open_split
from train.figure import Entry, heat, marked, sheet, with_legend
from train.grouping import FeatureGrid, draw_responses, features_of, score_groups
from train.inference import Views, load_model, views_of
from train.models.segmentation import SegmentationModel
from train.run import open_run

CPU = torch.device("cpu")
WORLD = World(CPU)
ALL = np.ones(4, bool)


class Pooled(nn.Module):
    """A feature map at stride 4: mean colours, centred."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images, 4)]


def network() -> SegmentationModel:
    """Knows colours, at stride 4, of images padded to multiples of 8; has no classes worth the name."""
    parts = {"encoder": Pooled(), "decoder": nn.Identity(), "mean": (0.4, 0.4, 0.4), "std": (1.0, 1.0, 1.0)}
    return SegmentationModel(**parts, multiple=8).eval()


def unit_cells(image: np.ndarray) -> np.ndarray:
    """By hand: float64 [h / 4, w / 4, 3] unit vectors of an image, padded at the right and below with its mean."""
    h, w = image.shape[:2]
    padded = np.full((h + -h % 8, w + -w % 8, 3), 0.0)
    padded[:h, :w] = (image.astype(float) - 255 * 0.4) / 255
    cells = padded.reshape(padded.shape[0] // 4, 4, padded.shape[1] // 4, 4, 3).mean((1, 3))
    return cells / np.linalg.norm(cells, axis=-1, keepdims=True)


def assigned(example: Example, ids: list[int], seed: int, repeat: int, names: tuple[str, ...]) -> np.ndarray:
    """By hand: each pixel's category, from drawn pixels, cosines, and OpenCV's bilinear resize."""
    cells = unit_cells(example.shown)
    maps = []
    for klass in ids:
        ys, xs = np.nonzero(example.hard == klass)
        place = int(generator("grouping", seed, repeat, example.key, names[klass]).integers(len(ys)))
        cosine = cells @ cells[ys[place] // 4, xs[place] // 4]
        maps.append(cv2.resize(cosine, (cells.shape[1] * 4, cells.shape[0] * 4), interpolation=cv2.INTER_LINEAR))
    h, w = example.hard.shape
    return np.array(ids)[np.argmax(maps, 0)][:h, :w]


def by_hand(split: Split, chosen: np.ndarray, rivals: str, seed: int, repeat: int) -> dict[str, float]:
    both, either = np.zeros(4), np.zeros(4)
    for example in split.examples(range(split.samples)):
        present = [k for k in range(4) if (example.hard == k).any()]
        if not any(chosen[k] for k in present):
            continue
        ids = present if rivals == "present" else [k for k in present if chosen[k]]
        answer = assigned(example, ids, seed, repeat, split.classes.names)
        judged = np.isin(example.hard, ids)
        for k in range(4):
            both[k] += ((answer == k) & (example.hard == k) & judged).sum()
            either[k] += (((answer == k) | (example.hard == k)) & judged).sum()
    return {split.classes.names[k]: both[k] / either[k] for k in range(4) if chosen[k]}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Three scenes of 61 x 93, one without people: nothing divides the grid."""
    raws = [scene(i, (61, 93)) for i in range(2)] + [scene(2, (61, 93), classes=3)]
    folder = write(tmp_path_factory.mktemp("odd") / "set", {"val": raws}, filter="bilinear", scales=("1",))
    return open_split(folder, "val", "1")


@pytest.mark.parametrize("rivals", ["present", "scored"])
@pytest.mark.parametrize("chosen", [ALL, np.array([False, False, True, True]), np.array([False, False, False, True])])
def test_scores_against_loops(odd: Split, chosen: np.ndarray, rivals: str) -> None:
    found = score_groups(network(), odd, Views(), WORLD, chosen, rivals, seed=3, repeats=2)
    want = [by_hand(odd, chosen, rivals, 3, repeat) for repeat in range(2)]
    mious = [np.mean(list(w.values())) for w in want]
    assert found["mious"] == pytest.approx(mious, abs=2e-4)
    assert found["miou"] == pytest.approx(np.mean(mious), abs=2e-4)
    assert found["miou_deviation"] == pytest.approx(np.std(mious, ddof=1), abs=2e-4)
    assert found["per_class"] == pytest.approx({n: (want[0][n] + want[1][n]) / 2 for n in want[0]}, abs=2e-4)
    assert (found["images"], found["categories"]) == (2 if chosen.sum() == 1 else 3, chosen.sum())


def test_draws_depend_on_seed_sample_and_category_alone(odd: Split) -> None:
    """Not on what else is scored, on the ranks, or on how many samples are looked at."""
    model = network()
    first = score_groups(model, odd, Views(), WORLD, ALL, seed=1)
    assert first == score_groups(model, odd, Views(), WORLD, ALL, seed=1)
    assert first["miou"] != score_groups(model, odd, Views(), WORLD, ALL, seed=2)["miou"]
    assert first["miou_deviation"] is None
    more = score_groups(model, odd, Views(), WORLD, ALL, seed=1, repeats=3)
    assert more["mious"][0] == first["miou"]
    assert len(set(more["mious"])) == 3


def test_ranks_share_the_images(odd: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, tables = score_groups(network(), odd, Views(), WORLD, ALL), []
    monkeypatch.setattr(World, "sum_counts", lambda self, table: tables.append(table.clone()) or table)
    for rank in range(2):
        score_groups(network(), odd, Views(), World(CPU, rank, 2), ALL)
    again: list[int] = []
    monkeypatch.setattr(
        World, "sum_counts", lambda self, table: again.append(0) or tables[len(again) - 1] + tables[len(again) + 1]
    )
    assert score_groups(network(), odd, Views(), World(CPU, 0, 2), ALL) == whole


def test_nothing_to_score(odd: Split) -> None:
    with pytest.raises(SettingsError, match="found no chosen category in these samples"):
        score_groups(network(), odd, Views(), WORLD, np.array([False, False, False, True]), limit=0)


def test_cells_of_pixels_and_padding() -> None:
    """An image of 5 x 9 shown for a map of 10 x 18: two pixels a cell edge of 1; the grid goes beyond the image."""
    grid = FeatureGrid(torch.randn(3, 4, 6), (8, 12), (5, 9))  # cells of 2 x 2 shown pixels, 4 x 4 of the map
    cells = {(y, x): grid.cell(y, x, (10, 18)) for y in range(10) for x in range(18)}
    assert cells == {(y, x): (y // 4, x // 4) for y in range(10) for x in range(18)}
    assert grid.responses([(0, 0), (9, 17)], (10, 18)).shape == (2, 5, 9)


def test_a_pixel_responds_to_itself_most(odd: Split) -> None:
    example = next(odd.examples(range(1)))
    grid = features_of(network(), example.shown, Views(), CPU)
    assert tuple(grid.cells.shape[1:]) == (16, 24)
    assert grid.cells.permute(1, 2, 0).numpy() == pytest.approx(unit_cells(example.shown), abs=1e-5)
    row, column = grid.cell(30, 50, (61, 93))
    cosines = torch.einsum("d,dhw->hw", grid.cells[:, row, column], grid.cells)
    assert float(cosines[row, column]) == pytest.approx(1)
    assert float(cosines.max()) < 1 + 1e-5


def test_images_are_looked_at_at_the_first_scale() -> None:
    """Half as large: the same as the smaller image, for points of a map of any size."""
    image = scene(1, (64, 96)).image
    half = features_of(network(), image, Views((0.5, 2.0), flip=True), CPU)
    small = features_of(network(), resize_image_to(image, (32, 48), "triangle"), Views(), CPU)
    assert torch.equal(half.cells, small.cells)
    assert (half.shown, half.padded) == ((32, 48), (32, 48))
    assert half.cell(63, 95, (64, 96)) == (7, 11)


def test_tiny_images_are_grown() -> None:
    grid = features_of(network(), scene(0, (36, 40)).image[:9, :9], Views(), CPU)
    assert (grid.padded, grid.shown) == ((32, 32), (9, 9))
    assert grid.responses([(8, 8)], (9, 9)).shape == (1, 9, 9)


# --- pictures ----------------------------------------------------------------------------------------------------


def test_heat_marks_and_sheets() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    values = np.zeros((20, 30))
    values[:, 15:] = 1
    hot = heat(image, values, 0, 1)
    assert int(hot[0, 0, 2]) > int(hot[0, 0, 0])  # blue the least
    assert int(hot[0, 29, 0]) > int(hot[0, 29, 2])  # red the most
    assert np.array_equal(heat(image, values * 7 - 3, 0, 1), hot)
    dot = marked(image, 10, 4)
    assert tuple(dot[10, 4]) == (255, 255, 255)
    assert (image == 100).all()
    assert tuple(dot[19, 29]) == (100, 100, 100)
    page = sheet([("a", image), ("a very long caption that cannot fit", hot), ("c", dot), ("d", image), ("e", image)])
    assert page.shape == (2 * (18 + 20), 3 * 34 - 4, 3)
    assert np.array_equal(page[18:38, 34:64], hot)
    assert page[:18, 34:64].min() < 200  # something is written, and nothing beside it
    assert (page[:38, 64:68] == 255).all()


def test_legends_name_colours() -> None:
    image = np.zeros((20, 300, 3), np.uint8)
    entries = [Entry((255, 0, 0), "wall"), Entry((0, 0, 255), "sofá, 沙发"), Entry((9, 9, 9), "x" * 500)]
    page = with_legend(image, entries)
    assert page.shape == (20 + 3 * 18 + 8, 300, 3)
    assert np.array_equal(page[:20], image)
    reds = (page == (255, 0, 0)).all(-1).nonzero()
    blues = (page == (0, 0, 255)).all(-1).nonzero()
    assert (reds[0].min() > 20) & (reds[0].max() < blues[0].min())
    assert with_legend(image, []) is image
    assert with_legend(image[:, :10], entries[:2]).shape[1] == 240
    assert with_legend(image, entries[:2]).shape[0] < with_legend(image[:, :240], [*entries[:2]] * 4).shape[0]


# --- as people call it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    place = tmp_path_factory.mktemp("grouping")
    (place / "tiny.toml").write_text(RECIPE)
    words = ["--shards", str(shard_set), "--recipe", str(place / "tiny.toml"), "--out", str(place / "run"), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["seg-train", *words, "--set", "loop.steps=1"])
        with pytest.raises(SystemExit) as ended:
            MAINS["seg-train"]()
    assert ended.value.code in (0, None)
    return place / "run"


def test_the_command_scores_other_categories(call: Call, folder: Path, tmp_path: Path) -> None:
    """The shard set has categories that the run has never heard of: they are novel."""
    names = ClassTable.make(("road", "wall", "sofa", "lamp"))
    other = write(tmp_path / "o", {"val": [scene(i) for i in range(2)]}, classes=names)
    words = ("seg-grouping", "score", "--run", folder, "--shards", other, "--json", tmp_path / "s.json")
    code, out, err = call(*words, "--classes", "novel", "--repeats", 2, "--seed", 5)
    assert code == 0, err
    assert "2 categories (novel) in 2 images; features: the encoder's last feature map" in out
    assert "over 2 draws" in out
    scores = json.loads((tmp_path / "s.json").read_text())
    assert list(scores["per_class"]) == ["sofa", "lamp"]
    run = open_run(folder)
    model, _ = load_model(run, CPU)
    mask = np.array([False, False, True, True])
    want = score_groups(model, open_split(other, "val", "1/2"), views_of(run.recipe, CPU), WORLD, mask, "present", 5, 2)
    assert scores["mious"] == want["mious"]
    (tmp_path / "base.txt").write_text("sofa\n")
    code, out, err = call(*words, "--classes", "base", "--base", tmp_path / "base.txt")
    assert (code, list(json.loads((tmp_path / "s.json").read_text())["per_class"])) == (0, ["sofa"]), err


def test_the_command_draws_response_maps(call: Call, folder: Path, tmp_path: Path) -> None:
    image = scene(4).image
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ("seg-grouping", "click", "--run", folder, "--image", tmp_path / "a.png", "--out", tmp_path / "n" / "o.png")
    code, out, err = call(*words, "--at", "20,10", "--at", "70,60")
    assert code == 0, err
    assert "2 maps" in out
    picture = np.array(Image.open(tmp_path / "n" / "o.png"))
    assert picture.shape == (18 + 64, 3 * 100 - 4, 3)
    run = open_run(folder)
    model, _ = load_model(run, CPU)
    assert np.array_equal(picture, draw_responses(model, run, image, [(20, 10), (70, 60)], Views(), CPU))
    assert tuple(picture[18 + 10, 20]) == tuple(picture[18 + 10, 100 + 20]) == (255, 255, 255)
    assert tuple(picture[18 + 60, 200 + 70]) == (255, 255, 255)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--at", "20"), "--at '20': expected a pixel as X,Y"),
        (("--at", "1,-2"), "--at '1,-2': expected"),
        (("--at", "96,0"), "--at 96,0: outside of"),
        (("--at", "0,64"), "which is 96 x 64 pixels"),
        (("--at", "0,0", "--out", "x.jpg"), "expected a name that ends in .png"),
        ((), "Missing option '--at'"),
    ],
)
def test_clicks_that_are_refused(call: Call, folder: Path, tmp_path: Path, words: tuple[str, ...], found: str) -> None:
    Image.fromarray(scene(4).image).save(tmp_path / "a.png")
    given = ("--run", folder, "--image", tmp_path / "a.png", "--out", tmp_path / "o.png")
    code, out, err = call("seg-grouping", "click", *given, *words)
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert found in err


def test_scores_that_are_refused(call: Call, folder: Path, shard_set: Path) -> None:
    words = ("seg-grouping", "score", "--run", folder, "--shards", shard_set)
    code, _, err = call(*words, "--classes", "novel")  # the run knows all four
    assert code == 2
    assert "--classes novel" in err
    assert "has no such class" in err
