"""soften against torch on one-hot planes, and the rules for sizes, borders and denominators."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shards import IGNORE, Scale, SettingsError, SoftLabel, kernels, resize_pair, soften, soften_to
from shards.soften import _find_mixed
from tests.shards.oracles import box_with_void_border, resized, shares
from tests.shards.strategies import hard_labels

C = 5


@given(hard_labels(C), st.integers(1, 9))
def test_box_equals_the_area_mean_with_void_beyond_the_border(hard, k):
    soft = soften(hard, f"1/{k}", "box")
    assert soft.denominator == k * k
    np.testing.assert_array_equal(shares(soft, C), box_with_void_border(hard, C, k))


@given(hard_labels(C), st.sampled_from([2, 4, 8]))
def test_box_equals_torch_area_where_sizes_divide(hard, k):
    hard = np.kron(hard[:6, :6], np.ones((k, k), np.uint16)).astype(np.uint16)
    hard = np.roll(hard, (1, 1), (0, 1))  # block borders no longer on the grid
    soft = soften(hard, f"1/{k}", "box")
    np.testing.assert_allclose(shares(soft, C), resized(hard, C, soft.shape, "box"), atol=1e-12)


@given(
    hard_labels(C),
    st.sampled_from(["1/2", "1/3", "1/4", "2/3", "3/2", "2", "5/7"]),
    st.sampled_from(["bilinear", "triangle"]),
)
def test_bilinear_and_triangle_stay_within_one_part_in_255_of_torch(hard, scale, filter):
    soft = soften(hard, scale, filter)
    assume(soft.shape != (1, 1))  # see the oracle
    error = np.abs(shares(soft, C) - resized(hard, C, soft.shape, filter)).max()
    assert error <= 1 / 255
    _ids, weights = soft.topk(soft.max_classes)
    assert (weights.astype(np.int64).sum(0) == soft.denominator).all()


@given(hard_labels(C), st.sampled_from([2, 4, 8, 16]))
def test_bilinear_is_exact_at_powers_of_two(hard, k):
    hard = np.tile(hard[: hard.shape[0] // k * k or 1, : hard.shape[1] // k * k or 1], (k, k))
    soft = soften(hard, f"1/{k}", "bilinear")
    assert soft.denominator in (1, 4)
    np.testing.assert_allclose(shares(soft, C), resized(hard, C, soft.shape, "bilinear"), atol=1e-12)


def test_half_resolution_bilinear_is_the_mean_of_four():
    """Equation 4 of the soft-label paper."""
    hard = np.random.default_rng(0).integers(0, C, (32, 48)).astype(np.uint16)
    np.testing.assert_array_equal(shares(soften(hard, "1/2", "bilinear"), C), shares(soften(hard, "1/2", "box"), C))


@given(hard_labels(C), st.integers(2, 6), st.data())
def test_aligned_crops_commute_with_box(hard, k, data):
    hard = np.tile(hard, (k, k))
    h, w = hard.shape[0] // k, hard.shape[1] // k
    y, x = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    ch, cw = data.draw(st.integers(1, h - y)), data.draw(st.integers(1, w - x))
    window = hard[y * k : (y + ch) * k, x * k : (x + cw) * k]
    assert soften(window, f"1/{k}", "box") == soften(hard, f"1/{k}", "box").crop(y, x, ch, cw)


@given(hard_labels(C), st.integers(2, 4), st.integers(2, 4))
def test_reducing_twice_is_reducing_once(hard, a, b):
    once = soften(hard, f"1/{a * b}", "box")
    assert soften(hard, f"1/{a}", "box").reduce(b) == once


@given(hard_labels(C), st.sampled_from(["bilinear", "triangle"]), st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_flipping_commutes_with_free_resizing(hard, filter, size):
    assert soften_to(np.ascontiguousarray(hard[:, ::-1]), size, filter) == soften_to(hard, size, filter).flip()


@given(hard_labels(C), st.integers(1, 6))
def test_every_pixel_is_conserved_by_box(hard, k):
    mass = shares(soften(hard, f"1/{k}", "box"), C).sum((0, 1)) * k * k
    np.testing.assert_allclose(mass[:C], np.bincount(np.where(hard == IGNORE, C, hard).ravel(), minlength=C + 1)[:C])


def test_same_size_is_the_hard_label():
    hard = np.array([[1, 2], [IGNORE, 0]], np.uint16)
    for filter in ("box", "bilinear", "triangle"):
        assert soften(hard, "1", filter) == SoftLabel.from_hard(hard)


def test_many_classes_and_the_largest_id():
    hard = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) + 61_000
    soft = soften(hard, "1/8", "box")
    assert soft.max_classes == 64
    assert soft.largest_id == 61_000 + 64 * 64 - 1
    assert (soft.topk(64)[1] == 1).all()


def test_noise_needs_more_room_than_the_first_guess():
    hard = np.random.default_rng(1).integers(0, 60_000, (96, 96)).astype(np.uint16)
    soft = soften(hard, "3/2", "triangle")
    np.testing.assert_array_equal(soft.topk(soft.max_classes)[1].sum(0, dtype=np.int64), 255)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda h: soften(h, "2/3", "box"), "box needs 1/k"),
        (lambda h: soften(h, "1/0", "box"), "expected a ratio"),
        (lambda h: soften(h, "1/2", "cubic"), "expected one of box"),
        (lambda h: soften(h.astype(np.int64), "1/2", "box"), "expected a uint16 array"),
        (lambda h: soften(h[0], "1/2", "box"), "expected a uint16 array"),
        (lambda h: soften(h[:0], "1/2", "box"), "expected a uint16 array"),
        (lambda h: soften_to(h, (0, 4)), "at least 1x1"),
        (lambda h: soften_to(h, (2, 2), "box"), "free target size"),
        (lambda h: resize_pair(np.zeros((3, 4, 3), np.uint8), h), "differ in size"),
    ],
)
def test_wrong_arguments_say_what_is_expected(call, says):
    with pytest.raises(SettingsError, match=says):
        call(np.zeros((8, 8), np.uint16))


def test_scales_parse_and_sort():
    assert [str(s) for s in Scale.parse_many("1/8,1,1/2")] == ["1", "1/2", "1/8"]
    assert Scale.parse("0.25") == Scale.parse("1/4") == Scale.parse("2/8")
    assert Scale.parse("1/4").folder == "1-4"
    assert Scale.parse("1/4").size(361, 480, "box") == (91, 120)
    assert Scale.parse("1/4").size(361, 480, "bilinear") == (90, 120)
    for wrong in ("", "1,1", "a", "-1", "1/0", "0", "1/256", "17", "1/2,2/4"):
        with pytest.raises(SettingsError):
            Scale.parse_many(wrong)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4]), st.integers(1, 6), st.integers(1, 6))
def test_word_kernels_find_what_the_plain_kernel_finds(seed, k, h, w):
    random = np.random.default_rng(seed)
    hard = np.kron(random.integers(0, 3, (h * k, w)), np.ones((1, 4), int)).astype(np.uint16) * np.uint16(30_000)
    flips = random.random(hard.shape) < 0.05
    hard[flips] = 65535
    found = []
    for find in (_find_mixed, kernels.find_mixed):
        base, cells = np.zeros((h, hard.shape[1] // k), np.uint16), np.zeros(hard.size, np.int32)
        count = find(hard, k, base, cells)
        found.append((base.tolist(), cells[:count].tolist()))
    assert found[0] == found[1]


def test_every_kernel_releases_the_gil():
    compiled = [value for value in vars(kernels).values() if hasattr(value, "targetoptions")]
    assert len(compiled) >= 8
    assert all(kernel.targetoptions.get("nogil") for kernel in compiled)


def test_threads_do_not_disturb_each_other():
    random = np.random.default_rng(5)
    maps = [np.kron(random.integers(0, 9, (40, 50)), np.ones((5, 6), int)).astype(np.uint16) for _ in range(4)]
    ways = [("1/4", "box"), ("1/3", "box"), ("1/2", "bilinear"), ("2/3", "bilinear"), ("1/3", "triangle")]
    jobs = [(hard, scale, filter) for hard in maps for scale, filter in ways] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: soften(*job), jobs))
    assert found == [soften(*job) for job in jobs]


def test_kernels_work_where_no_cache_can_be_written():
    code = """
import numba.core.caching as caching
def refuse(self, *arguments): raise RuntimeError("cannot cache function: no locator available")
assert caching.CacheImpl.__init__ is not object.__init__
caching.CacheImpl.__init__ = refuse
import numpy as np, shards
assert shards.soften(np.zeros((8, 8), np.uint16), "1/2").shape == (4, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
