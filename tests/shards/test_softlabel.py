"""The soft label as a value: every operation against the dense array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import IGNORE, SettingsError, SoftLabel, soften
from tests.shards.oracles import shares
from tests.shards.strategies import soft_labels

C = 5


@given(soft_labels(C))
def test_dense_rules_against_the_shares(soft):
    full = shares(soft, C)
    void, real = full[..., C], full[..., :C]
    np.testing.assert_allclose(soft.void(), void, atol=1e-6)
    np.testing.assert_allclose(soft.dense(C, void="keep"), real, atol=1e-6)
    mass = real.sum(-1, keepdims=True)
    even = np.divide(real, mass, out=np.zeros_like(real), where=mass > 0)
    np.testing.assert_allclose(soft.dense(C, void="renormalise"), even, atol=1e-6)
    np.testing.assert_allclose(soft.dense(C), np.where(void[..., None] < 0.5, even, 0), atol=1e-6)


@given(soft_labels(C))
def test_topk_is_sorted_and_whole(soft):
    ids, weights = soft.topk(soft.max_classes + 1)
    assert ids.dtype == weights.dtype == np.uint16
    assert (weights.sum(0, dtype=np.int64) == soft.denominator).all()
    assert (weights[:-1] >= weights[1:]).all()
    assert (weights[-1] == 0).all()
    assert (ids[weights == 0] == IGNORE).all()
    tie = (weights[:-1] == weights[1:]) & (weights[1:] > 0)
    assert (ids[:-1][tie] < ids[1:][tie]).all()
    np.testing.assert_array_equal(soft.topk(1)[0][0], soft.base)


def test_topk_writes_into_a_batch():
    soft = soften(np.random.default_rng(0).integers(0, 5, (24, 32)).astype(np.uint16), "1/4", "box")
    batch = np.full((2, 3, 4, 6, 8), 7, np.uint16)
    found_planes = soft.topk(4, out=(batch[0, 1], batch[1, 1]))
    for found, wanted, planes in zip(found_planes, soft.topk(4), batch, strict=True):
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(planes[1], wanted)
        assert (planes[[0, 2]] == 7).all()
    for wrong in (batch[0, 1, :3], batch[0, 1].astype(np.int32), batch[0, 1].transpose(0, 2, 1)):
        with pytest.raises(SettingsError, match="topk: out of shape"):
            soft.topk(4, out=(batch[0, 0], wrong))


@given(soft_labels(C))
def test_harden_is_the_arg_max_under_the_void_rule(soft):
    full = shares(soft, C)
    want = np.where(full[..., C] >= 0.5, IGNORE, full[..., :C].argmax(-1))
    np.testing.assert_array_equal(soft.harden(), want)


@given(soft_labels(C))
def test_entropy(soft):
    full = shares(soft, C)
    want = -(full * np.log(np.where(full > 0, full, 1))).sum(-1)
    np.testing.assert_allclose(soft.entropy(), want, atol=1e-5)


@given(soft_labels(C), st.data())
def test_crop_flip_and_pad_move_cells_whole(soft, data):
    h, w = soft.shape
    y, x = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    ch, cw = data.draw(st.integers(1, h - y)), data.draw(st.integers(1, w - x))
    full = shares(soft, C)
    np.testing.assert_array_equal(shares(soft.crop(y, x, ch, cw), C), full[y : y + ch, x : x + cw])
    np.testing.assert_array_equal(shares(soft.flip(), C), full[:, ::-1])
    assert soft.flip().flip() == soft
    grown = soft.pad(h + 3, w + 2)
    assert grown.crop(0, 0, h, w) == soft
    assert (grown.void()[h:] == 1).all()
    assert (grown.void()[:, w:] == 1).all()


@given(soft_labels(C), st.integers(1, 4))
def test_reduce_is_the_mean_of_shares(soft, k):
    if soft.denominator * k * k > 65535:
        with pytest.raises(SettingsError, match="denominator"):
            soft.reduce(k)
        return
    h, w = (-(-n // k) for n in soft.shape)
    full = shares(soft.pad(h * k, w * k), C).reshape(h, k, w, k, C + 1).mean((1, 3))
    reduced = soft.reduce(k)
    assert reduced.denominator == soft.denominator * k * k
    np.testing.assert_allclose(shares(reduced, C), full, atol=1e-12)


def test_values_compare_by_content():
    hard = np.arange(16, dtype=np.uint16).reshape(4, 4) % 3
    assert soften(hard, "1/2") == soften(hard.copy(), "1/2")
    assert soften(hard, "1/2") != soften((hard + 1) % np.uint16(3), "1/2")
    assert soften(hard, "1/2") != "something else"


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.crop(0, 0, 5, 1),
        lambda s: s.crop(-1, 0, 1, 1),
        lambda s: s.crop(0, 0, 0, 1),
        lambda s: s.topk(0),
        lambda s: s.pad(1, 1),
        lambda s: s.reduce(0),
        lambda s: s.dense(2),
        lambda s: s.dense(9, void="drop"),
    ],
)
def test_wrong_arguments_are_refused(call):
    soft = soften(np.arange(64, dtype=np.uint16).reshape(8, 8) % 7, "1/2")
    with pytest.raises(SettingsError):
        call(soft)


def test_all_void():
    soft = SoftLabel.from_hard(np.full((3, 4), IGNORE, np.uint16))
    assert soft.largest_id == -1
    assert (soft.dense(3) == 0).all()
    assert (soft.harden() == IGNORE).all()
