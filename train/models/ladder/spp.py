"""Spatial pyramid pooling on grids of square cells (the paper's Figure 2), and what its Table 9 puts in its place.

`context_of(kind, width)` makes one of them: maps [B, d, h, w] -> (context [B, out, h, w], pooled tensors).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from train.models.ladder.units import NormActConv, resized

ROWS = (8, 4, 2, 1)
SQUARE = (6, 3, 2, 1)  # of PSPNet, as many columns
Context = tuple[Tensor, list[Tensor]]


def grids(height: int, width: int) -> list[tuple[int, int]]:
    """(rows, columns) of the four grids of an h x w map: as many columns as make the cells square, at least one."""
    return [(rows, max(1, round(width / height * rows))) for rows in ROWS]


def pooled(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Means over a grid: [B, C, h, w] -> [B, C, rows, columns], as F.adaptive_avg_pool2d has them.

    Written as two matrix products in float32 at least: torch has no deterministic gradient of that on CUDA.
    """
    kind = maps.device.type
    with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
        wide = maps if maps.dtype == torch.float64 else maps.float()
        down = _means(rows, wide.shape[-2], wide)
        across = _means(columns, wide.shape[-1], wide)
        out: Tensor = down @ wide @ across.T
    return out.to(maps.dtype)


def _means(cells: int, length: int, like: Tensor) -> Tensor:
    """[cells, length]: row i averages positions floor(i * length / cells) up to ceil((i + 1) * length / cells)."""
    at = torch.arange(length, device=like.device)[None]
    i = torch.arange(cells, device=like.device)[:, None]
    first, end = i * length // cells, -((i + 1) * length // -cells)
    inside = ((at >= first) & (at < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class SpatialPyramid(nn.Module):
    """maps F [B, d, h, w] -> (context [B, out, h, w], four pooled tensors [B, mid, rows, columns]).

    F is projected to `mid` channels and averaged over four grids; each is projected to `level` channels and resized to
    h x w; all of that is concatenated and blended to `out` channels.

    Args:
        width: d.
        out: None for the paper's widths, mid = d / 2, level = d / 8, out = d / 4; a number for the release's,
            mid = 512, level = 128 and that number out, whatever d is.
    """

    pools = len(ROWS)  # pooled tensors that forward gives

    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__()
        mid, level, out = (512, 128, out) if out else (width // 2, width // 8, width // 4)
        self._build(width, mid, level, out)

    def _build(self, width: int, mid: int, level: int, out: int) -> None:
        self.mid, self.out = mid, out
        self.project = NormActConv(width, mid)
        self.levels = nn.ModuleList(NormActConv(mid, level) for _ in range(self.pools))
        self.fuse = NormActConv(mid + self.pools * level, out)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(rows, columns) of what is pooled of an h x w map; the last is the smallest."""
        return grids(height, width)

    def forward(self, maps: Tensor) -> Context:
        """Context and what was pooled, most rows first."""
        projected = self.project(maps)
        means = [pooled(projected, *grid) for grid in self.grids(*maps.shape[-2:])]
        levels = [resized(level(mean), maps.shape[-2:]) for level, mean in zip(self.levels, means, strict=True)]
        context: Tensor = self.fuse(torch.cat([projected, *levels], 1))
        return context, means


class SquarePyramid(SpatialPyramid):
    """Table 9's "SPP [17]": PSPNet's grids of 6 x 6, 3 x 3, 2 x 2 and 1 x 1 cells for any aspect, and wider tensors.

    The paper gives no widths. Here mid = d / 2, level = d / 4 as in PSPNet, out = d / 2 (512 for DenseNet-121, as in
    PSPNet): of those that we tried the nearest to the printed counts.
    """

    pools = len(SQUARE)

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self._build(width, width // 2, width // 4, width // 2)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """As many columns as rows."""
        return [(rows, rows) for rows in SQUARE]


class NoPyramid(nn.Module):
    """Table 9's "NoSPP": a 3x3 convolution to d / 4 channels, of what the pyramid too projects to d / 2 first.

    The text has "a single 3x3 convolution" in place of the module; with the projection in front of it the printed
    counts agree, without it there are 0.65 M parameters more.
    """

    pools = 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mid, self.out = width // 2, width // 4
        self.project = NormActConv(width, self.mid)
        self.fuse = NormActConv(self.mid, self.out, 3)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """The map itself: nothing is pooled."""
        return [(height, width)]

    def forward(self, maps: Tensor) -> Context:
        """Context and no pooled tensors."""
        return self.fuse(self.project(maps)), []


def context_of(kind: str, width: int, out: int | None = None) -> SpatialPyramid | NoPyramid:
    """The module of `model.spp` for maps of `width` channels; `out` as in SpatialPyramid, for "paper" alone."""
    if kind == "paper":
        return SpatialPyramid(width, out)
    return SquarePyramid(width) if kind == "square" else NoPyramid(width)
