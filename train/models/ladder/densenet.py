"""DenseNet as the downsampling half of a ladder, made of timm's layers and loading timm's weights by name.

What differs from the classifier: the stem pools 2x2 (timm: 3x3), dense blocks may be split by a 2x2 average pooling
(DB3 for d = 64, DB3 and DB4 for d = 128), the last norm ("norm5") is gone, and blocks may be dilated instead of
pooled. The paper does not say where its 128 -> 4 pools a sixth time, nor how 16 -> 2 avoids a pooling: here the older
variant's split of DB4 (Table 7) is added to that of DB3, and the stem's 7x7 convolution has stride 1 (`first_stride`
in the release), so that every block runs at twice the resolution that it has at d = 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.ladder.units import halved, joined
from train.models.recompute import recompute

SPLITS = {16: (), 32: (), 64: (3,), 128: (3, 4)}  # blocks cut in half, by the stride of the last map
Maps = tuple[Tensor, ...]  # [B, C_i, h, w] each; their concatenation over channels is what the next layer sees


class Stem(nn.Module):
    """7x7 convolution, BN, ReLU, 2x2 max-pool: images [B, 3, H, W] -> (stem [B, C, H/2, W/2], pooled, half of that).

    With `stride` 1, twice both sizes.
    """

    def __init__(self, conv0: nn.Conv2d, norm0: nn.Module, stride: int) -> None:
        super().__init__()
        conv0.stride = (stride, stride)
        self.conv0, self.norm0, self.pool0 = conv0, norm0, nn.MaxPool2d(2, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map before pooling and the one after it."""
        full = self.norm0(self.conv0(images))
        return full, self.pool0(full)


