"""A ladder network: encoder, pyramid, steps up, logits, and the auxiliary logits that training looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import SettingsError
from train.models.ladder.densenet import LadderDenseNet, Maps
from train.models.ladder.generic import LadderFeatures
from train.models.ladder.spp import context_of
from train.models.ladder.steps import LadderStep
from train.models.ladder.units import MOMENTUM, SEGMENTS, joined, to_logits
from train.models.norms import set_momentum
from train.models.recompute import recompute
from train.models.segmentation import SegmentationModel

if TYPE_CHECKING:
    from train.config import Model

# Channels after each step, told from the fine end: the step that meets DB1, DB2, DB3a, DB3b, ...
WIDTHS = (128, 128, 256, 256, 256)
STEM_WIDTH = 128  # after a step that meets the stem's own map


class Laddered(NamedTuple):
    """What a ladder network says of a batch in training.

    Args:
        logits: [B, C, H, W], on the grid of the input.
        steps: logits [B, C, h, w] of each step's input, at strides d ... 2u of the padded input, coarsest first.
        pools: logits [B, C, rows, columns] of the four pooled tensors (8, 4, 2, 1 rows) over the padded input; those
            of model.spp = "square" have 6, 3, 2, 1, and "none" has none.
    """

    logits: Tensor
    steps: tuple[Tensor, ...]
    pools: tuple[Tensor, ...]


class Ladder(nn.Module):
    """forward(maps, finest first) -> Laddered, with logits [B, C, H / u, W / u] at the finest map's stride u.

    Args:
        channels: of the maps, finest first.
        widths: channels after each step, coarsest first: one fewer than maps.
        classes: C.
        spp: None for the paper's widths of the pyramid, a number for the release's.
        residual, depthwise, segments: of the steps.
        auxiliary: have heads on each step's input and on the pooled tensors; they work in training alone.
        context: what stands at the coarsest map (spp.context_of).
    """

    def __init__(
        self,
        channels: Sequence[int],
        widths: Sequence[int],
        classes: int,
        spp: int | None = None,
        residual: bool = True,
        depthwise: bool = False,
        segments: frozenset[str] = frozenset(),
        auxiliary: bool = True,
        context: str = "paper",
    ) -> None:
        super().__init__()
        self.auxiliary, self.segments = auxiliary, segments
        self.spp = context_of(context, channels[-1], spp)
        self.steps, inputs = nn.ModuleList(), [self.spp.out]
        for skip, out in zip(reversed(channels[:-1]), widths, strict=True):
            self.steps.append(LadderStep(inputs[-1], skip, out, residual, depthwise, segments))
            inputs.append(out)
        self.head = to_logits(inputs[-1], classes)
        if auxiliary:
            self.step_heads = nn.ModuleList(to_logits(width, classes) for width in inputs[:-1])
            self.pool_heads = nn.ModuleList(to_logits(self.spp.mid, classes) for _ in range(self.spp.pools))

    def forward(self, maps: Sequence[Maps]) -> Laddered:
        """Logits at stride u; the auxiliary ones are empty outside of training."""
        rungs, means = self._climb(maps)
        logits = self._logits(self.head, rungs[-1])
        if not (self.auxiliary and self.training):
            return Laddered(logits, (), ())
        steps = tuple(self._logits(head, x) for head, x in zip(self.step_heads, rungs[:-1], strict=True))
        pools = tuple(self._logits(head, mean) for head, mean in zip(self.pool_heads, means, strict=True))
        return Laddered(logits, steps, pools)

    def by_step(self, maps: Sequence[Maps]) -> tuple[Tensor, ...]:
        """Logits [B, C, h, w] of each step's input and of the last step's output, coarsest first, in any mode; needs
        the auxiliary heads."""
        rungs, _ = self._climb(maps)
        return tuple(self._logits(head, x) for head, x in zip((*self.step_heads, self.head), rungs, strict=True))

    def _climb(self, maps: Sequence[Maps]) -> tuple[list[Tensor], list[Tensor]]:
        """The pyramid's output and each step's, coarsest first, [B, n, h, w] each; the pyramid's pooled tensors."""
        x, means = self.spp(joined(maps[-1]))
        rungs = [x]
        for step, skip in zip(self.steps, reversed(maps[:-1]), strict=True):
            rungs.append(step(rungs[-1], *skip))
        return rungs, means

    def _logits(self, head: nn.Module, x: Tensor) -> Tensor:
        """Heads belong to segment "tu", as in the release."""
        logits: Tensor = recompute(head, x) if "tu" in self.segments else head(x)
        return logits


