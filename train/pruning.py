"""What a trained network still sees once the last units of its encoder are silent (Kreso et al. 2021, 5.6, Figure 5).

    seg-ladder prune --run runs/ldn --shards data/camvid --split val --plot pruned.svg

"We disable convolutional units by setting their output to zero. In order to allow pruning in all processing blocks, we
preserve all transition-down units and 1x1 convolutions in residual connections." A unit is one of DenseNet's layers,
whose new channels become zero, or one block of a ResNet, RegNet or DPN, whose residual branch does: the shortcut stays,
as do a DPN block's channels from before. Nothing is trained again, and no weight is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from timm.models import dpn, regnet, resnet
from torch import Tensor, nn

from shards.errors import SettingsError
from train.distributed import World
from train.evaluate import Split, Watcher, evaluate
from train.inference import Views
from train.models.ladder.densenet import DenseUnit

# By the class of a unit, the layers in front of the concatenation or the sum. A unit may lack some (None).
LAST: dict[type[nn.Module], tuple[str, ...]] = {
    DenseUnit: ("conv2",),
    resnet.BasicBlock: ("bn2", "se"),
    resnet.Bottleneck: ("bn3", "se"),
    regnet.Bottleneck: ("conv3",),
    dpn.DualPathBlock: ("c1x1_c",),  # convolutions without bias may follow
}


def units_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The encoder's units with their names in the network, the last first.

    Raises:
        SettingsError: the encoder has none that this module knows.
    """
    encoder = model.get_submodule("encoder")
    kinds = tuple(LAST)
    found = [(name, part) for name, part in encoder.named_modules(prefix="encoder") if isinstance(part, kinds)]
    if not found:
        raise SettingsError(
            "found no units to prune in this run's encoder, expected a ladder over a DenseNet, or any network over one "
            "of timm's ResNets, RegNets or DPNs"
        )
    return found[::-1]


@contextmanager
def pruned(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, the last `count` units of the encoder give zeros; afterwards the network is as it was.

    Raises:
        SettingsError: no units, or fewer than `count`.
    """
    units = units_of(model)
    if not 0 <= count <= len(units):
        raise SettingsError(f"found {len(units)} units in this run's encoder, expected 0 to {len(units)}, not {count}")
    with ExitStack() as hooks:
        for _, unit in units[:count]:
            for layer in _last_layers(unit):
                hooks.callback(layer.register_forward_hook(_silenced).remove)
        yield


def counts_of(wanted: Sequence[int] | Literal["all"] | None, total: int) -> list[int]:
    """How many units to silence, one after the other: those given, all from 0, or (None) 0, 1, 2, 4, 8 ... and all.

    Raises:
        SettingsError: more than there are.
    """
    if wanted == "all":
        return list(range(total + 1))
    if wanted is None:
        return sorted({0, total, *(2**power for power in range(total.bit_length()))})
    if max(wanted) > total:
        raise SettingsError(f"--units {max(wanted)}: found {total} units in this run's encoder, expected at most that")
    return sorted(set(wanted))


def score_pruned(
    model: nn.Module,
    counts: Sequence[int],
    split: Split,
    views: Views,
    world: World,
    limit: int | None = None,
    watch: Watcher | None = None,
) -> list[dict[str, Any]]:
    """Score a split with the last `count` units silent, for each of `counts`; ranks share the work.

    Args:
        model: on the world's device.
        counts: how many units of the tail are silenced.
        split, views, world, limit, watch: as for `train.evaluate.evaluate`.

    Returns:
        For each count, "units" and all scores of seg-eval.

    Raises:
        SettingsError: as `pruned`.
    """
    found = []
    for count in counts:
        with pruned(model, count):
            scores, _ = evaluate(model, split, views, world, limit, watch)
        found.append({"units": count, **scores})
    return found


def _last_layers(unit: nn.Module) -> list[nn.Module]:
    names = next(names for kind, names in LAST.items() if isinstance(unit, kind))
    layers = [getattr(unit, name, None) for name in names]
    return [layer for layer in layers if layer is not None]


def _silenced(layer: nn.Module, inputs: Any, out: Tensor) -> Tensor:
    return torch.zeros_like(out)