class DenseUnit(nn.Module):
    """Concatenation, BN, ReLU, 1x1, BN, ReLU, 3x3: maps [B, C_i, h, w] -> [B, growth, h, w].

    Args:
        layer: timm's layer, whose parts are taken.
        dilation: of the 3x3 convolution.
        dropout: share of the output's numbers that training sets to zero.
        short: the 1x1 is left out where the input is no wider than what it makes; the 3x3 sees the input itself.
        segments: which parts are recomputed in backward: "cat-1x1", "3x3", "unit".
    """

    def __init__(
        self, layer: nn.Module, dilation: int, dropout: float, segments: frozenset[str], short: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = layer.get_submodule("norm1"), layer.get_submodule("conv1")
        self.norm2, self.conv2 = layer.get_submodule("norm2"), _conv(layer, "conv2")
        if short and (width := _conv(layer, "conv1").in_channels) <= self.conv2.in_channels:
            self.norm1, self.conv1, self.norm2 = nn.Identity(), nn.Identity(), self.norm1
            self.conv2 = nn.Conv2d(width, self.conv2.out_channels, 3, bias=False)
            nn.init.kaiming_normal_(self.conv2.weight)
        self.conv2.dilation = self.conv2.padding = (dilation, dilation)
        self.dropout, self.segments = dropout, segments

    def forward(self, *features: Tensor) -> Tensor:
        """The unit's own maps."""
        if "unit" in self.segments:
            out: Tensor = recompute(self.whole, *features)
            return out
        narrow = recompute(self.narrow, *features) if "cat-1x1" in self.segments else self.narrow(*features)
        grown: Tensor = recompute(self.grow, narrow) if "3x3" in self.segments else self.grow(narrow)
        return grown

    def narrow(self, *features: Tensor) -> Tensor:
        """Segment "cat-1x1": -> [B, 4 * growth, h, w]; the input itself [B, C, h, w] in a short unit."""
        out: Tensor = self.conv1(self.norm1(joined(features)))
        return out

    def grow(self, narrow: Tensor) -> Tensor:
        """Segment "3x3": [B, 4 * growth, h, w] -> [B, growth, h, w]."""
        out: Tensor = self.conv2(self.norm2(narrow))
        return F.dropout(out, self.dropout, self.training) if self.dropout else out

    def whole(self, *features: Tensor) -> Tensor:
        """Segment "unit": both."""
        return self.grow(self.narrow(*features))


class DenseBlock(nn.Module):
    """Units that see all maps before them: maps [B, C_i, h, w] -> the same and each unit's, not concatenated.

    Args:
        number: the block's number in timm's names, 1..4.
        first: its first unit's number there (a split block's second half starts later).
        units: in order.
        segments: "block" recomputes it as a whole.
    """

    def __init__(self, number: int, first: int, units: Iterable[DenseUnit], segments: frozenset[str]) -> None:
        super().__init__()
        self.number, self.first, self.segments = number, first, segments
        self.units = nn.ModuleList(units)

    def forward(self, *features: Tensor) -> Maps:
        """All maps, the block's input first."""
        grown: Maps = recompute(self.grow, *features) if "block" in self.segments else self.grow(*features)
        return (*features, *grown)

    def all_units(self) -> list[DenseUnit]:
        """The units in order."""
        return [cast(DenseUnit, unit) for unit in self.units]

    def grow(self, *features: Tensor) -> Maps:
        """Segment "block": the units' maps alone."""
        grown: list[Tensor] = []
        for unit in self.units:
            grown.append(unit(*features, *grown))
        return tuple(grown)


class TransitionDown(nn.Module):
    """BN, ReLU, 1x1 to half the channels, 2x2 average pooling (none before a dilated block).

    maps [B, C_i, h, w] -> [B, C / 2, h / 2, w / 2].
    """

    def __init__(self, number: int, layer: nn.Module, factor: int, segments: frozenset[str]) -> None:
        super().__init__()
        self.number, self.factor, self.segments = number, factor, segments
        self.norm, self.conv = layer.get_submodule("norm"), _conv(layer, "conv")

    def forward(self, *features: Tensor) -> Tensor:
        """The block's input that follows."""
        out: Tensor = recompute(self.whole, *features) if "td" in self.segments else self.whole(*features)
        return out

    def channels(self, width: int) -> int:
        """Channels out, of so many in."""
        return self.conv.out_channels

    def whole(self, *features: Tensor) -> Tensor:
        """Segment "td"."""
        narrow: Tensor = self.conv(self.norm(joined(features)))
        return halved(narrow) if self.factor == 2 else narrow


class Halving(nn.Module):
    """Between the halves of a split block: maps [B, C_i, h, w] -> their 2x2 means [B, C, h / 2, w / 2]."""

    factor = 2

    def __init__(self, segments: frozenset[str]) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, *features: Tensor) -> Tensor:
        """The second half's input."""
        out: Tensor = recompute(self.whole, *features) if "td" in self.segments else self.whole(*features)
        return out

    def channels(self, width: int) -> int:
        """Channels out, of so many in."""
        return width

    def whole(self, *features: Tensor) -> Tensor:
        """Segment "td"."""
        return halved(joined(features))


