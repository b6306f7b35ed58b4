"""The recipes of LarvSeg: the paper's settings and Table 3; each trains a step of its mixture, small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from shards.classes import ClassTable
from tests.train.conftest import Call
from tests.train.shardset import Raw, scene, write
from train.checkpoint import load
from train.config import FOLDER, load_recipe, recipe_names
from train.mixture import check, turns
from train.objective_mixed import remembered
from train.run import open_run
from train.sources import open_all

BASE, TAGGED = ClassTable.make(("road", "wall", "bus")), ClassTable.make(("road", "wall", "car", "person"))


class Row(NamedTuple):
    """A row of Tables 3 and 4."""

    dataset: str
    scores: tuple[float, ...]  # mIoU of all, base, novel classes; () where the paper prints none
    quotas: tuple[int, ...]  # GPUs of 8
    image_weight: float = 0.1
    attention_weight: float = 0.1
    sampled: int = 0
    silent: tuple[str, ...] = ()  # sources without attention


A150, A847 = "ade20k", "ade20k-full"
ROWS = {
    "larvseg-wa150-baseline": Row(A150, (28.5, 40.9, 20.8), (1, 1), attention_weight=0),
    "larvseg-wa150": Row(A150, (32.4, 41.3, 26.8), (1, 1)),
    "larvseg-wa150-i124-baseline": Row(A150, (31.3, 40.7, 25.3), (3, 3, 2), 0.2, attention_weight=0),
    "larvseg-wa150-i124": Row(A150, (33.7, 41.3, 28.8), (3, 3, 2), 0.2),
    "larvseg-wa150-i124-ade-attention": Row(A150, (33.1, 41.0, 28.2), (3, 3, 2), 0.2, silent=("objects",)),
    "larvseg-wa150-i124-imagenet-attention": Row(A150, (32.1, 40.8, 26.6), (3, 3, 2), 0.2, silent=("tags",)),
    "larvseg-wa847-baseline": Row(A847, (8.9, 28.7, 6.6), (1, 1), attention_weight=0, sampled=100),
    "larvseg-wa847": Row(A847, (10.9, 29.0, 8.7), (1, 1), sampled=100),
    "larvseg-wa847-i585-baseline": Row(A847, (11.9, 28.5, 9.9), (3, 3, 2), 0.2, attention_weight=0, sampled=100),
    "larvseg-wa847-i585": Row(A847, (13.2, 30.4, 11.1), (3, 3, 2), 0.2, sampled=100),
    "larvseg-i21k": Row("", (), (1, 1)),
}
SMALL = ("loop.steps=1", "loop.image_every=0", "data.workers=0", "augment.crop=[32,32]", "model.weights=none")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A shard set with pixels of two classes, and one that the images' classes are taken from; two are novel."""
    place = tmp_path_factory.mktemp("larvseg")

    def made(name: str, classes: ClassTable, scenes: list[Raw]) -> Path:
        return write(place / name, {"train": scenes, "weak": scenes}, classes=classes, scales=("1",))

    pixels = made("pixels", BASE, [scene(i, classes=2) for i in range(4)])
    return {"pixels": pixels, "tags": made("tags", TAGGED, [scene(i) for i in range(4)])}


def test_the_table_is_of_all_of_them() -> None:
    names = [name for name in recipe_names() if name.startswith("larvseg-")]
    assert sorted([*ROWS, "larvseg-ccp"]) == names


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_papers(name: str) -> None:
    row, recipe = ROWS[name], load_recipe(name)
    model, optim, schedule, loop, loss = recipe.model, recipe.optim, recipe.schedule, recipe.loop, recipe.loss
    assert (model.arch, model.encoder, model.weights) == ("linear", "vit_base_patch16_224.augreg_in21k", "timm")
    assert (model.head, model.score, model.score_scale, model.drop_path) == ("cosine", "standardised", 1.0, 0.1)
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 1e-3, 0.9, 0)
    assert (schedule.name, schedule.power, schedule.min_lr) == ("poly", 0.9, 1e-5)
    assert (loop.steps, loop.batch) == (1_280_000 if name == "larvseg-i21k" else 320_000, 16)
    assert (recipe.augment.crop, recipe.augment.rescale) == ((512, 512), (0.5, 2.0))
    assert (loss.image_weight, loss.attention_weight) == (row.image_weight, row.attention_weight)
    assert (loss.memory_size, loss.memory_top, loss.foreground, loss.background) == (20, 20, "novel", True)
    assert loss.sampled_classes == row.sampled
    assert recipe.mixture is not None
    assert tuple(source.name for source in recipe.mixture.sources if not source.attention) == row.silent
    assert turns(recipe.mixture).quotas == row.quotas
    assert [source.labels for source in recipe.mixture.sources] == ["pixel", *["image"] * (len(row.quotas) - 1)]
    crops = {source.name: source.crop for source in recipe.mixture.sources}
    assert {crop for source, crop in crops.items() if source != "objects"} == {None}
    assert crops.get("objects", (320, 320)) == (320, 320)
    metrics = ("miou", "miou_base", "miou_novel")
    expected = [(row.dataset, *pair) for pair in zip(metrics, row.scores, strict=False)]
    assert [(e.dataset, e.metric, e.value) for e in recipe.expected] == expected
    assert all(str(score) in _text(name) for score in row.scores)


