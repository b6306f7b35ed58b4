"""The feature maps of any of timm's encoders: pyramids of maps, or a ViT's patch tokens."""

from __future__ import annotations

from typing import Any

import timm
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models import is_model_in_modules
from torch import Tensor, nn

from shards.errors import SettingsError


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


class PatchTokens(nn.Module):
    """A timm ViT as an encoder of one map: its patch tokens behind the final LayerNorm, class token left out.

    forward(images [B, 3, H, W]) -> [tokens [B, d, H / p, W / p]] for any H and W that are multiples of the patch p;
    position embeddings are resized to the grid at hand (bicubic, antialiased).
    """

    def __init__(self, name: str, pretrained: bool, **options: Any) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **options)
        self.model.reset_classifier(0, "")  # some pool by attention, which here would never get a gradient

    @property
    def channels(self) -> list[int]:
        """Width of the tokens."""
        return [int(self.model.num_features)]

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    def forward(self, images: Tensor) -> list[Tensor]:
        """The one map."""
        rows, columns = (side // self.patch for side in images.shape[-2:])
        tokens = self.model.fc_norm(self.model.forward_features(images))  # [B, n, d]; one of the two norms is none
        patches = tokens[:, self.model.num_prefix_tokens :]
        return [patches.transpose(1, 2).unflatten(2, (rows, columns))]

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this ViT at another image size: position embeddings are resized to this one's grid."""
        own, given = self.model.pos_embed, tensors.get("pos_embed")
        if own is None or given is None or given.ndim != 3 or given.shape[1] == own.shape[1]:
            return tensors
        prefix = 0 if self.model.no_embed_class else self.model.num_prefix_tokens
        side = max(0, given.shape[1] - prefix) ** 0.5
        if side != int(side) or side < 1:
            return tensors  # no square grid: its shape is refused
        resized = resample_abs_pos_embed(given, list(self.model.patch_embed.grid_size), num_prefix_tokens=prefix)
        return {**tensors, "pos_embed": resized}


def is_vit(name: str) -> bool:
    """Whether timm has a plain vision transformer by this name."""
    return bool(timm.is_model(name) and is_model_in_modules(name.split(".")[0], ("vision_transformer", "deit")))


def encoder_of(
    name: str, pretrained: bool, output_stride: int, drop_path: float, **options: Any
) -> FeatureMaps | PatchTokens:
    """Feature maps, or a ViT's patch tokens, with stochastic depth where asked.

    Raises:
        SettingsError: the encoder has no stochastic depth, or a ViT's patches have another stride.
    """
    if not drop_path:
        return _encoder(name, pretrained, output_stride, **options)
    refusal = SettingsError(f"model.drop_path = {drop_path}: expected 0 with {name}, which has no stochastic depth")
    try:
        encoder = _encoder(name, pretrained, output_stride, drop_path_rate=drop_path, **options)
    except TypeError as error:
        raise refusal if "drop_path_rate" in str(error) else error from None
    if not any(isinstance(module, DropPath) for module in encoder.modules()):
        raise refusal
    return encoder


def _encoder(name: str, pretrained: bool, output_stride: int, **options: Any) -> FeatureMaps | PatchTokens:
    if not is_vit(name):
        return FeatureMaps(name, pretrained, output_stride, **options)
    tokens = PatchTokens(name, pretrained, **options)
    if tokens.patch in (8, 16, 32) and output_stride != tokens.patch:
        raise SettingsError(f"model.output_stride = {output_stride}: expected {tokens.patch}, the patch of {name}")
    return tokens
