"""Normalisation layers of a whole network exchanged after it was built: `model.norm`, `sync_norm`, `norm_momentum`.

GroupNorm needs no batch, which is how large class tables were trained with two images a step (ESSNet, Table 5).
Learnt scales and shifts, such as those of pretrained weights, are carried over; BatchNorm's running statistics have no
place in a GroupNorm and are dropped.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shards.errors import SettingsError

GROUP = 16  # channels of a group
Network = TypeVar("Network", bound=nn.Module)


class GroupNormAct(nn.GroupNorm):
    """GroupNorm followed by what timm's BatchNormAct2d holds besides: a drop layer and an activation."""

    def __init__(self, groups: int, channels: int, eps: float, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(groups, channels, eps)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


def with_group_norm(network: Network) -> Network:
    """`network`, every BatchNorm2d inside replaced by GroupNorm in place; its scale, shift and epsilon are kept."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, _group_norm(child))
        else:
            with_group_norm(child)
    return network


def groups_of(channels: int) -> int:
    """How many groups: of 16 channels; where that leaves a rest, of the next larger number that leaves none."""
    size = next((size for size in range(GROUP, channels) if channels % size == 0), channels)
    return channels // size


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Give every BatchNorm of `network` this momentum (torch's: the weight of the new batch)."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum


def with_sync_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` with statistics that are shared over the ranks; names of its state stay.

    Raises:
        SettingsError: not on CUDA, where torch has no such layer.
    """
    if device.type != "cuda":
        raise SettingsError(
            f"model.sync_norm = true on {device.type}: expected CUDA devices, as torch synchronises BatchNorm there "
            "alone; give --set model.sync_norm=false"
        )
    converted: nn.Module = convert_sync_batchnorm(network)
    return converted


def _group_norm(norm: nn.BatchNorm2d) -> nn.GroupNorm:
    channels = norm.num_features
    new = GroupNormAct(
        groups_of(channels),
        channels,
        norm.eps,
        getattr(norm, "drop", nn.Identity()),
        getattr(norm, "act", nn.Identity()),
    )
    if norm.affine:
        with torch.no_grad():
            new.weight.copy_(norm.weight)
            new.bias.copy_(norm.bias)
    return new.to(norm.weight.device if norm.affine else None)
