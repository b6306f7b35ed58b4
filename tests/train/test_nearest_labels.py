"""Labels by the nearest class embedding: tiles change nothing, upsampling is torch's, confidences the full softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shards.errors import SettingsError
from tests.train import nearest_oracle as oracle
from tests.train.test_neighbors import Largest, unit
from train import nearest_labels as module
from train.nearest_labels import nearest_labels, nearest_top

SIZES = [(37, 53), (9, 14), (18, 7), (1, 1), (4, 90)]


def maps(seed: int, width: int = 5, h: int = 9, w: int = 14) -> torch.Tensor:
    """Unit embeddings [d, h, w]."""
    return unit(seed, h * w, width).t().reshape(width, h, w).contiguous()


def resized(pixels: torch.Tensor, size: tuple[int, int], renormalise: bool = True) -> torch.Tensor:
    """What torch makes of it, in float64."""
    full = F.interpolate(pixels.double()[None], size=size, mode="bilinear", align_corners=False)[0]
    return F.normalize(full, dim=0) if renormalise else full


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_upsampling_is_torchs(size: tuple[int, int], renormalise: bool) -> None:
    pixels = maps(0)
    bands = [rows for _, rows in module._tiles(pixels, size, renormalise, 2 * size[1])]
    full = torch.cat(bands).t().reshape(5, *size)
    if size == (9, 14):
        assert torch.equal(full, pixels)  # not resized: as it was
    else:
        torch.testing.assert_close(full.double(), resized(pixels, size, renormalise), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_labels_do_not_depend_on_the_tile(size: tuple[int, int]) -> None:
    pixels, table = maps(1), unit(2, 40, 5)
    whole = nearest_labels(pixels, table, size, k=3, tile=1 << 30)
    assert whole.shape == (3, *size)
    rows = torch.cat([rows for _, rows in module._tiles(pixels, size, True, 1 << 30)])
    np.testing.assert_array_equal(whole.flatten(1).t().numpy(), oracle.nearest(rows, table, 3))
    for tile in (1, 50, 333):
        assert torch.equal(nearest_labels(pixels, table, size, k=3, tile=tile), whole)
        ids, confidences = nearest_top(pixels, table, 3, 0.05, size=size, tile=tile)
        assert torch.equal(ids, whole)
        torch.testing.assert_close(confidences, nearest_top(pixels, table, 3, 0.05, size=size)[1])
    assert torch.equal(nearest_labels(pixels, table, size), whole[0])


def test_rows_are_labelled_as_maps_are() -> None:
    pixels, table = maps(3), unit(4, 40, 5)
    rows = pixels.flatten(1).t()
    assert torch.equal(nearest_labels(rows, table), nearest_labels(pixels, table).flatten())
    assert nearest_labels(rows, table, k=2).shape == (2, 126)
    assert nearest_labels(rows[:0], table).shape == (0,)


@pytest.mark.parametrize("distance", ["squared", "plain"])
def test_confidences_are_the_softmax_over_all_classes(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLASSES", 7)
    monkeypatch.setattr(module, "PAIRS", 70)
    pixels, table = maps(5), unit(6, 40, 5)
    ids, confidences = nearest_top(pixels, table, 5, 0.05, distance)
    squares = (pixels.double().flatten(1).t()[:, None] - table.double()).square().sum(2)
    dense = (-(squares if distance == "squared" else squares.sqrt()) / 0.05).softmax(1)
    values, order = dense.topk(5)
    np.testing.assert_array_equal(ids.flatten(1).t().numpy(), order.numpy())
    np.testing.assert_allclose(confidences.flatten(1).t().numpy(), values.numpy(), rtol=1e-6)
    everything = nearest_top(pixels, table, 99, 0.05, distance)[1]
    assert everything.shape == (40, 9, 14)  # all classes where fewer are there
    np.testing.assert_allclose(everything.sum(0).numpy(), 1, rtol=1e-5)


def test_a_missing_value_touches_its_own_pixel_alone() -> None:
    pixels, table = maps(7), unit(8, 20, 5)
    expected = nearest_labels(pixels, table)
    pixels[2, 4, 4] = torch.nan
    label = nearest_labels(pixels, table)
    assert label[4, 4] == 0
    label[4, 4] = expected[4, 4]
    assert torch.equal(label, expected)
    confidences = nearest_top(pixels, table, 2, 0.05)[1]
    assert confidences.isnan().sum() == 2


def test_memory_stays_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large output and many classes: no tensor but the result grows with them."""
    monkeypatch.setattr(module, "PAIRS", 1 << 14)
    pixels, table = maps(9), unit(10, 3000, 5)
    with Largest() as largest:
        label = nearest_labels(pixels, table, (300, 400), tile=2000)
    assert largest.bytes <= label.numel() * 8 + 1
    with Largest() as largest:
        nearest_top(pixels, table, 1, 0.05, size=(60, 80), tile=2000)
    assert largest.bytes <= 1 << 18


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(5), torch.zeros(3, 5)), r"embeddings \(5,\)"),
        ((torch.zeros(2, 5), torch.zeros(3, 5), (4, 4)), "to be resized to"),
        ((torch.zeros(5, 2, 2), torch.zeros(3, 4)), r"expected \[C, 5\]"),
        ((torch.zeros(5, 2, 2), torch.zeros(3, 5), (0, 4)), "at least one pixel"),
        ((torch.zeros(5, 2, 2), torch.zeros(3, 5), None, 4), "k = 4 nearest of 3"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        nearest_labels(*arguments)


def test_confidence_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="'cosine' is not known"):
        nearest_top(maps(0), unit(0, 3, 5), 1, 0.05, "cosine")
    with pytest.raises(SettingsError, match="tau = 0"):
        nearest_top(maps(0), unit(0, 3, 5), 1, 0.0)


def test_pixels_of_zeros_are_as_far_from_every_class() -> None:
    ids, shares = nearest_top(torch.zeros(3, 2, 2), torch.eye(3), 2, 0.5, size=(4, 4))
    assert ids[:, 0, 0].tolist() == [0, 1]
    torch.testing.assert_close(shares, torch.full((2, 4, 4), 1 / 3))


def test_pixels_that_lie_on_a_class_have_a_plain_distance() -> None:
    """Squares that rounding takes below 0 have no root."""
    table = torch.nn.functional.normalize(torch.randn(300, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    ids, shares = nearest_top(table, table, 1, 0.05, "plain")
    assert ids[0].tolist() == list(range(300))
    assert shares.isfinite().all()
