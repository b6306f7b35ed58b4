"""A network as `seg-export` traces it: `deployed(model, "logits")(images [B, 3, H, W]) -> [B, C, H, W]`.

What the network computes is its own forward. Two places branch on the input's size in Python, where a tracer would
keep the example's branch: the padding to a multiple of the stride, and the grids of a ladder's pyramid, whose columns
follow from the aspect ratio. Here they are arithmetic on sizes, so that the traced graph works at any.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import padding
from torch import Tensor, nn

from shards.errors import UserError
from train.models import CosineModel, Embedded, EmbeddingModel
from train.models.cosine import EPSILON
from train.models.ladder.model import Ladder
from train.models.ladder.spp import ROWS, SpatialPyramid
from train.models.ladder.units import resized
from train.models.segmentation import SegmentationModel

Output = Literal["logits", "softmax", "classes"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


def deployed(model: nn.Module, output: Output = "logits") -> Deployed:
    """A copy of a trained network, ready to be traced; the network itself stays as it is.

    What training alone needs is left out: auxiliary heads. Checkpointed segments vanish, as nothing is recomputed
    under no_grad.

    Args:
        model: in evaluation mode.
        output: what the graph gives.

    Raises:
        UserError: no network of train/models.
    """
    if not isinstance(model, SegmentationModel):
        raise UserError(f"{type(model).__name__} is no network of train/models; only those are exported")
    network = copy.deepcopy(model).eval()
    vars(network)["_padded"] = types.MethodType(_padded, network)
    for name, part in list(network.named_modules()):
        if isinstance(part, SpatialPyramid):
            network.set_submodule(name, AnyGrid(part))
    if isinstance(network.decoder, Ladder):
        network.decoder.auxiliary = False
        for name in ("step_heads", "pool_heads"):
            if hasattr(network.decoder, name):
                delattr(network.decoder, name)
    if any(isinstance(part, nn.Linear) for part in network.encoder.modules()):
        _contiguous_convolutions(network)
    return Deployed(network, output).eval()


class Deployed(nn.Module):
    """forward(images [B, 3, H, W] in 0..255, uint8 or float32; any H, W from 32 up) -> what `output` names.

    "logits" float32 [B, C, H, W]: of an embedding head -distance / tau to each class embedding, of a cosine head the
    cosines times what standardises them over all classes (less a shift that no softmax sees); "softmax" float32
    [B, C, H, W]; "classes" [B, H, W], uint8 up to 256 classes, uint16 above: the first of the greatest.
    """

    def __init__(self, network: SegmentationModel, output: Output) -> None:
        super().__init__()
        self.network, self.output = network, output
        self.cosines = Cosines(network) if isinstance(network, CosineModel) else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits, softmax or classes at the input's size."""
        found = self.network(images) if self.cosines is None else self.cosines(images)
        distance = self.network.distance if isinstance(self.network, EmbeddingModel) else "squared"
        logits = _distances(found, distance) if isinstance(found, Embedded) else found
        if self.output == "softmax":
            return logits.softmax(1)
        if self.output == "classes":
            return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.uint16)
        answer: Tensor = logits
        return answer


class Cosines(nn.Module):
    """A cosine network whose class table, and what its scores are standardised by, are constants of the graph.

    forward(images [B, 3, H, W]) -> logits [B, C, H, W], resized from the network's stride as train/score_maps.py does.
    """

    table: Tensor
    gamma: Tensor
    spread: Tensor

    @torch.no_grad()
    def __init__(self, network: CosineModel) -> None:
        super().__init__()
        self.network = network
        table, width = network.vectors().detach(), network.vectors.weight.shape[1]
        self.register_buffer("table", table[:, :, None, None])  # [C, d, 1, 1]
        self.register_buffer("gamma", network.gamma().detach().clone())
        centred = table - table.mean(0)
        spread = centred.t() @ centred / len(table) if network.standardised else torch.zeros(width, width)
        self.register_buffer("spread", spread[:, :, None, None])  # [d, d, 1, 1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C, H, W]."""
        network = self.network
        features = network.coarse(images)  # [B, d, h, w]
        gain = self.gamma
        if network.standardised:
            variance = (F.conv2d(features, self.spread) * features).sum(1, keepdim=True)
            gain = gain * (variance.clamp_min(0) + EPSILON).rsqrt()
        h, w = images.shape[-2:]
        padded = (h + -h % network.multiple, w + -w % network.multiple)
        coarse = F.conv2d(gain * features, self.table)
        return F.interpolate(coarse, size=padded, mode="bilinear", align_corners=False)[..., :h, :w]


