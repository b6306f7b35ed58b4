"""The sample order: a permutation, a pure function of its arguments, mostly sequential."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import SettingsError, epoch_order
from shards.order import generator


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 5), st.integers(0, 5), st.integers(1, 6))
def test_each_sample_once_and_the_same_every_time(groups, seed, epoch, window):
    order = epoch_order(groups, "digest", seed, epoch, window)
    assert sorted(order) == list(range(sum(groups)))
    np.testing.assert_array_equal(order, epoch_order(groups, "digest", seed, epoch, window))


def test_every_argument_matters():
    base = epoch_order([10] * 9, "d", 0, 0)
    for other in (("e", 0, 0), ("d", 1, 0), ("d", 0, 1)):
        assert (base != epoch_order([10] * 9, *other)).any()


def test_the_order_is_fixed_for_good():
    """A golden value: changing the order would silently change every resumed run."""
    assert epoch_order([3, 4, 2, 5], "abc", 7, 2, window=2, run=None).tolist() == GOLDEN
    assert epoch_order([13, 4, 2, 15], "abc", 7, 2, window=1, run=4).tolist() == GOLDEN_RUNS


def test_reads_stay_within_a_window_of_shards():
    order = epoch_order([100] * 40, "d", 0, 0, window=4, run=None) // 100
    for start in range(0, 4000, 400):
        assert len(set(order[start : start + 400])) == 4


def test_wrong_arguments():
    with pytest.raises(SettingsError):
        epoch_order([1], "d", 0, 0, window=0)
    with pytest.raises(SettingsError):
        epoch_order([-1], "d", 0, 0)
    with pytest.raises(SettingsError, match="run 0"):
        epoch_order([1], "d", 0, 0, run=0)


def plain(groups: list[int], seed: int, epoch: int, window: int) -> list[int]:
    """Shard by shard and window by window, as it was first written: no run that began with it may change."""
    random = generator("order", "digest", seed, epoch)
    starts = np.concatenate(([0], np.cumsum(np.asarray(groups, np.int64))))
    shuffled = random.permutation(len(groups))
    found: list[int] = []
    for first in range(0, len(groups), window):
        samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shuffled[first : first + window]])
        found += random.permutation(samples).tolist()
    return found


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 5), st.integers(0, 5), st.integers(1, 25))
def test_the_order_is_that_of_plain_loops(groups, seed, epoch, window):
    assert epoch_order(groups, "digest", seed, epoch, window, None).tolist() == plain(groups, seed, epoch, window)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 12), st.integers(1, 6))
def test_runs_hold_each_sample_once(groups, run, window):
    order = epoch_order(groups, "digest", 1, 2, window, run)
    assert sorted(order) == list(range(sum(groups)))
    np.testing.assert_array_equal(order, epoch_order(groups, "digest", 1, 2, window, run))


def test_runs_are_those_of_the_shards_and_windows_hold_whole_ones():
    """Shards of 10 and 7 in runs of 4: 4, 4, 2 and 4, 3; a window of two shards is as many runs as 17 samples make."""
    order = epoch_order([10, 7] * 6, "d", 0, 0, window=2, run=4)
    runs = [list(range(17 * i + at, 17 * i + end)) for i in range(6) for at, end in RUNS]
    place = np.argsort(order)
    assert all(max(place[run]) - min(place[run]) < 5 * 4 for run in runs)  # no run leaves its window of 5
    assert len({sample // 17 for sample in order[:17]}) > 2  # two shards of 17 would be one pair of [10, 7]


RUNS = [(0, 4), (4, 8), (8, 10), (10, 14), (14, 17)]


@pytest.mark.parametrize(
    ("window", "run", "good"), [(4, None, False), (100, None, True), (16, 4, True), (4, 1, True), (1, 8, False)]
)
def test_the_class_mix_of_batches_against_a_true_shuffle(window, run, good):
    """Shards sorted by class: chi-square of batches of 16, per degree of freedom, is 1 for a true shuffle."""
    classes = np.arange(20_000) // 1000
    found = []
    for epoch in range(4):
        mixed = classes[epoch_order([200] * 100, "d", 0, epoch, window, run)].reshape(-1, 16)
        counts = np.stack([(mixed == c).sum(1) for c in range(20)], 1)
        found.append(((counts - 0.8) ** 2 / 0.8).sum(1).mean() / 19)
    error = 4 * np.sqrt(2 / 19 / 1250 / 4)  # four standard errors of the mean of 1,250 batches in 4 epochs
    assert (abs(np.mean(found) - 1) < error) == good


GOLDEN = [9, 13, 4, 10, 6, 3, 11, 5, 12, 7, 1, 8, 0, 2]
GOLDEN_RUNS = [
    6,
    4,
    5,
    16,
    33,
    13,
    31,
    15,
    32,
    14,
    7,
    18,
    0,
    2,
    17,
    1,
    3,
    12,
    19,
    23,
    10,
    24,
    9,
    26,
    20,
    11,
    25,
    22,
    8,
    21,
    30,
    27,
    28,
    29,
]
