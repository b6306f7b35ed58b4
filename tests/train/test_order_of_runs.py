"""The usual order of samples changed once: runs that were stored before it was a setting keep theirs."""

from __future__ import annotations

import numpy as np
import pytest

from shards.errors import SettingsError
from shards.order import epoch_order
from train.config import from_dict, from_stored, load_recipe


def test_a_run_without_an_order_has_the_first_one() -> None:
    stored = load_recipe("demo").to_dict()
    assert (stored["data"]["window"], stored["data"]["run"]) == (16, 4)
    assert from_stored(stored, "x") == load_recipe("demo")
    old = {**stored, "data": {key: value for key, value in stored["data"].items() if key not in ("window", "run")}}
    found = from_stored(old, "x").data
    assert (found.window, found.run) == (4, None)
    again = from_stored(from_stored(old, "x").to_dict(), "x").data
    assert (again.window, again.run) == (4, None)
    assert from_dict(old).data.window == 16  # a recipe of a person's that says nothing of it


def test_what_is_no_recipe_is_refused_as_before() -> None:
    for odd in (None, [], {"data": 3}, {"data": None, "name": "x"}):
        with pytest.raises(SettingsError):
            from_stored(odd, "x")


def test_class_mix_of_batches_is_that_of_a_true_shuffle() -> None:
    """Samples stored class by class: 60 shards of 50, five shards a class, batches of 20."""
    classes, batch = np.repeat(np.arange(12), 250), 20

    def statistic(order: np.ndarray) -> float:
        counts = np.stack([np.bincount(part, minlength=12) for part in classes[order].reshape(-1, batch)])
        expected = batch / 12
        return float((np.square(counts - expected) / expected).sum(1).mean() / 11)

    found = [statistic(epoch_order([50] * 60, "digest", seed, 0)) for seed in range(12)]
    true = [statistic(np.random.default_rng(seed).permutation(len(classes))) for seed in range(40)]
    assert abs(np.mean(found) - np.mean(true)) < 0.06  # a true shuffle: 1.00 +- 0.04
    whole = [statistic(epoch_order([50] * 60, "digest", seed, 0, 4, None)) for seed in range(4)]
    assert np.mean(whole) > 2  # so the test can tell
