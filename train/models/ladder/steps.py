"""One step up the ladder ("TU" in the paper, Figure 3)."""

from __future__ import annotations

from torch import Tensor, nn

from train.models.ladder.units import NormActConv, joined, resized
from train.models.recompute import recompute

NARROW = 128  # channels in front of the 3x3 convolution, at most


class LadderStep(nn.Module):
    """(below [B, n, h, w], skip maps [B, C_i, h', w']) -> [B, out, h', w'].

    The skip is projected to n channels and added to what comes from below, resized bilinearly; the sum goes through a
    1x1 to 128 channels if n > 128, and a 3x3 to `out`. Each convolution is BN-ReLU-conv.

    Args:
        width: n.
        skip: channels of the skip connection.
        out: channels out.
        residual: add the resized input to the output, through a 1x1 if n differs from `out` (the release does).
        depthwise: the 3x3 is depthwise separable, on all n channels (the release has no 1x1 before it then).
        segments: "tu" recomputes the step in backward.
    """

    def __init__(
        self, width: int, skip: int, out: int, residual: bool, depthwise: bool, segments: frozenset[str]
    ) -> None:
        super().__init__()
        self.segments, self.out = segments, out
        self.skip = NormActConv(skip, width)
        narrow = min(width, NARROW) if not depthwise else width
        self.narrow = NormActConv(width, narrow) if narrow < width else nn.Identity()
        self.blend = NormActConv(narrow, out, 3, depthwise=depthwise)
        self.across: nn.Module | None = None
        if residual:
            self.across = nn.Identity() if width == out else NormActConv(width, out)

    def forward(self, below: Tensor, *skip: Tensor) -> Tensor:
        """What the next step starts from."""
        out: Tensor = recompute(self.whole, below, *skip) if "tu" in self.segments else self.whole(below, *skip)
        return out

    def whole(self, below: Tensor, *skip: Tensor) -> Tensor:
        """Segment "tu"."""
        beside = self.skip(joined(skip))  # [B, n, h', w']
        above = resized(below, beside.shape[-2:])
        past = None if self.across is None else self.across(above)
        out: Tensor = self.blend(self.narrow(beside + above))  # last: backward's second pass stops short of its 3x3
        return out if past is None else out + past
