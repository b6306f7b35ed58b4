"""Make soft labels: resize a hard label with the image's own filter, in exact integers.

    >>> soft = shards.soften(hard, scale="1/4", filter="box")
    >>> image, soft = shards.resize_pair(image, hard, scale="1/2", filter="bilinear")

Filters: ``box`` (area mean, conserves every pixel; the open question of the soft-label paper's section 4.5),
``bilinear`` (no antialiasing, half-pixel centres: the paper's equation 3 with its bilinear f), ``triangle``
(antialiased bilinear). Denominators: k * k for box; the exact one for bilinear where it is at most 255 (4 at 1/2^n
where the size divides); otherwise 255 with largest-remainder rounding, so that every cell sums to it exactly.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.axis import axis_weights
from shards.errors import SettingsError
from shards.resize import resize_image
from shards.scale import Scale, check_filter
from shards.softlabel import U16, SoftLabel, assemble

ROUNDED = 255  # the denominator where no exact one is at most this


def soften(hard: U16, scale: str | Scale = "1/2", filter: str = "box") -> SoftLabel:
    """Resize a hard label to a soft one.

    Args:
        hard: uint16 [H, W], class ids, void 65535.
        scale: target over source size; box needs 1/k.
        filter: ``box``, ``bilinear`` or ``triangle``.

    Returns:
        A SoftLabel of ``Scale.size(H, W, filter)`` cells.

    Raises:
        SettingsError: unknown filter, a scale that the filter cannot do, an array of another type or shape.
    """
    scale = Scale.parse(scale)
    hard = _checked(hard)
    size = scale.size(hard.shape[0], hard.shape[1], filter)
    if filter == "box":
        return _soften_box(hard, scale.box_factor(), size)
    return soften_to(hard, size, filter)


def soften_to(hard: U16, size: tuple[int, int], filter: str = "triangle") -> SoftLabel:
    """Resize a hard label uint16 [H, W] to a soft one of ``size`` (h, w) cells; bilinear or triangle."""
    hard = _checked(hard)
    if check_filter(filter) == "box":
        raise SettingsError("filter box found with a free target size; expected bilinear or triangle")
    if min(size) < 1:
        raise SettingsError(f"target size {size[0]}x{size[1]} found; expected at least 1x1")
    if size == hard.shape:
        return SoftLabel.from_hard(hard)
    if filter == "bilinear" and hard.shape == (2 * size[0], 2 * size[1]):
        return _soften_box(hard, 2, size)  # equation 4 of the paper: at 1/2 it is the mean of four
    rows, columns = axis_weights(hard.shape[0], size[0], filter), axis_weights(hard.shape[1], size[1], filter)
    total = rows.denominator * columns.denominator
    denominator = total if total <= ROUNDED else ROUNDED
    taps = (rows.first, rows.count, rows.weights, columns.first, columns.count, columns.weights)
    return _weigh(hard, size, taps, total, denominator)


def resize_pair(
    image: npt.NDArray[np.uint8], hard: U16, scale: str | Scale = "1/2", filter: str = "box"
) -> tuple[npt.NDArray[np.uint8], SoftLabel]:
    """Resize an image uint8 [H, W, 3] and its label uint16 [H, W] with the same filter and weights.

    Returns:
        (uint8 [h, w, 3], SoftLabel of h x w cells). Raises SettingsError, also where their sizes differ.
    """
    if image.shape[:2] != hard.shape:
        raise SettingsError(f"image {image.shape[:2]} and label {hard.shape} differ in size; expected equal ones")
    return resize_image(image, scale, filter), soften(hard, scale, filter)


def _checked(hard: U16) -> U16:
    """``hard`` as a C-contiguous array, or SettingsError."""
    if not isinstance(hard, np.ndarray) or hard.dtype != np.uint16 or hard.ndim != 2 or hard.size == 0:
        found = f"{getattr(hard, 'dtype', type(hard).__name__)} {getattr(hard, 'shape', '')}"
        raise SettingsError(f"label of {found} found; expected a uint16 array [H, W] with void 65535")
    return np.ascontiguousarray(hard)


def _soften_box(hard: U16, k: int, size: tuple[int, int]) -> SoftLabel:
    """Area mean over k x k pixels; scratch: 4 bytes a cell, and 4 bytes a source pixel under mixed cells."""
    if k == 1:
        return SoftLabel.from_hard(hard)
    from shards import kernels

    base = np.empty(size, np.uint16)
    cells = np.empty(size[0] * size[1], np.int32)
    found = _find_mixed(hard, k, base, cells)
    cells = cells[:found]
    room = found * min(k * k, 65536)
    starts, ids, weights = np.zeros(found + 1, np.int64), np.empty(room, np.uint16), np.empty(room, np.uint16)
    mixed = kernels.count_cells(hard, k, size[1], cells, starts, ids, weights)
    soft = assemble((base, cells, starts, ids, weights), mixed, int(starts[mixed]), k * k)
    base.ravel()[soft.cells] = soft.ids[soft.starts[:-1]]
    return soft


def _find_mixed(hard: U16, k: int, base: U16, cells: npt.NDArray[np.int32]) -> int:
    """Run the fastest kernel that fits: four pixels at a time where the size allows."""
    from shards import kernels

    height, width = hard.shape
    if k in (2, 4) and height % k == 0 and width % 4 == 0 and sys.byteorder == "little":
        kernel = kernels.find_mixed_pairs if k == 2 else kernels.find_mixed_fours
        return int(kernel(hard.view(np.uint64), base, cells))
    return int(kernels.find_mixed(hard, k, base, cells))


def _weigh(hard: U16, size: tuple[int, int], taps: tuple[Any, ...], total: int, denominator: int) -> SoftLabel:
    """Run the general kernel, with more room for entries as long as they do not fit."""
    from shards import kernels

    base = np.empty(size, np.uint16)
    room, most = 2 * size[0] * size[1] + 1024, size[0] * size[1] * taps[2].shape[1] * taps[5].shape[1]
    while True:
        cells, counts = np.empty(size[0] * size[1] + 2, np.int32), np.zeros(size[0] * size[1] + 2, np.int64)
        ids, weights = np.empty(room, np.uint16), np.empty(room, np.uint16)
        end = int(kernels.weigh_cells(hard, *taps, total, denominator, base, (cells, counts, ids, weights)))
        if end >= 0:
            break
        room = min(room * 4, most + 1024)
    mixed = int(counts[0])
    starts = np.zeros(mixed + 1, np.int64)
    np.cumsum(counts[1 : mixed + 1], out=starts[1:])
    return assemble((base, cells, starts, ids, weights), mixed, end, denominator)