class LadderModel(SegmentationModel):
    """SegmentationModel whose encoder gives maps by stride and whose decoder is a Ladder.

    forward(images [B, 3, H, W] in 0..255) -> logits [B, C, H, W]; in training with auxiliary heads, Laddered. Any H
    and W from 32 up: the input is padded with its mean colour to multiples of `down`.

    A training batch must leave every BatchNorm more than one number a channel: the coarsest grid of the pyramid has
    one cell for an image that is not wider than it is high, so that such images need a batch of two (with a square
    pyramid all images, without a pyramid those no larger than the coarsest map's stride).
    """

    def forward(self, images: Tensor) -> Tensor | Laddered:  # type: ignore[override]
        """Logits of images [B, 3, H, W] in 0..255."""
        h, w = images.shape[-2:]
        out = self._decoded(images)
        logits = self._full(out.logits, h, w)
        return Laddered(logits, out.steps, out.pools) if out.steps or out.pools else logits

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at stride u, of the padded input."""
        return self._decoded(images).logits

    def logits_by_stride(self, images: Tensor) -> dict[int, Tensor]:
        """What each rung of the ladder says of images [B, 3, H, W] in 0..255, in evaluation mode too (Figure 6).

        Returns:
            By stride, coarsest first, logits [B, C, H, W] on the grid of the input: those of the auxiliary heads on
            each step's input (d ... 2u), then those of `forward` (u).

        Raises:
            SettingsError: a ladder without auxiliary heads.
        """
        assert isinstance(self.decoder, Ladder)
        if not self.decoder.auxiliary:
            raise SettingsError(
                "found a ladder without auxiliary heads, expected one trained with model.auxiliary = true"
            )
        h, w = images.shape[-2:]
        found = self.decoder.by_step(self.encoder(self._padded(self.normalise(images))))
        return {self.multiple >> rung: self._full(logits, h, w) for rung, logits in enumerate(found)}

    def _decoded(self, images: Tensor) -> Laddered:
        if self.training:
            self._check_batch(images)
        out: Laddered = self.decoder(self.encoder(self._padded(self.normalise(images))))
        return out

    def _full(self, coarse: Tensor, h: int, w: int) -> Tensor:
        padded = (h + -h % self.multiple, w + -w % self.multiple)
        if coarse.dtype in (torch.bfloat16, torch.float16):  # CUDA adds up this resize's gradient in its own type
            coarse = coarse.float()
        return F.interpolate(coarse, size=padded, mode="bilinear", align_corners=False)[..., :h, :w]

    def _check_batch(self, images: Tensor) -> None:
        batch, (h, w) = images.shape[0], images.shape[-2:]
        assert isinstance(self.decoder, Ladder)
        rows, columns = self.decoder.spp.grids(-(-h // self.multiple), -(-w // self.multiple))[-1]
        if batch * rows * columns < self.smallest_batch:
            raise SettingsError(
                f"found a training batch of {batch} image of {h} x {w} a device and part, expected at least 2 images, "
                f"as the coarsest grid has one cell; raise loop.batch or lower loop.accumulate"
            )


def ladder_parts(config: Model, classes: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a recipe's ladder.

    Raises:
        ValueError: the encoder has no maps at the strides that model.down and model.up name.
    """
    segments = SEGMENTS[config.segments]
    fetch, dilated = config.weights == "timm", config.dilated is not None
    encoder: LadderDenseNet | LadderFeatures
    if config.encoder.startswith("densenet"):
        encoder = LadderDenseNet(
            config.encoder,
            fetch,
            config.down,
            config.up,
            dilated,
            config.dropout,
            segments,
            config.short_units,
            config.split_block,
        )
    else:
        encoder = LadderFeatures(config.encoder, fetch, config.down, config.up, dilated)
    expected = [config.up * 2**i for i in range((config.down // config.up).bit_length())]
    if encoder.strides != expected:
        raise ValueError(f"its maps have strides {encoder.strides}, and model.down and model.up ask for {expected}")
    set_momentum(encoder, MOMENTUM)
    decoder = Ladder(
        encoder.channels,
        _widths(config),
        classes,
        None if config.spp_width == "paper" else config.spp_width,
        config.ladder_residual,
        config.depthwise,
        segments,
        config.auxiliary,
        config.spp,
    )
    return encoder, decoder


def _widths(config: Model) -> list[int]:
    """Channels after each step, coarsest first."""
    first = 2 if config.down == 16 and config.dilated is None and config.encoder.startswith("densenet") else 4
    met = [config.up * 2**i for i in range((config.down // config.up).bit_length() - 1)]  # strides of the skips
    return [STEM_WIDTH if stride < first else WIDTHS[(stride // first).bit_length() - 1] for stride in reversed(met)]
