"""Score maps of a cosine head at full size, some classes at a time: `CosineScores(windows, size)[low:high]`.

Any number of classes goes through in bounded memory: what is held are the windows' features, and one map with the sum
of the softmax. A slice is made anew each time: products at the network's stride, resized to the windows' size,
averaged where windows overlap, mirrored back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from train.losses.cosine import steep_rows
from train.models import Cosined
from train.windows import Window, stitched

CHUNK = 1 << 25  # values of a map held at once (128 MB in float32)


class ScoreMap(Protocol):
    """Scores [C, h, w], a tensor or what is made slice by slice."""

    @property
    def shape(self) -> Sequence[int]:
        """(C, h, w)."""

    def __getitem__(self, part: slice) -> Tensor:
        """Scores of some classes, [c, h, w]."""


class CosineScores:
    """What a cosine network says of one view of an image: softmax scores, or the logits alone.

    Args:
        windows: of one view; their outputs are Cosined, of one image each.
        size: (h, w) of the image; what lies beyond is cut off.
        mirrored: whether the view is of the mirror image.
        classes: int64 [c], the classes that there are to choose from; None: all. Scores are standardised over them.
        softmax: whether slices are softmax scores; else logits.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        size: tuple[int, int],
        mirrored: bool = False,
        classes: Tensor | None = None,
        softmax: bool = True,
    ) -> None:
        first: Cosined = windows[0].output
        self.table = first.table if classes is None else first.table[classes]
        self.windows = windows
        self.rows = [steep_rows(window.output, self.table) for window in windows]  # [h * w, d] each
        self.size, self.mirrored, self.softmax = size, mirrored, softmax
        self.level: Tensor | None = None  # [h, w], log of the sum of all exponentials

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        return (len(self.table), *self.size)

    def __getitem__(self, part: slice) -> Tensor:
        """Scores of some classes, float32 [c, h, w]."""
        logits = self._logits(part)
        if not self.softmax:
            return logits
        if self.level is None:
            self.level = self._level()
        return logits.sub_(self.level).exp_()

    def _logits(self, part: slice) -> Tensor:
        table = self.table[part]
        maps = [(w.top, w.left, _resized(table @ rows.t(), w)) for w, rows in zip(self.windows, self.rows, strict=True)]
        whole = stitched(maps)
        whole = whole.flip(-1) if self.mirrored else whole
        return whole[:, : self.size[0], : self.size[1]]

    def _level(self) -> Tensor:
        chunk = max(1, CHUNK // (self.size[0] * self.size[1]))
        level = self.table.new_full(self.size, -torch.inf)
        for low in range(0, len(self.table), chunk):
            level = torch.logaddexp(level, self._logits(slice(low, low + chunk)).logsumexp(0))
        return level


def _resized(scores: Tensor, window: Window) -> Tensor:
    """Scores [c, h * w] at the network's stride, at the window's size: [c, H, W]."""
    output: Cosined = window.output
    rows, columns = output.features.shape[2:]
    coarse = scores.view(1, -1, rows, columns)
    whole = (rows * output.step, columns * output.step)
    full = F.interpolate(coarse, size=whole, mode="bilinear", align_corners=False)[0]
    return full[:, : window.inside[0], : window.inside[1]]
