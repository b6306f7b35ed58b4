"""What every network of the trainer is: an encoder and a decoder between raw pixels and full-size logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shards.errors import SettingsError


class SegmentationModel(nn.Module):
    """Normalise, pad, encode, decode, upsample, crop back.

    forward(images [B, 3, H, W], RGB in 0..255, uint8 or floating) -> logits [B, C, H, W], for any H, W from 32 up.
    Logits are raw (no softmax) and lie on the grid of the input; `coarse` gives them at the network's own stride.

    Args:
        encoder: images [B, 3, H', W'] (normalised) -> list of feature maps, finest first.
        decoder: that list -> logits [B, C, H' / s, W' / s].
        mean, std: of the input, in 0..1.
        multiple: H' and W' are the input's size rounded up to a multiple of this; the padding is the mean colour.
        freeze_norm: normalisation layers of the encoder stay in evaluation mode (their statistics do not move).
        smallest_batch: fewest images that a training step works on (2 where a BatchNorm sees pooled 1 x 1 maps).
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        multiple: int,
        freeze_norm: bool = False,
        smallest_batch: int = 1,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.multiple, self.freeze_norm, self.smallest_batch = multiple, freeze_norm, smallest_batch
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _channels(mean), persistent=False)  # a setting, so the recipe keeps it
        self.register_buffer("std", _channels(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, 3, H, W] in 0..255."""
        h, w = images.shape[-2:]
        coarse = self.coarse(images)  # [B, C, H' / s, W' / s]
        padded = (h + -h % self.multiple, w + -w % self.multiple)
        if coarse.dtype in (torch.bfloat16, torch.float16):  # CUDA adds up this resize's gradient in its own type
            coarse = coarse.float()
        full = F.interpolate(coarse, size=padded, mode="bilinear", align_corners=False)
        return full[..., :h, :w]

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at the network's own stride, of the padded input."""
        if self.training and images.shape[0] < self.smallest_batch:
            raise SettingsError(
                f"found a training batch of {images.shape[0]} image a device and part, expected at least "
                f"{self.smallest_batch} for this network's BatchNorm; raise loop.batch or lower loop.accumulate"
            )
        logits: Tensor = self.decoder(self.encoder(self._padded(self.normalise(images))))
        return logits

    def normalise(self, images: Tensor) -> Tensor:
        """0..255 -> zero mean, unit variance, floating."""
        pixels = images if images.is_floating_point() else images.float()
        return (pixels - self.mean) / self.std

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """What the recipe's encoder_lr_scale applies to."""
        return self.encoder.parameters()

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        return self.decoder.parameters()

    def train(self, mode: bool = True) -> SegmentationModel:
        """As in torch, but frozen normalisation layers stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.encoder.modules():
                if isinstance(module, _NormBase):
                    module.eval()
        return self

    def _padded(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        down, right = -h % self.multiple, -w % self.multiple
        return F.pad(images, (0, right, 0, down)) if down or right else images


def _channels(values: Sequence[float]) -> Tensor:
    return Tensor([255.0 * v for v in values]).view(1, -1, 1, 1)
