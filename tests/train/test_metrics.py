"""Pixel counts and their scores against torchmetrics, and the rules for void and for absent classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_jaccard_index

from shards.errors import SettingsError
from train.metrics import Counts, Scores

VOID = 65535
CLASSES = 6
NAMES = [f"c{i}" for i in range(CLASSES)]


def maps(seed: int, shape: tuple[int, ...] = (3, 12, 17), classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Random prediction and label over random subsets of the classes; some of the label is void."""
    rng = np.random.default_rng(seed)
    known, guessed = (rng.permutation(classes)[: rng.integers(1, classes + 1)] for _ in range(2))
    label = rng.choice(known, shape)
    label[rng.random(shape) < 0.2] = VOID
    prediction = np.where(rng.random(shape) < 0.5, label, rng.choice(guessed, shape))
    prediction[prediction == VOID] = guessed[0]
    return torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(label.astype(np.int64))


def scored(prediction: Tensor, label: Tensor) -> Scores:
    counts = Counts.zeros(CLASSES)
    counts.update(prediction, label)
    return counts.scores(NAMES)


@given(st.integers(0, 10_000))
def test_equals_torchmetrics(seed: int) -> None:
    prediction, label = maps(seed)
    scores = scored(prediction, label)
    matrix = MulticlassConfusionMatrix(CLASSES, ignore_index=VOID)(prediction, label).double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    each = multiclass_jaccard_index(prediction, label, CLASSES, average="none", ignore_index=VOID)
    for i, name in enumerate(NAMES):
        if union[i] == 0:
            assert scores.per_class[name] is None
        else:
            assert scores.per_class[name] == pytest.approx(float(each[i]), abs=1e-6)
    assert scores.miou == pytest.approx(float(each[union > 0].double().mean()), abs=1e-6)
    micro = MulticlassAccuracy(CLASSES, average="micro", ignore_index=VOID)(prediction, label)
    assert scores.pixel_accuracy == pytest.approx(float(micro), abs=1e-6)
    recall = matrix.diag() / matrix.sum(1)
    assert scores.mean_accuracy == pytest.approx(float(recall.nanmean()), abs=1e-9)
    weighted = multiclass_jaccard_index(prediction, label, CLASSES, average="weighted", ignore_index=VOID)
    assert scores.fwiou == pytest.approx(float(weighted), abs=1e-6)


@given(st.integers(0, 10_000))
def test_what_is_predicted_on_void_does_not_matter(seed: int) -> None:
    prediction, label = maps(seed)
    other = torch.where(label == VOID, (prediction + 1) % CLASSES, prediction)
    assert scored(prediction, label) == scored(other, label)


@given(st.integers(0, 10_000))
def test_parts_add_up(seed: int) -> None:
    prediction, label = maps(seed)
    whole, left, right = (Counts.zeros(CLASSES) for _ in range(3))
    whole.update(prediction, label)
    left.update(prediction[:1], label[:1])
    right.update(prediction[1:], label[1:])
    left.merge(right)
    assert torch.equal(left.table, whole.table)


def test_absent_classes_follow_the_stated_rule() -> None:
    label = torch.tensor([0, 0, 1, 1, VOID])
    prediction = torch.tensor([0, 0, 1, 2, 3])
    scores = scored(prediction, label)
    assert scores.per_class == {"c0": 1.0, "c1": 0.5, "c2": 0.0, "c3": None, "c4": None, "c5": None}
    assert scores.miou == pytest.approx(0.5)  # c2 is only predicted: it counts, as 0
    assert scores.mean_accuracy == pytest.approx(0.75)  # of the classes in the labels
    assert scores.fwiou == pytest.approx(0.75)
    assert scores.pixels == 4


def test_nothing_seen_scores_nothing() -> None:
    assert Counts.zeros(2).scores(["a", "b"]) == Scores(None, None, None, None, {"a": None, "b": None}, 0)
    all_void = scored(torch.zeros(4, dtype=torch.int64), torch.full((4,), VOID))
    assert (all_void.miou, all_void.pixels) == (None, 0)


def test_memory_grows_with_the_classes_not_with_their_square() -> None:
    counts = Counts.zeros(60_000)
    counts.update(torch.tensor([59_999, 3]), torch.tensor([59_999, 4]))
    assert counts.table.shape == (3, 60_000)
    assert counts.table.sum(1).tolist() == [1, 2, 2]


def test_counts_do_not_lose_pixels_beyond_float32() -> None:
    counts = Counts(torch.tensor([[2**40 + 1], [2**40 + 1], [2**40 + 1]]))
    counts.update(torch.tensor([0]), torch.tensor([0]))
    assert counts.table[0, 0] == 2**40 + 2


def test_unsigned_labels_are_read_as_they_are_stored() -> None:
    label = torch.from_numpy(np.array([0, VOID, 1], np.uint16))
    counts = Counts.zeros(2)
    counts.update(torch.tensor([0, 0, 0], dtype=torch.uint8), label)
    assert counts.table.tolist() == [[1, 0], [1, 1], [2, 0]]


@pytest.mark.parametrize(
    ("prediction", "label", "said"),
    [([0, 1], [0], "shape"), ([6], [0], "class 6"), ([0], [6], "class 6"), ([-1], [0], "lowest -1")],
)
def test_what_cannot_be_scored_is_refused(prediction: list[int], label: list[int], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        scored(torch.tensor(prediction), torch.tensor(label))


def test_scores_are_plain_values() -> None:
    values = scored(*maps(1)).to_dict()
    assert set(values) == {"miou", "pixel_accuracy", "mean_accuracy", "fwiou", "per_class", "pixels"}
    assert list(values["per_class"]) == NAMES
