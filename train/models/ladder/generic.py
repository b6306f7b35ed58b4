"""Any other of timm's encoders under a ladder: ResNets, DPNs and whatever has feature maps."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from train.models.features import FeatureMaps


class LadderFeatures(nn.Module):
    """forward(images [B, 3, H, W]) -> maps by stride, finest first, each a tuple of one tensor [B, C, H / s, W / s].

    Of several maps with one stride (a dilated encoder has them) the last is taken. `strides` and `channels` say what
    is given.

    Args:
        name: of the encoder in timm.
        pretrained: have timm fetch its weights.
        down: stride of the last map; with `dilated`, the encoder's output stride.
        finest: least stride of a map.

    Raises:
        ValueError: the encoder has no map at stride `down`.
    """

    def __init__(self, name: str, pretrained: bool, down: int, finest: int, dilated: bool = False) -> None:
        super().__init__()
        self.maps = (
            FeatureMaps(name, pretrained, down) if dilated else FeatureMaps(name, pretrained, **_until(name, down))
        )
        strides = list(self.maps.model.feature_info.reduction())
        last = {stride: i for i, stride in enumerate(strides)}
        self.kept = [i for stride, i in sorted(last.items()) if finest <= stride <= down]
        self.strides = [strides[i] for i in self.kept]
        self.channels = [self.maps.channels[i] for i in self.kept]

    def as_timm(self) -> nn.Module:
        """What timm's names of weights belong to; shares all parameters."""
        return self.maps

    def forward(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """The maps, finest first."""
        found = self.maps(images)
        return [(found[i],) for i in self.kept]


def _until(name: str, down: int) -> dict[str, Any]:
    """The option of timm that leaves out what lies behind the map of stride `down`."""
    with torch.device("meta"):
        strides = timm.create_model(name, features_only=True).feature_info.reduction()
    if down not in strides:
        raise ValueError(f"its maps have strides {strides}, and model.down = {down}")
    return {"out_indices": tuple(range(strides.index(down) + 1))}
