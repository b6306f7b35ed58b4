"""Spatial pyramid pooling on grids of square cells: the paper's Figure 2, shapes in the class docstring."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from train.models.ladder.units import NormActConv, resized

ROWS = (8, 4, 2, 1)


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

    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__()
        mid, level, out = (512, 128, out) if out else (width // 2, width // 8, width // 4)
        self.mid, self.out = mid, out
        self.project = NormActConv(width, mid)
        self.levels = nn.ModuleList(NormActConv(mid, level) for _ in ROWS)
        self.fuse = NormActConv(mid + len(ROWS) * level, out)

    def forward(self, maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Context and what was pooled, 8 rows first."""
        projected = self.project(maps)
        means = [pooled(projected, *grid) for grid in grids(*maps.shape[-2:])]
        levels = [resized(level(mean), maps.shape[-2:]) for level, mean in zip(self.levels, means, strict=True)]
        context: Tensor = self.fuse(torch.cat([projected, *levels], 1))
        return context, means
