"""Decoders that are ours: lists of feature maps in, logits at the finest map's stride out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConcatenationHead(nn.Module):
    """HRNetV2's head: every map upsampled to the finest, concatenated, mixed by a 1x1, classified by a 1x1.

    Source: Wang et al., "Deep high-resolution representation learning for visual recognition", HRNetV2, Fig. 4b.
    There the mixing convolution is as wide as the concatenation (720 channels for W48).
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        narrow = nn.Conv2d(sum(channels), width, 1, bias=False)
        nn.init.kaiming_normal_(narrow.weight, nonlinearity="relu")
        self.mix = nn.Sequential(narrow, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = _classifier(width, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, h_i, w_i], finest first -> logits [B, C, h_0, w_0]."""
        size = features[0].shape[-2:]
        up = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features[1:]]
        mixed = self.mix(torch.cat([features[0], *up], dim=1))  # [B, width, h_0, w_0]
        logits: Tensor = self.classify(self.dropout(mixed))
        return logits


class LinearHead(nn.Module):
    """One 1x1 convolution on the last feature map: what an encoder's features hold linearly."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classify = _classifier(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, h_i, w_i] -> logits [B, C, h_last, w_last]."""
        logits: Tensor = self.classify(self.dropout(features[-1]))
        return logits


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution that starts near uniform predictions."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
