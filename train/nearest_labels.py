"""Inference of an embedding head: the nearest class embedding of each pixel, at any resolution, in flat memory.

    label = nearest_labels(pixels, table, size=(1080, 1920))            # pixels [d, h, w] -> int64 [1080, 1920]
    ids, confidences = nearest_top(pixels, table, 5, tau=0.05)          # int64 and float32 [5, h, w]

Pixel embeddings are upsampled, put back on the sphere and searched a tile at a time. Each output pixel is computed by
the same sums whatever tile it is in, so the result does not depend on the tiles. Nothing of size H x W x C exists, nor
of size H x W x d beyond what is handed in.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shards.errors import SettingsError
from train.models.embedding import SOFTENING
from train.neighbors import Index, build_index

TILE = 1 << 17  # output pixels at a time
PAIRS = 1 << 21  # pixels x classes at a time in the softmax (16 MB a copy in float64)
CLASSES = 1 << 12  # classes at a time in the softmax


def nearest_labels(
    embeddings: Tensor,
    table: Tensor,
    size: tuple[int, int] | None = None,
    k: int = 1,
    backend: str = "auto",
    renormalise: bool = True,
    tile: int = TILE,
) -> Tensor:
    """The classes nearest to each pixel, by squared distance; ties go to the lower class.

    Args:
        embeddings: [d, h, w], or rows [N, d], floating.
        table: [C, d], floating.
        size: (H, W) to upsample maps to first, bilinearly (half-pixel centres, align_corners false); None leaves them.
        k: how many; 1 to C.
        backend: of `train.neighbors.nearest`.
        renormalise: whether upsampled embeddings are put back on the unit sphere (what is not upsampled stays as is).
        tile: output pixels at a time; the result does not depend on it.

    Returns:
        int64 [H, W] (rows: [N]) for k = 1, else [k, H, W] (rows: [k, N]), nearest first. A pixel that holds NaN gets
        the classes 0 to k - 1.

    Raises:
        SettingsError: shapes that do not fit, or k outside of 1 to C.
        UserError: the backend is not installed.
    """
    shape = _output_shape(embeddings, table, size)
    index = build_index(table, backend, k=k)
    ids = torch.empty(k, shape.numel(), dtype=torch.int64, device=embeddings.device)
    for low, rows in _tiles(embeddings.detach(), size, renormalise, tile):
        ids[:, low : low + len(rows)] = index.nearest(rows, k).t()
    ids = ids.reshape(k, *shape)
    return ids[0] if k == 1 else ids


def nearest_top(
    embeddings: Tensor,
    table: Tensor,
    top: int,
    tau: float,
    distance: str = "squared",
    size: tuple[int, int] | None = None,
    backend: str = "auto",
    renormalise: bool = True,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """The most likely classes of each pixel and their confidences under the softmax of -distance / tau over all C.

    The softmax is exact: all classes count, in chunks and in float64, not only the `top` found.

    Args:
        embeddings, table, size, backend, renormalise, tile: as in `nearest_labels`.
        top: how many classes, at least 1; all of them where there are fewer.
        tau: temperature, above 0.
        distance: "squared" (||x - e||^2) or "plain" (||x - e||).

    Returns:
        int64 [top, H, W] (rows: [top, N]), nearest first, and float32 of that shape; confidences of a pixel fall, and
        over all classes they sum to 1. Where a distance is NaN, so are they.

    Raises:
        SettingsError: as `nearest_labels`; also an unknown distance, or tau <= 0.
    """
    if distance not in ("squared", "plain"):
        raise SettingsError(f"distance {distance!r} is not known; expected squared or plain")
    if not tau > 0:
        raise SettingsError(f"tau = {tau}; expected a temperature above 0")
    shape = _output_shape(embeddings, table, size)
    k = min(top, len(table))
    index = build_index(table, backend, k=k)
    columns = table.detach().double().t().contiguous()
    ids = torch.empty(k, shape.numel(), dtype=torch.int64, device=embeddings.device)
    confidences = torch.empty(k, shape.numel(), device=embeddings.device)
    for low, rows in _tiles(embeddings.detach(), size, renormalise, tile):
        part = slice(low, low + len(rows))
        found, shares = _confident(rows, columns, index, k, tau, distance)
        ids[:, part], confidences[:, part] = found.t(), shares.t()
    return ids.reshape(k, *shape), confidences.reshape(k, *shape)


def _output_shape(embeddings: Tensor, table: Tensor, size: tuple[int, int] | None) -> torch.Size:
    """[H, W] of the result, or [N] for rows; refuses what does not fit."""
    maps = embeddings.ndim == 3
    if not (maps or (embeddings.ndim == 2 and size is None)):
        found = f"embeddings {tuple(embeddings.shape)}" + (f" to be resized to {size}" if size else "")
        raise SettingsError(f"{found}; expected [d, h, w], or rows [N, d] without a size")
    width = embeddings.shape[0] if maps else embeddings.shape[1]
    if table.ndim != 2 or table.shape[1] != width:
        raise SettingsError(f"class table {tuple(table.shape)}; expected [C, {width}] as the embeddings are")
    if size is not None and min(size) < 1:
        raise SettingsError(f"size {size}; expected (height, width) of at least one pixel")
    if not maps:
        return embeddings.shape[:1]
    return torch.Size(size) if size is not None else embeddings.shape[1:]


def _tiles(
    embeddings: Tensor, size: tuple[int, int] | None, renormalise: bool, tile: int
) -> Iterator[tuple[int, Tensor]]:
    """(first output pixel, rows [n, d]) of bands of the result, in order."""
    if embeddings.ndim == 2:
        for low in range(0, len(embeddings), tile):
            yield low, embeddings[low : low + tile]
        return
    h, w = embeddings.shape[1:]
    height, width = size or (h, w)
    band = max(1, tile // max(1, width))
    for top in range(0, height, band):
        bottom = min(height, top + band)
        if (height, width) == (h, w):
            pixels = embeddings[:, top:bottom]
        else:
            pixels = _upsampled(embeddings, (height, width), top, bottom, renormalise)
        yield top * width, pixels.flatten(1).t()


def _upsampled(embeddings: Tensor, size: tuple[int, int], top: int, bottom: int, renormalise: bool) -> Tensor:
    """Rows top to bottom - 1 of maps [d, h, w] resized bilinearly to `size`: [d, bottom - top, W].

    Written out, because an interpolation of a part must have the same bits as that part of the whole.
    """
    wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    y0, y1, fy = _taps(wide.shape[1], size[0], top, bottom, wide)
    x0, x1, fx = _taps(wide.shape[2], size[1], 0, size[1], wide)
    upper, lower = wide[:, y0], wide[:, y1]
    rows = upper * (1 - fy)[:, None] + lower * fy[:, None]
    pixels = rows[:, :, x0] * (1 - fx) + rows[:, :, x1] * fx
    if not renormalise:
        return pixels
    squares = torch.zeros_like(pixels[0])
    for channel in pixels:  # in this order in every tile
        squares += channel * channel
    return pixels * (squares + SOFTENING).rsqrt()


def _taps(old: int, new: int, low: int, high: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For output positions low to high - 1 of `new`: the two input positions of `old`, and the second one's weight."""
    centre = torch.arange(low, high, dtype=like.dtype, device=like.device) + 0.5
    place = (centre * (old / new) - 0.5).clamp_min(0)
    first = place.long().clamp_max(old - 1)
    return first, (first + 1).clamp_max(old - 1), (place - first).clamp_max(1)