@pytest.mark.parametrize("name", ROWS)
def test_a_step_is_the_same_on_one_two_four_and_eight_gpus(name: str) -> None:
    """By the comment: loop.accumulate = 8 / N."""
    for ranks in (1, 2, 4, 8):
        check(load_recipe(name, [f"loop.accumulate={8 // ranks}"]), ranks)


@pytest.mark.parametrize("name", [*ROWS, "larvseg-ccp"])
def test_each_trains_a_step_with_the_shard_sets_of_its_comment(
    call: Call, folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    named = re.findall(r"--shards ([a-z-]+)=(\S+)", _text(name))
    recipe = load_recipe(name)
    assert [source for source, _ in named] == [source.name for source in recipe.mixture.sources]
    given = [f"{source}={folders.get(source, folders['tags'])}" for source, _ in named]
    parts = recipe.mixture.parts
    encoder = "mobilenetv3_small_050" if name == "larvseg-ccp" else "test_vit"
    batch = 2 * parts if name == "larvseg-ccp" else parts  # BatchNorm wants two images
    settings = [word for one in (*SMALL, f"model.encoder={encoder}", f"loop.batch={batch}") for word in ("--set", one)]
    words = [word for one in given for word in ("--shards", one)]
    code, out, err = call("seg-train", *words, "--recipe", name, "--out", tmp_path, "--device", "cpu", *settings)
    assert code == 0, err
    assert re.search(r"done: step 1, loss \d", out)
    run = open_run(tmp_path)
    assert run.space.classes.names == ("road", "wall", "bus", "car", "person")
    held = remembered(run.recipe, run.space)
    assert held == ([] if name.endswith("-baseline") else [3, 4])
    saved = load(tmp_path / "checkpoint.pt").model
    assert ("bank.count" in saved) == bool(held)
    assert not held or saved["bank.count"].sum() > 0  # tags of novel classes were remembered


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("larvseg-wa150", ["loss.attention=image"]),
        ("larvseg-wa150", ["loss.memory_size=10"]),
        ("larvseg-wa150", ["loss.memory_top=10"]),
        ("larvseg-i21k", ["loss.memory_form=running"]),
        ("larvseg-ccp", ["loss.attention_weight=0"]),
    ],
)
def test_rows_that_a_comment_reaches_by_a_setting(name: str, settings: list[str]) -> None:
    text = " ".join(line.removeprefix("# ") for line in _text(name).splitlines())
    assert all(f"--set {setting}" in text for setting in settings)
    load_recipe(name, settings)


def test_of_21_841_classes_no_loss_has_a_number_for_each_cell_and_class(folders: dict[str, Path]) -> None:
    """Pixels are judged at the features' stride, among their own source's classes, and a memory fits."""
    recipe = load_recipe("larvseg-i21k")
    assert recipe.data.target_stride == recipe.model.output_stride == 16
    assert [source.known for source in recipe.mixture.sources] == ["own", "own"]
    assert recipe.loss.memory_dtype == "float16"
    opened = open_all([f"pixels={folders['pixels']}", f"objects={folders['tags']}"], recipe)
    assert opened.space.known[0].tolist() == [True, True, True, False, False]


def _text(name: str) -> str:
    """A recipe's comment."""
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8").partition("\nextends")[0].partition("\ndescr")[0]
