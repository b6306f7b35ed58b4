"""The recipes of ladder networks: the paper's settings, tables and epochs."""

from __future__ import annotations

import pytest

from train.config import load_recipe, recipe_names
from train.models.build import build_model

# down, up, crop, image scale, images, epochs, factor of the encoder's rate, the paper's mIoU
ROWS = {
    "ldn121-64-4-cityscapes": (64, 4, 768, (0.5, 2.0), 2975, 300, 0.25, 79.0),
    "ldn121-32-4-cityscapes-half": (32, 4, 448, (0.25, 1.0), 2975, 300, 0.25, 76.6),
    "ldn121-32-4-camvid": (32, 4, 512, (0.5, 2.0), 367, 400, 0.25, 77.3),
    "ldn121-32-4-camvid-random": (32, 4, 512, (0.5, 2.0), 367, 800, 1.0, 70.9),
    "ldn121-16-2-camvid-half": (16, 2, 448, (0.5, 2.0), 367, 800, 1.0, 69.5),
    "ldn121-16-2-camvid-half-imagenet": (16, 2, 448, (0.5, 2.0), 367, 400, 0.25, 75.8),
}


def test_the_table_is_of_all_of_them() -> None:
    assert sorted(ROWS) == [name for name in recipe_names() if name.startswith("ldn121-")]


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_papers(name: str) -> None:
    down, up, crop, scale, images, epochs, factor, miou = ROWS[name]
    recipe = load_recipe(name)
    model, optim, schedule, loop = recipe.model, recipe.optim, recipe.schedule, recipe.loop
    assert (model.arch, model.encoder, model.down, model.up, model.auxiliary) == (
        "ladder",
        "densenet121",
        down,
        up,
        True,
    )
    assert model.segments == "unit+stem+td+tu"
    assert model.weights == ("none" if factor == 1.0 else "timm")
    assert (recipe.augment.crop, recipe.augment.rescale, recipe.augment.flip) == ((crop, crop), scale, True)
    assert (recipe.data.mode, recipe.data.labels, recipe.loss.aux_weight) == ("rescale", "nearest", 0.4)
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay) == ("amsgrad", 4e-4, (0.9, 0.99), 1e-4)
    assert optim.encoder_lr_scale == factor
    assert (schedule.name, schedule.unit, schedule.min_lr) == ("cosine", "epoch", 1e-6)
    assert loop.batch == 16
    assert abs(loop.steps * 16 - epochs * images) < 16
    assert [(e.value, e.split) for e in recipe.expected] == [(miou, "test" if "camvid" in name else "val")]
    assert str(miou) in recipe.description


@pytest.mark.parametrize("name", ["ldn121-64-4-cityscapes", "ldn121-16-2-camvid-half"])
def test_what_they_say_of_the_input(name: str) -> None:
    """Cityscapes has the release's mean and deviation (0..255: 73.45 83.21 72.78, 45.20 46.37 45.49)."""
    config = load_recipe(name, ["model.weights=none"]).model
    mean = build_model(config, 11).mean.flatten().tolist()
    expected = [73.45, 83.21, 72.78] if "cityscapes" in name else [255 * x for x in (0.485, 0.456, 0.406)]
    assert mean == pytest.approx(expected, abs=0.05)
    if config.std is not None:
        assert [255 * x for x in config.std] == pytest.approx([45.20, 46.37, 45.49], abs=0.05)
