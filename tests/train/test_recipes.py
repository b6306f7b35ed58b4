"""The shipped recipes: complete, documented, and faithful to the paper's table."""

from __future__ import annotations

import pytest

from train.config import FOLDER, load_recipe, recipe_names
from train.plan import make_plan

# The soft-label paper's Table 1: (soft, nearest) by architecture and resolution.
TABLE = {
    ("deeplabv3plus", "1-2"): (81.3, 76.1),
    ("deeplabv3plus", "1-4"): (77.7, 66.6),
    ("deeplabv3plus", "1-8"): (72.7, 38.5),
    ("hrnet", "1-2"): (84.4, 80.5),
    ("hrnet", "1-4"): (82.0, 71.3),
    ("hrnet", "1-8"): (75.3, 54.1),
}
CROPS = {"1-2": (512, 1024), "1-4": (256, 512), "1-8": (128, 256)}
SCALES = {"1-2": (0.5, 1.0), "1-4": (0.25, 0.5), "1-8": (0.125, 0.25)}
BATCHES = {"1-2": 3, "1-4": 6, "1-8": 20}


@pytest.mark.parametrize("name", recipe_names())
def test_each_opens_with_a_comment_that_names_its_command(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    comment = text.split("\n\n")[0]
    assert text.startswith("# ")
    assert f"--recipe {name}" in comment
    assert "seg-eval" in comment or "--set" in comment
    assert ".." not in text.replace("...", "")  # no path that leaves the project


@pytest.mark.parametrize(("arch", "resolution"), TABLE)
def test_rows_of_the_paper(arch: str, resolution: str) -> None:
    soft = load_recipe(f"soft-labels-{arch}-{resolution}")
    nearest = load_recipe(f"nearest-labels-{arch}-{resolution}")
    assert [r.expected[0].value for r in (soft, nearest)] == list(TABLE[arch, resolution])
    assert soft.augment.crop == CROPS[resolution]
    assert soft.augment.rescale == SCALES[resolution]
    assert soft.loop.batch == BATCHES[resolution]
    assert (soft.optim.name, soft.optim.lr, soft.optim.momentum, soft.optim.weight_decay) == ("sgd", 5e-3, 0.9, 1e-4)
    assert (soft.schedule.name, soft.schedule.power) == ("poly", 2.0)
    assert soft.loop.steps * soft.loop.batch == pytest.approx(175 * 2975, rel=1e-3)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("nearest-labels-")])
def test_baselines_differ_from_their_twins_in_the_labels_alone(name: str) -> None:
    values = [load_recipe(n).to_dict() for n in (name, name.replace("nearest-", "soft-", 1))]
    assert [v["data"].pop("labels") for v in values] == ["nearest", "soft"]
    for key in ("name", "description", "expected"):
        for v in values:
            v.pop(key)
    assert values[0] == values[1]


def test_the_recipe_for_a_cpu_comes_first_and_needs_a_quarter_scale_only() -> None:
    listed = [name for name in recipe_names() if "camvid" in name]
    recipe = load_recipe(listed[0])
    assert recipe.data.scales == ("1/4",)
    assert recipe.eval.input_scale == "1/4"
    assert recipe.model.weights == "none"


@pytest.mark.parametrize("name", ["camvid-efficientnet-lite0", "demo"])
def test_recipes_for_a_cpu_can_be_built(name: str) -> None:
    plan = make_plan(load_recipe(name), 11, {"source": 100}, (90, 120))
    assert plan.parameters < 5e6