class LadderDenseNet(nn.Module):
    """forward(images [B, 3, H, W], H and W multiples of `down`) -> maps by stride, finest first.

    Each map is a tuple of tensors [B, C_i, H / s, W / s] whose concatenation is the map: those that are recomputed in
    backward are not held twice that way. `strides` and `channels` say what is given: the outputs of the dense blocks
    before each pooling, and with `finest` = 2 the stem's (before its pooling, after its ReLU).

    Args:
        name: one of timm's DenseNets with a 7x7 stem.
        pretrained: have timm fetch its ImageNet weights.
        down: stride of the last map: 128, 64, 32 or 16; 16 or 8 if `dilated`.
        finest: least stride of a map.
        dilated: blocks after stride `down` are dilated (16: DB4 by 2; 8: DB3 by 2, DB4 by 4).
        dropout: in every unit.
        segments: what is recomputed in backward (units.SEGMENTS).
        short_units: units whose input is no wider than their 1x1's output go without it, as the release has them
            where it does not load ImageNet weights (which have no place for such a 3x3).
        split: with `down` = 64, the block that is cut in half: 3, or 4 as in the paper's older variant "s4" (Table 7).

    Raises:
        ValueError: a DenseNet with another stem ("densenetblur121d").
    """

    def __init__(
        self,
        name: str,
        pretrained: bool,
        down: int,
        finest: int,
        dilated: bool = False,
        dropout: float = 0.0,
        segments: frozenset[str] = frozenset(),
        short_units: bool = False,
        split: int = 3,
    ) -> None:
        super().__init__()
        self.segments, self.finest = segments, finest
        layers = timm.create_model(name, pretrained=pretrained).features
        if layers.conv0.kernel_size != (7, 7) or not isinstance(layers.pool0, nn.MaxPool2d):
            raise ValueError("its stem is not a 7x7 convolution and a max-pool")
        self.stem = Stem(layers.conv0, layers.norm0, 1 if down == 16 and not dilated else 2)
        rates = {16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}[down] if dilated else (1, 1, 1, 1)
        splits = () if dilated else (split,) if down == 64 else SPLITS[down]
        self.blocks, self.downs = nn.ModuleList(), nn.ModuleList()
        for number, rate in enumerate(rates, 1):
            given = layers.get_submodule(f"denseblock{number}").values()
            units = [DenseUnit(layer, rate, dropout, segments, short_units) for layer in given]
            self._add_block(number, units, number in splits)
            if number < len(rates):
                factor = 1 if rates[number] > rate else 2
                transition = layers.get_submodule(f"transition{number}")
                self.downs.append(TransitionDown(number, transition, factor, segments))
        self.strides, self.channels = self._shapes()

    def _add_block(self, number: int, units: Sequence[DenseUnit], split: bool) -> None:
        half = len(units) // 2 if split else len(units)
        self.blocks.append(DenseBlock(number, 1, units[:half], self.segments))
        if split:
            self.downs.append(Halving(self.segments))
            self.blocks.append(DenseBlock(number, half + 1, units[half:], self.segments))

    def forward(self, images: Tensor) -> list[Maps]:
        """The maps, finest first."""
        stem, pooled = recompute(self.stem, images) if "stem" in self.segments else self.stem(images)
        maps: list[Maps] = [(stem,)] if self.finest < self._first_stride() else []
        features: Maps = (pooled,)
        for block, after in self._levels():
            features = block(*features)
            if not self.segments & {"td", "tu"}:
                features = (joined(features),)  # once for all who need it
            if after is None or after.factor == 2:
                maps.append(features)
            if after is not None:
                features = (after(*features),)
        return maps[-len(self.strides) :]

    def _levels(self) -> Iterator[tuple[DenseBlock, TransitionDown | Halving | None]]:
        """Each block and what follows it."""
        downs = [*(cast("TransitionDown | Halving", down) for down in self.downs), None]
        return zip((cast(DenseBlock, block) for block in self.blocks), downs, strict=True)

    def _first_stride(self) -> int:
        return 2 * self.stem.conv0.stride[0]

    def _shapes(self) -> tuple[list[int], list[int]]:
        """Strides and channels of the maps that forward gives."""
        stride, width = self._first_stride(), self.stem.conv0.out_channels
        found = [(stride // 2, width)]
        for block, after in self._levels():
            width += sum(unit.conv2.out_channels for unit in block.all_units())
            if after is None or after.factor == 2:
                found.append((stride, width))
            if after is not None:
                stride, width = stride * after.factor, after.channels(width)
        kept = [pair for pair in found if pair[0] >= self.finest]
        return [s for s, _ in kept], [c for _, c in kept]

    def as_timm(self) -> nn.Module:
        """The same layers under the names that timm's classifier has for them, for its state dicts."""
        root, features = nn.Module(), nn.Module()
        root.features = features
        features.conv0, features.norm0 = self.stem.conv0, self.stem.norm0
        for block, after in self._levels():
            name = f"denseblock{block.number}"
            if not hasattr(features, name):
                features.add_module(name, nn.Module())
            for number, unit in enumerate(block.all_units(), block.first):
                features.get_submodule(name).add_module(f"denselayer{number}", unit)
            if isinstance(after, TransitionDown):
                features.add_module(f"transition{after.number}", after)
        return root


def _conv(layer: nn.Module, name: str) -> nn.Conv2d:
    found = layer.get_submodule(name)
    assert isinstance(found, nn.Conv2d)
    return found
