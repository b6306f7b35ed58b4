"""The unit that ladders are made of, and how a list of maps that belong together is handled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.05  # of every BatchNorm in a ladder network, as in the release

SEGMENTS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "3x3": frozenset({"3x3"}),
    "cat-1x1": frozenset({"cat-1x1"}),
    "cat-1x1, 3x3": frozenset({"cat-1x1", "3x3"}),
    "block+stem+td+tu": frozenset({"block", "stem", "td", "tu"}),
    "unit": frozenset({"unit"}),
    "unit+stem+td+tu": frozenset({"unit", "stem", "td", "tu"}),
}  # the checkpointing variants of the paper's Table 11; its "UP" is "tu" here


class NormActConv(nn.Sequential):
    """BatchNorm, ReLU, convolution: [B, in, h, w] -> [B, out, h, w]; without bias, except where logits are made.

    Args:
        width, out: channels in and out.
        kernel: of the convolution, odd.
        bias: of the convolution.
        depthwise: a kernel x kernel convolution a channel, then a 1x1.
    """

    def __init__(self, width: int, out: int, kernel: int = 1, bias: bool = False, depthwise: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=1e-5, momentum=MOMENTUM)
        self.act = nn.ReLU(inplace=True)
        if depthwise:
            self.depthwise = _started(nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False))
            self.conv = _started(nn.Conv2d(width, out, 1, bias=bias))
        else:
            self.conv = _started(nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=bias))


def to_logits(width: int, classes: int) -> NormActConv:
    """BN-ReLU-1x1 with bias, [B, width, h, w] -> [B, classes, h, w]."""
    unit = NormActConv(width, classes, bias=True)
    nn.init.xavier_normal_(unit.conv.weight)
    return unit


def joined(features: Sequence[Tensor]) -> Tensor:
    """Maps [B, C_i, h, w] -> [B, sum of C_i, h, w]."""
    return features[0] if len(features) == 1 else torch.cat(tuple(features), 1)


def halved(maps: Tensor) -> Tensor:
    """Means of 2 x 2: [B, C, h, w], h and w even -> [B, C, h / 2, w / 2], as F.avg_pool2d has them.

    In training it holds nothing: torch's own keeps its input until backward, which reads no more than its shape there,
    so that a checkpointed transition would compute its convolution twice for nothing.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and maps.requires_grad):
        return F.avg_pool2d(maps, 2, 2)
    out: Tensor = _Halved.apply(maps)
    return out


class _Halved(torch.autograd.Function):
    """F.avg_pool2d(maps, 2, 2), and in backward a quarter of each mean's gradient to each of its four values."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return F.interpolate(grad * 0.25, scale_factor=2, mode="nearest")


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, pixel centres kept: [B, C, h, w] -> [B, C, *size]."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _started(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
