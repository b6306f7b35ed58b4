"""The cosine head: a pixel's score of a class is the cosine of two vectors, made steeper by a gain.

`build_model(config.model, num_classes, config.loss)` with `model.head = "cosine"`. What the decoder made is projected
without bias and put on the unit sphere at the network's own stride; beside it stands a table of C unit class vectors.
With f a pixel's vector and w_c those of the candidate classes, the softmax sees

    z_c = gamma (f w_c - mu) / sigma        mu, sigma: mean and deviation of the cosines of f over the candidates

("standardised", as in LarvSeg's release; gamma is learnt), or gamma f w_c ("scaled"). mu cancels in a softmax, and
sigma^2 = f' S f + 1e-5 with S the covariance of the class vectors, so that z is g f w_c with a gain g a pixel: scores
need no [pixels, C] tensor. The release's learned shift cancels as well and is left out.

Source: Yu et al., "LarvSeg: Exploring Image Classification Data For Large Vocabulary Semantic Segmentation via
Category-wise Attentive Classifier", section 3.1, and its public release.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.models.embedding import on_sphere
from train.models.segmentation import SegmentationModel

EPSILON = 1e-5  # added to the variance over the candidates
ROWS = 4096  # classes at a time where centred copies of the table are made


class Cosined(NamedTuple):
    """What a cosine network says of a batch, in training and in evaluation.

    Args:
        features: [B, d, h, w], float32, of unit length, at the network's own stride, of the padded input.
        table: [C, d], float32, of unit length.
        gamma: 0-dim, the learned factor ("standardised") or the fixed scale.
        standardised: whether scores are standardised over the candidates.
        size: (H, W) of the images.
        stride: pixels of the padded input for a cell of features; 0: the images had no padding to speak of.
    """

    features: Tensor
    table: Tensor
    gamma: Tensor
    standardised: bool
    size: tuple[int, int]
    stride: int = 0

    @property
    def step(self) -> int:
        """The stride, or what the sizes say of it."""
        return self.stride or -(-self.size[0] // self.features.shape[2])


def gains(features: Tensor, table: Tensor, gamma: Tensor, standardised: bool) -> Tensor:
    """What the cosines of each row are multiplied with: gamma / sigma, or gamma. Differentiable in all arguments.

    Args:
        features: [N, d], rows of unit length.
        table: [c, d], the candidates' vectors.
        gamma: 0-dim.
        standardised: see the module.

    Returns:
        [N], in the wider type of features and table.
    """
    if not standardised:
        return gamma.to(features.dtype).expand(len(features))
    with without_autocast(features.device):
        spread: Tensor = _Covariance.apply(table)  # [d, d]
        variance = ((features @ spread) * features).sum(1)  # [N]
        return gamma * (variance.clamp_min(0) + EPSILON).rsqrt()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """No autocast on the device (on "meta", which knows none, nothing changes)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _Covariance(torch.autograd.Function):
    """(W - mean)' (W - mean) / c of W [c, d], without a centred copy of all of W, forward or backward."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        mean, width = table.mean(0), table.shape[1]
        spread = table.new_zeros(width, width)
        for rows in table.split(ROWS):
            centred = rows - mean
            spread.addmm_(centred.t(), centred)
        return spread.div_(len(table))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (table,) = ctx.saved_tensors
        pull = (upstream + upstream.t()) / len(table)  # [d, d]
        return torch.addmm(-(table.mean(0) @ pull), table, pull)


class ClassVectors(nn.Module):
    """A table of C class vectors, drawn from a truncated normal distribution; forward() -> [C, d] of unit length."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.02))

    def forward(self) -> Tensor:
        """The class vectors float32 [C, d], of unit length."""
        return on_sphere(self.weight, 1)


class Gamma(nn.Module):
    """The factor on the scores: learnt, or fixed (it is then a setting and no weight)."""

    def __init__(self, value: float, learnt: bool) -> None:
        super().__init__()
        if learnt:
            self.value: Tensor = nn.Parameter(torch.tensor(value))
        else:
            self.register_buffer("value", torch.tensor(value), persistent=False)

    def forward(self) -> Tensor:
        """The factor, 0-dim."""
        return self.value


class CosineModel(SegmentationModel):
    """A segmentation network with a cosine head.

    forward(images [B, 3, H, W]) -> Cosined, in training and in evaluation; `coarse` gives the unit features
    [B, d, H' / s, W' / s]. train/losses/cosine.py makes a loss of them, train/inference.py labels.

    Args:
        vectors: the class table.
        gamma: the factor on the scores.
        standardised: whether scores are standardised over the candidates.
        parts: encoder, decoder and so on, as SegmentationModel takes them; the decoder gives d channels.
    """

    def __init__(self, vectors: ClassVectors, gamma: Gamma, standardised: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self.vectors, self.gamma, self.standardised = vectors, gamma, standardised

    def forward(self, images: Tensor) -> Cosined:  # type: ignore[override]
        """Features at the network's stride, with the class table and gamma, so that a wrapper sees all used."""
        height, width = images.shape[-2:]
        features = self.coarse(images)  # [B, d, h, w]
        stride = (height + -height % self.multiple) // features.shape[2]
        return Cosined(features, self.vectors(), self.gamma(), self.standardised, (height, width), stride)

    def coarse(self, images: Tensor) -> Tensor:
        """Features of unit length at the network's own stride, of the padded input."""
        return on_sphere(super().coarse(images), 1)

    def decoder_parameters(self) -> Any:
        """All that is not the encoder's: the decoder, the class table and gamma."""
        for module in (self.decoder, self.vectors, self.gamma):
            yield from module.parameters()


def project(decoder: nn.Module, dim: int | None) -> int:
    """Put a 1x1 convolution without bias in place of a decoder's last convolution, its classifier.

    Args:
        decoder: changed in place.
        dim: d; None: as wide as what is projected.

    Returns:
        d.
    """
    name, last = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Conv2d)][-1]
    width = last.in_channels
    layer = nn.Conv2d(width, dim or width, 1, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    parent, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(parent), leaf, layer)
    return layer.out_channels