@contextmanager
def whole_padding() -> Iterator[None]:
    """Inside, timm's layers with "same" padding (EfficientNets, some ResNets) reckon it in whole numbers: the ceiling
    of a quotient, which they take, has no place in a .pt2 file."""
    before = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = before


def same_padding(length: int, kernel: int, stride: int, dilation: int) -> int:
    """What is padded in all for ceil(length / stride) results; lengths may be traced ones."""
    found: int = torch.sym_max((-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
    return found


class AnyGrid(nn.Module):
    """A SpatialPyramid, by parts that it shares, whose grids are computed from the map's size inside the graph."""

    def __init__(self, pyramid: SpatialPyramid) -> None:
        super().__init__()
        self.project, self.levels, self.fuse = pyramid.project, pyramid.levels, pyramid.fuse

    def forward(self, maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As SpatialPyramid: context and what was pooled, 8 rows first."""
        projected = self.project(maps)
        h, w = projected.shape[-2:]
        means = [_pooled(projected, rows, columns(h, w, rows)) for rows in ROWS]
        levels = [resized(level(mean), (h, w)) for level, mean in zip(self.levels, means, strict=True)]
        context: Tensor = self.fuse(torch.cat([projected, *levels], 1))
        return context, means


def columns(height: int, width: int, rows: int) -> int:
    """max(1, round(width / height * rows)) in whole numbers, traced ones too; halves go to the even neighbour."""
    twice = 2 * width * rows + height
    above, rest = twice // (2 * height), twice % (2 * height)
    half = 1 - torch.sym_min(1, rest)  # 1 where the quotient lies between two whole numbers exactly
    found: int = torch.sym_max(1, above - half * (above % 2))
    return found


def _pooled(maps: Tensor, rows: int, across: int) -> Tensor:
    """[B, C, h, w] -> [B, C, rows, across], as train/models/ladder/spp.py."""
    h, w = maps.shape[-2:]
    by_column = F.linear(maps, _means(across, w, maps))  # [B, C, h, across]
    return F.linear(by_column.transpose(2, 3), _means(rows, h, maps)).transpose(2, 3)


def _means(cells: int, length: int, like: Tensor) -> Tensor:
    """[cells, length]: row i averages positions floor(i * length / cells) up to ceil((i + 1) * length / cells)."""
    at = torch.arange(length, device=like.device)[None]
    i = torch.arange(cells, device=like.device)[:, None]
    first = torch.div(i * length, cells, rounding_mode="floor")
    end = torch.div((i + 1) * length + cells - 1, cells, rounding_mode="floor")
    inside = ((at >= first) & (at < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _distances(found: Embedded, distance: str) -> Tensor:
    """Logits [B, C, H, W] of an embedding head: -|x - e|^2 / tau, or -|x - e| / tau."""
    table = found.table  # [C, d]
    products = F.conv2d(found.pixels, table[:, :, None, None])  # [B, C, H, W]
    squares = found.pixels.square().sum(1, keepdim=True) - 2 * products + table.square().sum(1)[:, None, None]
    apart = squares.clamp_min(0)
    return -(apart if distance == "squared" else apart.sqrt()) / found.tau


def _padded(network: SegmentationModel, images: Tensor) -> Tensor:
    """In place of SegmentationModel._padded: without a branch."""
    h, w = images.shape[-2:]
    height, width = ((side + network.multiple - 1) // network.multiple * network.multiple for side in (h, w))
    return F.pad(images, (0, width - w, 0, height - h))


def _contiguous_convolutions(network: nn.Module) -> None:
    """Transformers hand permuted maps to convolutions; which layout the result then has depends on whether a size is
    1, and the tracer would note that no size ever is. A copy (none in ONNX) has one layout at any size."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (given[0].clone(memory_format=torch.contiguous_format), *given[1:])
