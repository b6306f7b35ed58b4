"""Scaled decoding: which scale is taken, what a pixel of it stands for, and the same errors as whole decoding."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from shards import FormatError
from shards.codec import ImageFormat, decode_image, encode_image
from shards.codec import image as image_codec
from shards.codec.scaled import decode_image_scaled, factor_for


def smooth(h: int, w: int) -> np.ndarray:
    """uint8 [h, w, 3] that changes slowly, differently along each axis and channel."""
    y, x = np.mgrid[:h, :w]
    channels = [120 + 90 * np.sin(x / 40 + k) * np.cos(y / 55 - k) for k in range(3)]
    return np.stack(channels, 2).round().astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    return encode_image(image, ImageFormat("jpeg", 95))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000))
def test_the_factor_is_the_largest_that_leaves_enough(h: int, w: int, least_h: int, least_w: int) -> None:
    found = factor_for((h, w), (least_h, least_w))
    assert found in (1, 2, 4, 8)
    if found > 1:
        assert h > (least_h - 1) * found  # the same as ceil(h / found) >= least_h
        assert w > (least_w - 1) * found
    if found < 8:
        assert h <= (least_h - 1) * found * 2 or w <= (least_w - 1) * found * 2


@pytest.mark.parametrize(
    ("least", "factor"),
    [((160, 240), 1), ((81, 120), 1), ((80, 120), 2), ((80, 100), 2), ((41, 60), 2), ((40, 60), 4), ((1, 1), 8)],
)
def test_pixels_stand_for_blocks_of_the_source(least: tuple[int, int], factor: int) -> None:
    image = smooth(160, 240)
    found = decode_image_scaled(jpeg(image), least)
    assert found.shape == (160 // factor, 240 // factor, 3)
    means = image.reshape(160 // factor, factor, 240 // factor, factor, 3).mean((1, 3))
    assert np.abs(found - means).max() < 5  # a pixel of shift would be 10 and more at 1/4


def test_sizes_that_do_not_divide_and_grey() -> None:
    data = jpeg(smooth(101, 77))
    for factor in (2, 4, 8):
        size = (-(-101 // factor), -(-77 // factor))
        assert decode_image_scaled(data, size).shape == (*size, 3)
        assert decode_image_scaled(data, (size[0] + 1, 1)).shape[0] >= size[0] + 1
    grey = simplejpeg.encode_jpeg(smooth(64, 64)[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    found = decode_image_scaled(grey, (16, 16))
    assert found.shape == (16, 16, 3)
    assert (found[..., 0] == found[..., 2]).all()


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    image = smooth(40, 56)
    assert np.array_equal(decode_image_scaled(encode_image(image, ImageFormat.parse(kind)), (5, 5)), image)


def test_nothing_smaller_wanted_is_whole_decoding() -> None:
    data = jpeg(smooth(64, 80))
    assert np.array_equal(decode_image_scaled(data, (33, 40)), decode_image(data))


def test_damage_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(smooth(64, 64))
    for broken in (data[: len(data) // 2], data[:40], b"", b"no image"):
        with pytest.raises(FormatError, match=r"x\.tar"):
            decode_image_scaled(broken, (8, 8), "x.tar")
    monkeypatch.setattr("shards.codec.scaled.MAX_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(image_codec, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(FormatError):
        decode_image_scaled(data, (8, 8))
