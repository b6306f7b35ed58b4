"""The embedding head: pixels and classes are points on one unit sphere, and a pixel's class is the nearest one.

`build_model(config.model, num_classes, config.loss)` with `model.head = "embedding"`. Any decoder gives d channels at
its own stride; they are put on the sphere there, upsampled bilinearly (which pulls them inside) and put back on it
(`renormalise`; the release of ESSNet leaves them inside). Beside the network stands a table of C class embeddings.

Source: Jain et al., "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU" (ESSNet), section 3.1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from train.models.segmentation import SegmentationModel

SOFTENING = 1e-12  # added to a squared norm: a vector of zeros stays there, and gradients grow a million times at most


class Embedded(NamedTuple):
    """What an embedding network says of a batch.

    Args:
        pixels: [B, d, H, W], floating (float32 at least), on the unit sphere (within it without `renormalise`).
        table: [C, d], float32, the class embeddings, on the sphere.
        tau: the temperature, a number, or a 0-dim tensor with gradient where it is learnt.
        searched: [C, d], the table that the nearest classes are searched in, where that is another (search_every).
    """

    pixels: Tensor
    table: Tensor
    tau: Tensor | float
    searched: Tensor | None = None


def on_sphere(vectors: Tensor, dim: int) -> Tensor:
    """`vectors` at length 1 along `dim`, in float32 at least: x / sqrt(|x|^2 + 1e-12).

    A vector of zeros stays zero, with a finite gradient; one of length 0.001 or more misses the sphere by 5e-7 at most.
    """
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return wide * (wide.square().sum(dim, keepdim=True) + SOFTENING).rsqrt()


class ClassEmbeddings(nn.Module):
    """A table of C class embeddings, drawn uniformly out of [-1, 1]^d; forward() -> [C, d] on the unit sphere.

    `searched` keeps a copy of the table that is refreshed by `look` alone, where the nearest classes are not searched
    in the present one; it is stored with the weights, so that a resumed run searches in the same copy.
    """

    def __init__(self, num_classes: int, dim: int, keep_searched: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim).uniform_(-1, 1))
        self.searched: Tensor | None
        self.register_buffer("searched", self().detach().clone() if keep_searched else None)

    def forward(self) -> Tensor:
        """The class embeddings float32 [C, d], on the unit sphere."""
        return on_sphere(self.weight, 1)

    @torch.no_grad()
    def look(self) -> None:
        """Let the search see the table as it is now."""
        if self.searched is not None:
            self.searched.copy_(self())


class Temperature(nn.Module):
    """tau: a fixed number, or learnt as its logarithm, which keeps it above 0."""

    def __init__(self, tau: float, learnt: bool) -> None:
        super().__init__()
        self.fixed = tau
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau))) if learnt else None

    def forward(self) -> Tensor | float:
        """The temperature; a 0-dim tensor with gradient where it is learnt."""
        return self.fixed if self.log_tau is None else self.log_tau.exp()


class EmbeddingModel(SegmentationModel):
    """A segmentation network with an embedding head.

    forward(images [B, 3, H, W]) -> Embedded; `coarse` gives pixel embeddings [B, d, H' / s, W' / s] on the sphere.

    Args:
        classes: the class table.
        temperature: of the softmax over distances.
        renormalise: whether upsampled embeddings are put back on the sphere.
        distance: "squared" or "plain": what the logits are made of (`train.losses`).
        parts: encoder, decoder and so on, as SegmentationModel takes them.
    """

    def __init__(
        self, classes: ClassEmbeddings, temperature: Temperature, renormalise: bool, distance: str, **parts: Any
    ) -> None:
        super().__init__(**parts)
        self.classes, self.temperature = classes, temperature
        self.renormalise, self.distance = renormalise, distance

    def forward(self, images: Tensor) -> Embedded:  # type: ignore[override]
        """Pixel embeddings at full size, with the class table and the temperature, so that a wrapper sees all used."""
        pixels = super().forward(images)
        if self.renormalise:
            pixels = on_sphere(pixels, 1)
        return Embedded(pixels, self.classes(), self.temperature(), self.classes.searched)

    def coarse(self, images: Tensor) -> Tensor:
        """Pixel embeddings at the network's own stride, of the padded input."""
        return on_sphere(super().coarse(images), 1)
