"""The feature maps of any of timm's encoders."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn


class FeatureMaps(nn.Module):
    """A timm feature extractor whose maps are [B, C, h, w], whatever timm's own layout is; see `model`."""

    def __init__(self, name: str, pretrained: bool, output_stride: int = 32, **options: Any) -> None:
        super().__init__()
        if output_stride != 32:
            options["output_stride"] = output_stride
        self.model = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
        self.channels_last_maps = getattr(self.model, "output_fmt", None) == "NHWC"

    @property
    def channels(self) -> list[int]:
        """Channels of each map."""
        return list(self.model.feature_info.channels())

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        maps: list[Tensor] = self.model(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last_maps else maps
