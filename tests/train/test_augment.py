"""Augmentation: image and label stay aligned, geometry commutes with softening, padding is void."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

import shards
from train.augment import GREY, _blend, _turn, augment, crop, jitter, pad
from train.config import Augment, Jitter

seeds = st.integers(0, 2**32 - 1)


def painted(hard: np.ndarray) -> np.ndarray:
    """An image whose colour is its label's class (void: 255)."""
    return np.repeat(np.where(hard == shards.IGNORE, 255, hard).astype(np.uint8)[..., None], 3, axis=2)


def label(seed: int, h: int, w: int) -> np.ndarray:
    hard = np.random.default_rng(seed).integers(0, 6, (h, w)).astype(np.uint16)
    hard[0, : w // 2] = shards.IGNORE
    return hard


@given(seeds, st.integers(8, 40), st.integers(8, 40), st.integers(8, 40), st.integers(8, 40))
def test_image_and_label_move_together(seed: int, h: int, w: int, height: int, width: int) -> None:
    """A label-coloured image is still coloured by its label afterwards, and padding is void in `fill`'s colour."""
    hard = label(seed, h, w)
    image, soft = augment(
        painted(hard),
        shards.SoftLabel.from_hard(hard),
        Augment(crop=(height, width)),
        np.random.default_rng(seed),
        fill=(255, 255, 255),
    )
    assert image.shape == (height, width, 3)
    assert np.array_equal(image, painted(soft.harden()))
    padding = height * width - min(h, height) * min(w, width)
    assert (soft.harden() == shards.IGNORE).sum() >= padding


def test_padding_is_void_and_mean_coloured() -> None:
    hard = np.zeros((8, 8), np.uint16)
    image, soft = pad(painted(hard), shards.SoftLabel.from_hard(hard), (10, 12))
    assert soft.shape == image.shape[:2] == (10, 12)
    assert (soft.void()[8:] == 1).all()
    assert (soft.void()[:, 8:] == 1).all()
    assert (soft.void()[:8, :8] == 0).all()
    assert (image[9, 11] == GREY).all()
    assert (image[:8, :8] == 0).all()


@given(seeds, st.sampled_from(["1/2", "1/4"]))
def test_crop_and_flip_commute_with_softening(seed: int, scale: str) -> None:
    """Augmenting the soft label equals softening the hard label that is cut out and mirrored in the same way."""
    k = int(scale[-1])
    hard = label(seed, 24 * k, 32 * k)
    config = Augment(crop=(10, 12))
    small = painted(hard)[::k, ::k]
    _, soft = augment(small, shards.soften(hard, scale, "box"), config, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    source = hard[:, ::-1] if rng.random() < 0.5 else hard
    y, x = int(rng.integers(0, 15)), int(rng.integers(0, 21))
    window = np.ascontiguousarray(source[y * k : (y + 10) * k, x * k : (x + 12) * k])
    assert soft == shards.soften(window, scale, "box")


def test_every_window_and_both_sides_are_drawn() -> None:
    hard = np.arange(16, dtype=np.uint16).reshape(4, 4)
    soft = shards.SoftLabel.from_hard(np.kron(hard, np.ones((2, 2), np.uint16)))
    image = painted(soft.harden())
    rng = np.random.default_rng(0)
    corners = {int(crop(image, soft, (2, 2), rng)[1].harden()[0, 0]) for _ in range(300)}
    assert corners == set(range(16))
    config = Augment(crop=None)
    sides = {int(augment(image, soft, config, rng)[1].harden()[0, 0]) for _ in range(20)}
    assert sides == {0, 3}


def test_off_changes_nothing_and_one_seed_gives_one_result() -> None:
    hard = label(0, 20, 30)
    image, soft = painted(hard), shards.SoftLabel.from_hard(hard)
    same_image, same_soft = augment(image, soft, Augment(flip=False), np.random.default_rng(0))
    assert np.array_equal(same_image, image)
    assert same_soft == soft
    config = Augment(crop=(16, 16), jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2))
    first, second, other = (augment(image, soft, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_jitter_is_torchvisions(factor: float) -> None:
    """Brightness, contrast and saturation within rounding of torchvision's on the same factor."""
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)

    class Fixed:
        def uniform(self, low: float, high: float) -> float:
            return factor

    for config, oracle in (
        (Jitter(brightness=1.0), tv.adjust_brightness),
        (Jitter(contrast=1.0), tv.adjust_contrast),
        (Jitter(saturation=1.0), tv.adjust_saturation),
    ):
        got = jitter(image, config, Fixed())  # type: ignore[arg-type]
        want = oracle(planes, factor).permute(1, 2, 0).numpy()
        assert np.abs(got.astype(int) - want.astype(int)).max() <= 2


@pytest.mark.parametrize("turns", [-0.4, 0.0, 0.25])
def test_hue_is_torchvisions(turns: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    want = tv.adjust_hue(torch.from_numpy(image).permute(2, 0, 1), turns).permute(1, 2, 0).numpy()
    difference = np.abs(_turn(image, turns).astype(int) - want.astype(int))
    assert difference.mean() < 1.5  # 256 hues a turn, 8-bit saturation
    assert difference.max() <= 12


def test_jitter_keeps_the_label_and_the_range() -> None:
    image = np.full((8, 8, 3), 250, np.uint8)
    assert _blend(image, np.zeros_like(image), 1.9).max() == 255  # clipped, not wrapped
    hard = label(0, 8, 8)
    _, soft = augment(
        image, shards.SoftLabel.from_hard(hard), Augment(flip=False, jitter=Jitter(hue=0.5)), np.random.default_rng(0)
    )
    assert soft == shards.SoftLabel.from_hard(hard)
