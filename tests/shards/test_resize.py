"""The image side uses the label side's weights: one-hot planes pushed through the image resizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import SettingsError, resize_image, resize_image_to, resize_pair, soften, soften_to
from tests.shards.oracles import shares
from tests.shards.strategies import hard_labels

C = 5


def planes(hard):
    """Two uint8 images [H, W, 3] of the classes' and void's one-hot planes, 0 or 255."""
    hot = np.stack([np.where(hard == c, 255, 0) for c in (*range(C), 65535)], -1).astype(np.uint8)
    return hot[..., :3], hot[..., 3:]


@given(hard_labels(C), st.sampled_from(["1/2", "1/4", "3/4", "3/2"]), st.sampled_from(["bilinear", "triangle"]))
def test_free_filters_weigh_images_as_labels(hard, scale, filter):
    got = np.concatenate([resize_image(p, scale, filter) for p in planes(hard)], -1) / 255
    want = shares(soften(hard, scale, filter), C)
    assert np.abs(got - want).max() <= 3 / 255  # two 8-bit passes of the library, and 1/255 of the label


@given(hard_labels(C), st.integers(1, 8))
def test_box_weighs_images_as_labels_void_border_aside(hard, k):
    got = np.concatenate([resize_image(p, f"1/{k}", "box") for p in planes(hard)], -1) / 255
    want = shares(soften(hard, f"1/{k}", "box"), C)
    ys, xs = [np.minimum(k, n - np.arange(0, n, k)) for n in hard.shape]
    real = (ys[:, None] * xs[None]) / (k * k)  # share of the cell that lies inside the image
    want[..., C] -= 1 - real
    assert np.abs(got - want / real[..., None]).max() <= 1 / 255


def test_pair_and_free_sizes_agree_in_shape():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    hard = np.zeros((37, 53), np.uint16)
    for filter, scale in (("box", "1/4"), ("bilinear", "2/3"), ("triangle", "5/4")):
        small, soft = resize_pair(image, hard, scale, filter)
        assert small.shape[:2] == soft.shape
    assert resize_image_to(image, (20, 30), "bilinear").shape[:2] == soften_to(hard, (20, 30), "bilinear").shape
    assert resize_image_to(image, (37, 53)) is image


def test_wrong_arguments_say_what_is_expected():
    with pytest.raises(SettingsError, match="uint8"):
        resize_image_to(np.zeros((4, 4), np.uint8), (2, 2))
    with pytest.raises(SettingsError, match="free target size"):
        resize_image_to(np.zeros((4, 4, 3), np.uint8), (2, 2), "box")


@pytest.mark.parametrize("filter", ["box", "triangle"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 4), (0, 8, 3)])
def test_other_shapes_are_refused(filter, shape):
    with pytest.raises(SettingsError, match="expected uint8"):
        resize_image(np.zeros(shape, np.uint8), "1/2", filter)
    with pytest.raises(SettingsError, match="expected uint8"):
        resize_image(np.zeros((8, 8, 3), np.float32), "1/2", filter)
