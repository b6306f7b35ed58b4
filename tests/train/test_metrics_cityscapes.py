"""Class, category and instance IoU equal to the official Cityscapes evaluation on random maps."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from shards.classes import ClassTable
from train.metrics_split import SplitMetrics

official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
helpers = pytest.importorskip("cityscapesscripts.helpers.labels")

TRAIN = sorted((x for x in helpers.labels if not x.ignoreInEval and x.trainId >= 0), key=lambda x: x.trainId)
TABLE = ClassTable.make(
    [x.name for x in TRAIN], categories=[x.category for x in TRAIN], things=[x.hasInstances for x in TRAIN]
)
SIZES = dict(official.args.avgClassSize)
VOID = 65535
Ids = npt.NDArray[np.int64]


def street(seed: int) -> tuple[Ids, Ids, Ids]:
    """Random prediction (train ids), labelIds and instanceIds of 48 x 64 pixels, as Cityscapes stores them.

    Rectangles of every kind: stuff, things, crowds (a thing's label without an instance), caravans (instances of a
    class that is not scored) and void.
    """
    rng = np.random.default_rng(seed)
    label = np.full((48, 64), rng.choice([7, 8, 11, 21, 23]))
    instance = label.copy()
    for number in range(30):
        y, x, h, w = rng.integers(0, 40), rng.integers(0, 56), rng.integers(2, 14), rng.integers(2, 18)
        chosen = helpers.id2label[int(rng.integers(34))]
        one = chosen.hasInstances and rng.random() < 0.8
        label[y : y + h, x : x + w] = chosen.id
        instance[y : y + h, x : x + w] = chosen.id * 1000 + number if one else chosen.id
    truth = np.array([max(helpers.id2label[i].trainId, 0) % 255 for i in range(34)])[label]
    right = rng.random(label.shape) < 0.6
    prediction = np.where(right, np.minimum(truth, 18), rng.integers(0, 19, label.shape))
    return prediction, label, instance


@pytest.fixture(autouse=True)
def _numpy_as_the_package_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 2.4 dropped `in1d`, which the package still calls; `isin` is its successor."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)


def official_scores(folder: Path, streets: list[tuple[Ids, Ids, Ids]]) -> dict[str, Any]:
    """The package's own evaluation of the maps, from files."""
    to_id = np.array([x.id for x in TRAIN])
    pairs: list[tuple[str, str]] = []
    for i, (prediction, label, instance) in enumerate(streets):
        names = [f"a_{i:06d}_000019_{kind}.png" for kind in ("pred", "gtFine_labelIds", "gtFine_instanceIds")]
        arrays = (to_id[prediction].astype(np.uint8), label.astype(np.uint8), instance.astype(np.uint16))
        for name, array in zip(names, arrays, strict=True):
            Image.fromarray(array).save(folder / name)
        pairs.append((str(folder / names[0]), str(folder / names[1])))
    official.args.quiet, official.args.JSONOutput = True, False
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses NumPy functions that are on their way out
        result: dict[str, Any] = official.evaluateImgLists([p for p, _ in pairs], [g for _, g in pairs], official.args)
    return result


def our_metrics(streets: list[tuple[Ids, Ids, Ids]]) -> SplitMetrics:
    to_train = np.array([x.trainId if 0 <= x.trainId < 255 else VOID for x in helpers.labels if x.id >= 0])
    metrics = SplitMetrics(TABLE, {"instance_sizes": SIZES})
    for prediction, label, instance in streets:
        hard = to_train[label].astype(np.uint16)
        numbered = np.zeros(label.shape, np.uint16)  # 1..N in each image, as shards keep them
        for n, one in enumerate(np.unique(instance[instance > 1000]), 1):
            numbered[instance == one] = n
        metrics.update(torch.from_numpy(prediction), hard, numbered)
    return metrics


def agree(ours: dict[str, float | None], theirs: dict[str, float]) -> None:
    for name, value in ours.items():
        if value is None:
            assert math.isnan(theirs[name]), name
        else:
            assert value == pytest.approx(theirs[name], abs=1e-12), name


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_official_evaluation(tmp_path: Path, seed: int) -> None:
    streets = [street(10 * seed + i) for i in range(3)]
    theirs = official_scores(tmp_path, streets)
    ours = our_metrics(streets).to_dict()
    agree(ours["per_class"], theirs["classScores"])
    agree(ours["per_category"], theirs["categoryScores"])
    agree(ours["per_class_iiou"], theirs["classInstScores"])
    agree(ours["per_category_iiou"], theirs["categoryInstScores"])
    assert ours["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)
    assert ours["category_miou"] == pytest.approx(theirs["averageScoreCategories"], abs=1e-12)
    assert ours["iiou"] == pytest.approx(theirs["averageScoreInstClasses"], abs=1e-12)
    assert ours["category_iiou"] == pytest.approx(theirs["averageScoreInstCategories"], abs=1e-12)
    assert set(ours["per_class_iiou"]) == {n for n in SIZES if n in TABLE.names}
    assert set(ours["per_category_iiou"]) == {"human", "vehicle"}


def test_one_sparse_image_where_most_classes_are_absent(tmp_path: Path) -> None:
    prediction, label, instance = street(99)
    label[:] = 7
    instance[:] = 7
    label[:9, :9], instance[:9, :9] = 24, 24001
    streets = [(np.where(prediction == 11, 11, 0), label, instance)]
    theirs, ours = official_scores(tmp_path, streets), our_metrics(streets).to_dict()
    agree(ours["per_class"], theirs["classScores"])
    agree(ours["per_class_iiou"], theirs["classInstScores"])
    agree(ours["per_category_iiou"], theirs["categoryInstScores"])
    assert ours["iiou"] == pytest.approx(theirs["averageScoreInstClasses"])


def test_parts_of_a_split_add_up() -> None:
    streets = [street(i) for i in range(4)]
    left, right = our_metrics(streets[:1]), our_metrics(streets[1:])
    left.merge(right)
    whole = our_metrics(streets).to_dict()
    merged = left.to_dict()
    assert merged["images"] == whole["images"] == 4
    assert merged["per_class"] == whole["per_class"]
    for name, value in whole["per_class_iiou"].items():
        assert merged["per_class_iiou"][name] == pytest.approx(value)


def test_without_categories_or_instances_only_classes_are_scored() -> None:
    metrics = SplitMetrics(ClassTable.make(["a", "b"]))
    metrics.update(torch.tensor([[0, 1]]), np.array([[0, 1]], np.uint16))
    assert set(metrics.to_dict()) == {
        "miou",
        "pixel_accuracy",
        "mean_accuracy",
        "fwiou",
        "per_class",
        "pixels",
        "images",
    }
    known = SplitMetrics(TABLE, {"instance_sizes": SIZES})
    known.update(torch.tensor([[0, 1]]), np.array([[0, 1]], np.uint16))  # an image without an instance map
    assert "iiou" not in known.to_dict()
    assert "category_miou" in known.to_dict()