def _confident(rows: Tensor, columns: Tensor, index: Index, k: int, tau: float, distance: str) -> tuple[Tensor, Tensor]:
    """(ids, confidences), both [n, k], of rows [n, d] against a float64 table [d, C]."""
    ids = index.nearest(rows, k)
    shares = torch.empty(ids.shape, device=rows.device)
    classes = columns.shape[1]
    step = max(1, PAIRS // min(CLASSES, classes))
    for low in range(0, len(rows), step):
        part = slice(low, low + step)
        block = rows[part].double()
        total = torch.full((len(block),), -torch.inf, dtype=torch.float64, device=rows.device)
        for first in range(0, classes, CLASSES):
            logits = _logits(block, columns[:, first : first + CLASSES], tau, distance)
            total = torch.logaddexp(total, logits.logsumexp(1))
        near = columns.t()[ids[part]]  # [n, k, d]
        squares = (block[:, None] - near).square().sum(2)
        shares[part] = (_scaled(squares, tau, distance) - total[:, None]).exp().float()
    return ids, shares


def _logits(block: Tensor, columns: Tensor, tau: float, distance: str) -> Tensor:
    """Logits of every pair of rows [n, d] and columns [d, C], float64: [n, C]."""
    squares = torch.addmm(columns.square().sum(0), block, columns, alpha=-2)
    squares += block.square().sum(1, keepdim=True)
    return _scaled(squares.clamp_min_(0), tau, distance)


def _scaled(squares: Tensor, tau: float, distance: str) -> Tensor:
    """Squared distances as logits."""
    return (squares.sqrt() if distance == "plain" else squares) / -tau
