"""The shipped recipes of ESSNet: faithful to its Tables 1, 4 and 5, baselines that differ in the head alone."""

from __future__ import annotations

from typing import Any

import pytest

from train.config import load_recipe, recipe_names

# Table 1: crop, batch of the baseline and of the embedding head, d, k.
TABLE_1 = {
    "cityscapes": ((400, 800), 14, 10, 7, 6),
    "voc": ((512, 512), 14, 10, 7, 8),
    "ade20k": ((512, 512), 8, 10, 12, 7),
    "cocostuff10k": ((512, 512), 7, 10, 12, 7),
    "cocolvis": ((450, 450), 2, 10, 12, 8),
}
# Table 4: (mIoU, pixel accuracy, fwIoU where printed) of the baseline and of the embedding head.
TABLE_4: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("mobilenetv2", "cityscapes"): ((72.11, 95.22), (73.03, 95.40)),
    ("resnet50", "cityscapes"): ((75.25, 95.80), (75.64, 95.62)),
    ("resnet101", "cityscapes"): ((76.8, 96.22), (76.6, 96.28)),
    ("mobilenetv2", "voc"): ((71.07, 92.25), (71.15, 92.28)),
    ("resnet50", "voc"): ((73.1, 93.35), (72.8, 92.98)),
    ("mobilenetv2", "ade20k"): ((34.02, 75.07), (34.11, 75.19)),
    ("resnet50", "ade20k"): ((38.93, 77.01), (38.29, 77.16)),
    ("resnet50", "cocostuff10k"): ((32.56, 65.22), (32.60, 65.18)),
    ("resnet50", "cocolvis"): ((1.68, 38.88, 22.66), (4.57, 54.27, 39.67)),
}
# Table 5 prints mIoU, fwIoU, pixel accuracy.
TABLE_5 = {
    "dense-resnet50-cocolvis-ga": (2.76, 29.57, 46.34, 10, 5),
    "essnet-resnet50-cocolvis-ga": (5.01, 41.87, 57.05, 20, 2),
    "dense-resnet50-cocolvis-gn": (5.15, 37.89, 53.45, 2, 1),
    "essnet-resnet50-cocolvis-gn": (6.26, 43.03, 59.01, 10, 1),
    "dense-resnet50-cocolvis-4gpu": (7.86, 42.2, 58.1, 12, 1),
    "essnet-resnet50-cocolvis-4gpu": (8.78, 43.8, 59.3, 40, 1),
}


def scores(name: str) -> dict[str, float]:
    recipe = load_recipe(name)
    assert all("ESSNet paper" in expected.source for expected in recipe.expected)
    return {expected.metric: expected.value for expected in recipe.expected}


@pytest.mark.parametrize(("backbone", "dataset"), TABLE_4)
def test_rows_of_the_paper(backbone: str, dataset: str) -> None:
    crop, batch, ours_batch, dim, k = TABLE_1[dataset]
    base, ours = (load_recipe(f"{head}-{backbone}-{dataset}") for head in ("dense", "essnet"))
    for recipe, values, size in zip((base, ours), TABLE_4[backbone, dataset], (batch, ours_batch), strict=True):
        assert scores(recipe.name) == dict(zip(("miou", "pixel_accuracy", "fwiou"), values, strict=False))
        assert (recipe.augment.crop, recipe.loop.batch, recipe.loop.steps) == (crop, size, 200_000)
        assert (recipe.optim.name, recipe.optim.lr, recipe.optim.momentum) == ("sgd", 0.01, 0.9)
        assert (recipe.optim.weight_decay, recipe.optim.encoder_lr_scale) == (1e-4, 0.1)
        assert (recipe.schedule.name, recipe.schedule.power, recipe.schedule.min_lr) == ("poly", 0.9, 1e-6)
        assert recipe.model.encoder.startswith(backbone)
        assert (recipe.model.arch, recipe.model.output_stride) == ("deeplabv3plus", 16)
        assert recipe.data.scales == ("1",)
    assert (base.model.head, ours.model.head) == ("dense", "embedding")
    assert (ours.model.embedding_dim, ours.loss.k, ours.loss.tau, ours.loss.margin) == (dim, k, 0.05, 0.2)
    assert (ours.loss.distance, ours.loss.margin_weight, ours.model.renormalise) == ("squared", 1.0, True)
    assert (ours.optim.embedding_momentum, ours.optim.embedding_power) == (0.95, 0.95)


@pytest.mark.parametrize("name", TABLE_5)
def test_rows_of_the_paper_for_small_batches_and_four_gpus(name: str) -> None:
    miou, fwiou, accuracy, batch, parts = TABLE_5[name]
    recipe = load_recipe(name)
    assert scores(name) == {"miou": miou, "fwiou": fwiou, "pixel_accuracy": accuracy}
    assert (recipe.loop.batch, recipe.loop.accumulate) == (batch, parts)
    assert recipe.model.norm == ("group" if name.endswith("gn") else "batch")
    assert recipe.model.sync_norm == name.endswith("4gpu")
    if name == "essnet-resnet50-cocolvis-4gpu":
        assert recipe.model.embedding_dim == 16


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("essnet-") and "camvid" not in n])
def test_the_head_differs_from_its_baseline_in_head_and_batch_alone(name: str) -> None:
    def plain(recipe: str) -> dict[str, Any]:
        values = load_recipe(recipe).to_dict()
        for key in ("name", "description", "expected", "loss"):
            values.pop(key)
        for key in ("head", "embedding_dim", "renormalise"):
            values["model"].pop(key, None)
        for key in ("embedding_lr_scale", "embedding_momentum", "embedding_power"):
            values["optim"].pop(key, None)
        for key in ("batch", "accumulate"):
            values["loop"].pop(key)
        return values

    assert plain(name) == plain(name.replace("essnet-", "dense-"))


def test_camvid_compares_the_heads_at_equal_steps() -> None:
    base, ours = load_recipe("camvid-efficientnet-lite0"), load_recipe("essnet-camvid")
    assert (ours.model.embedding_dim, ours.loss.k) == (7, 6)
    assert (ours.loop, ours.data, ours.augment, ours.schedule) == (base.loop, base.data, base.augment, base.schedule)
