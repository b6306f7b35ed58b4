"""The sample order: a permutation, a pure function of its arguments, mostly sequential."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import SettingsError, epoch_order


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
    assert epoch_order([3, 4, 2, 5], "abc", 7, 2, window=2).tolist() == GOLDEN


def test_reads_stay_within_a_window_of_shards():
    order = epoch_order([100] * 40, "d", 0, 0, window=4) // 100
    for start in range(0, 4000, 400):
        assert len(set(order[start : start + 400])) == 4


def test_wrong_arguments():
    with pytest.raises(SettingsError):
        epoch_order([1], "d", 0, 0, window=0)
    with pytest.raises(SettingsError):
        epoch_order([-1], "d", 0, 0)


GOLDEN = [9, 13, 4, 10, 6, 3, 11, 5, 12, 7, 1, 8, 0, 2]
