"""A network's view of one image: the whole of it, or overlapping windows, as it is and mirrored.

    for windows in glances(model, image, Views(flip=True, window=(512, 512)), device): ...    # train/inference.py
    logits = stitched([(w.top, w.left, w.output[0]) for w in windows], size)

Windows lie `stride` apart; the last of a row or column is moved inwards so that it ends with the image (the way of
mmsegmentation). What several windows say of a pixel is averaged before any softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.errors import SettingsError

SMALLEST = 32  # networks need this many pixels a side


@dataclass(frozen=True)
class Views:
    """How often a network looks at an image.

    Args:
        scales: factors on the size of the input image.
        flip: look at the mirror image as well.
        bf16: compute in bfloat16 where the device can.
        window: (height, width) of the windows that the (scaled) image is looked at in; None: at once.
        stride: (down, right) from one window to the next; None: the window's own size.

    Raises:
        SettingsError: a window of fewer than 32 pixels a side, or a stride that leaves gaps.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    bf16: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.window is None:
            if self.stride is not None:
                raise SettingsError(f"stride {self.stride} without a window; give both, or none")
            return
        if min(self.window) < SMALLEST:
            raise SettingsError(f"window {self.window}: expected at least {SMALLEST} pixels a side")
        if any(not 1 <= step <= side for step, side in zip(self.steps, self.window, strict=True)):
            raise SettingsError(f"stride {self.stride}: expected 1 pixel to the window's {self.window}")

    @property
    def steps(self) -> tuple[int, int]:
        """From one window to the next; (0, 0) without windows."""
        return self.stride or self.window or (0, 0)


class Window(NamedTuple):
    """What a network said of a part of an image; `inside` is that part's (height, width)."""

    top: int
    left: int
    inside: tuple[int, int]
    output: Any


def glances(
    model: Callable[[Tensor], Any], image: npt.NDArray[Any], views: Views, device: torch.device
) -> list[list[Window]]:
    """What a network says of the windows of one image, and of those of its mirror image where asked.

    Images of fewer than 32 pixels a side are continued with their border's colours, to the right and downwards: what
    the network says of that is to be cut off (after mirroring back).
    """
    h, w = image.shape[:2]
    pixels = torch.tensor(np.ascontiguousarray(image), device=device).permute(2, 0, 1)[None]  # [1, 3, h, w]
    if min(h, w) < SMALLEST:
        pixels = F.pad(pixels.float(), (0, max(0, SMALLEST - w), 0, max(0, SMALLEST - h)), mode="replicate")
    with torch.autocast(device.type, torch.bfloat16, enabled=views.bf16):
        return [_windows(model, shown, views) for shown in ((pixels, pixels.flip(-1)) if views.flip else (pixels,))]


def _windows(model: Callable[[Tensor], Any], pixels: Tensor, views: Views) -> list[Window]:
    height, width = pixels.shape[-2:]
    high, wide = views.window or (height, width)
    down, right = views.steps
    found = []
    for top in starts(height, high, down):
        for left in starts(width, wide, right):
            part = pixels[..., top : top + high, left : left + wide]
            found.append(Window(top, left, (part.shape[-2], part.shape[-1]), model(part)))
    return found


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side begin."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def stitched(parts: Sequence[tuple[int, int, Tensor]]) -> Tensor:
    """Maps [c, h, w] at their (top, left), averaged where they overlap: [c, H, W]."""
    if len(parts) == 1:
        return parts[0][2]
    height = max(top + part.shape[1] for top, _, part in parts)
    width = max(left + part.shape[2] for _, left, part in parts)
    total = parts[0][2].new_zeros(len(parts[0][2]), height, width)
    count = total.new_zeros(height, width)
    for top, left, part in parts:
        area = (..., slice(top, top + part.shape[1]), slice(left, left + part.shape[2]))
        total[area] += part
        count[area] += 1
    return total.div_(count)
