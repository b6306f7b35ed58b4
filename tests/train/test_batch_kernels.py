"""Targets and planes of a batch: what the kernels write is, bit for bit, what a few NumPy passes give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards.codec import decode_soft, encode_soft
from tests.shards.strategies import soft_labels
from tests.train.batch_oracle import slow_targets
from train.augment import augment
from train.batch import NOWHERE, Item, collate, planar, targets_of
from train.config import Augment


@given(soft_labels(), st.sampled_from(["mask", "renormalise", "keep"]), st.integers(1, 6))
def test_targets_are_those_of_the_slow_way(soft, void, most):
    got, want = targets_of(soft, void, most), slow_targets(soft, void, most)
    assert (got.planes, got.capped) == (want.planes, want.capped)
    for name in ("base", "cells", "ids", "weights"):
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes(), name


@given(soft_labels(), st.integers(0, 3))
def test_filling_writes_every_place(soft, more):
    """Whatever the arrays held before; planes that the sample lacks are zero."""
    targets = targets_of(soft, "keep")
    shape = (targets.planes + more, *soft.shape)
    ids, weights = np.full(shape, 77, np.int32), np.full(shape, np.nan, np.float32)
    targets.fill(ids, weights)
    want_ids, want_weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    known = soft.base != shards.IGNORE
    want_ids[0][known], want_weights[0][known] = soft.base[known], 1
    rows, columns = np.divmod(soft.cells, soft.shape[1])
    for plane in range(targets.planes):
        want_ids[plane, rows, columns] = targets.ids[plane]
        want_weights[plane, rows, columns] = targets.weights[plane]
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(weights, want_weights)


def test_a_batch_of_labels_with_few_and_many_classes():
    rng = np.random.default_rng(0)
    flat = shards.SoftLabel.from_hard(rng.integers(0, 5, (6, 8)).astype(np.uint16))
    mixed = shards.soften(rng.integers(0, 9, (24, 32)).astype(np.uint16), "1/4")
    items = [
        Item(str(i), np.zeros((3, 6, 8), np.uint8), targets_of(soft, most=8)) for i, soft in enumerate((flat, mixed))
    ]
    batch = collate(items)
    assert batch.ids.shape == (2, 8, 6, 8)  # data.max_classes_per_cell
    assert batch.weights[0, 1:].abs().max() == batch.ids[0, 1:].abs().max() == 0
    assert torch.equal(batch.ids[0, 0], torch.from_numpy(flat.base.astype(np.int32)))
    torch.testing.assert_close(batch.weights.sum(1), torch.ones(2, 6, 8))
    nowhere = collate([Item("k", np.zeros((3, 6, 8), np.uint8), NOWHERE, tags=np.zeros(0, np.int64))] * 2)
    assert nowhere.ids.shape == (2, 1, 0, 0)


@pytest.mark.parametrize(
    "view", [lambda a: a, lambda a: a[:, ::-1], lambda a: a[3:9, 2:7], lambda a: a.transpose(1, 0, 2)]
)
def test_planar_takes_any_view(view):
    image = view(np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8))
    got = planar(image)
    np.testing.assert_array_equal(got, image.transpose(2, 0, 1))
    assert got.flags.c_contiguous
    assert not np.shares_memory(got, image)


@given(soft_labels(), st.integers(0, 2**32 - 1))
def test_moved_labels_are_whole_labels(soft, seed):
    """Flipped, cropped and reduced labels keep every invariant that a stored one is checked for, and their types."""
    rng = np.random.default_rng(seed)
    h, w = (int(rng.integers(1, side + 1)) for side in soft.shape)
    y, x = (int(rng.integers(0, side - part + 1)) for side, part in zip(soft.shape, (h, w), strict=True))
    moved = [soft.flip(), soft.crop(y, x, h, w)]
    if soft.denominator * 4 <= 65535:
        moved.append(soft.reduce(2))
    for label in moved:
        assert decode_soft(encode_soft(label)) == label
        types = [getattr(label, name).dtype for name in ("base", "cells", "starts", "ids", "weights")]
        assert types == [np.uint16, np.int32, np.int64, np.uint16, np.uint16]
        assert label.base.flags.c_contiguous


def test_images_flip_with_their_labels():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    soft = shards.SoftLabel.from_hard(np.arange(35, dtype=np.uint16).reshape(5, 7))
    seen = set()
    for seed in range(8):
        flipped = np.random.default_rng(seed).random() < 0.5
        got, label = augment(image, soft, Augment(flip=True), np.random.default_rng(seed))
        np.testing.assert_array_equal(got, image[:, ::-1] if flipped else image)
        assert label == (soft.flip() if flipped else soft)
        seen.add(flipped)
    assert seen == {True, False}
