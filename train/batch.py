"""A batch: images and sparse targets as tensors of fixed shape, made out of samples with sparse soft labels.

A target is `ids` and `weights` of K planes, K the largest number of classes in any cell of the batch (a hard label is
K = 1). Void has no plane: it shows as weights that sum to less than 1, and a cell of zeros is void altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch

import shards
from shards.errors import SettingsError

VoidRule = Literal["mask", "renormalise", "keep"]
VOID_RULES = ("mask", "renormalise", "keep")  # as the kernels number them
Ids = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """The target of one sample, still sparse: one class a cell, but for the mixed cells.

    Args:
        base: uint16 [h, w], the class of each cell that is not mixed; void 65535.
        cells: [m], flat indices of the mixed cells.
        ids: int32 [K, m], classes of the mixed cells, heaviest first; 0 where the weight is 0.
        weights: float32 [K, m], their shares after the void rule.
        capped: mixed cells whose lightest classes were left out.
    """

    base: npt.NDArray[np.uint16]
    cells: npt.NDArray[Any]
    ids: Ids
    weights: Weights
    capped: int = 0

    @property
    def planes(self) -> int:
        """K, the largest number of classes in any cell."""
        return len(self.ids)

    def fill(self, ids: Ids, weights: Weights) -> None:
        """Write into the whole of two arrays, int32 and float32 [>= K, h, w], contiguous; zeros where nothing is."""
        from train import batch_kernels

        flat = ids.reshape(len(ids), -1), weights.reshape(len(weights), -1)
        batch_kernels.fill_planes(self.base.reshape(-1), self.cells, self.ids, self.weights, *flat)


@dataclass(frozen=True)
class Item:
    """One sample after augmentation, still in NumPy.

    Args:
        key: the sample's key.
        image: uint8 [3, H, W].
        targets: of H x W cells.
        allowed: bool [C], which classes are candidates of the loss here; None: all (`loss.lvis_negatives`).
        source: of a mixture (index into recipe.mixture.sources).
        tags: int64 [t], the classes that an image of an image-level source shows, rising; None: it has pixel labels.
    """

    key: str
    image: npt.NDArray[np.uint8]
    targets: Targets
    allowed: npt.NDArray[np.bool_] | None = None
    source: int = 0
    tags: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples stacked; tensors as in `Item`, with a leading batch axis. All are of one source.

    Args:
        images: uint8 [B, 3, H, W].
        ids: int32 [B, K, h, w]; h x w is H x W, or the coarser grid of data.target_stride; 0 x 0 where there are tags.
        weights: float32 [B, K, h, w].
        keys: the samples' keys, in order.
        capped: cells of the batch whose lightest classes were left out.
        allowed: bool [B, C], or None.
        source: of a mixture (index into recipe.mixture.sources).
        tags: int64 [T, 2] of an image-level source, rows (image in the batch, class), rising; None: pixel labels.
        untagged: images of an image-level source without any tag.
    """

    images: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    keys: tuple[str, ...]
    capped: int = 0
    allowed: torch.Tensor | None = None
    source: int = 0
    tags: torch.Tensor | None = None
    untagged: int = 0

    def to(self, device: torch.device) -> Batch:
        """The batch on `device` (asynchronous from pinned memory)."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's DataLoader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        images, ids, weights = (move(tensor) for tensor in (self.images, self.ids, self.weights))
        allowed, tags = (None if tensor is None else move(tensor) for tensor in (self.allowed, self.tags))
        return replace(self, images=images, ids=ids, weights=weights, allowed=allowed, tags=tags)


# Of an image whose places nobody knows: no cell at all.
NOWHERE = Targets(
    np.zeros((0, 0), np.uint16), np.zeros(0, np.int32), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.float32)
)


def targets_of(soft: shards.SoftLabel, void: VoidRule = "mask", most: int = 8) -> Targets:
    """The target that a soft label gives.

    Args:
        soft: the label, h x w cells.
        void: "mask": a cell with a void share of 1/2 or more is void, others sum to 1; "renormalise": every cell with
            any class sums to 1; "keep": a cell sums to 1 less its void share.
        most: keep this many classes a cell, the heaviest; their shares then stand for the left-out ones as well.
    """
    from train import batch_kernels

    planes = min(max(int(batch_kernels.count_classes(soft.starts, soft.ids)), 1), most)
    ids = np.empty((planes, len(soft.cells)), np.int32)
    weights = np.empty(ids.shape, np.float32)
    cut = batch_kernels.share_out(
        soft.starts, soft.ids, soft.weights, soft.denominator, VOID_RULES.index(void), ids, weights
    )
    return Targets(np.ascontiguousarray(soft.base), soft.cells, ids, weights, int(cut))


def collate(items: Sequence[Item]) -> Batch:
    """Stack items; planes that an item lacks hold weight 0.

    Raises:
        SettingsError: the items' sizes differ.
    """
    sizes = sorted({item.image.shape[1:] for item in items})
    if len(sizes) > 1:
        found = ", ".join(f"{h}x{w}" for h, w in sizes[:3])
        raise SettingsError(f"samples of sizes {found} share a batch: set augment.crop = [height, width]")
    shape = (len(items), max(item.targets.planes for item in items), *items[0].targets.base.shape)
    ids, weights = np.empty(shape, np.int32), np.empty(shape, np.float32)
    for index, item in enumerate(items):
        item.targets.fill(ids[index], weights[index])
    allowed = [item.allowed for item in items if item.allowed is not None]
    return Batch(
        images=torch.from_numpy(np.stack([item.image for item in items])),
        ids=torch.from_numpy(ids),
        weights=torch.from_numpy(weights),
        keys=tuple(item.key for item in items),
        capped=sum(item.targets.capped for item in items),
        allowed=torch.from_numpy(np.stack(allowed)) if len(allowed) == len(items) else None,
        source=items[0].source,
        tags=_tags(items),
        untagged=sum(item.tags is not None and not len(item.tags) for item in items),
    )


def _tags(items: Sequence[Item]) -> torch.Tensor | None:
    """The items' tags, int64 [T, 2], rows (item, class); None where they have pixel labels."""
    found = [(index, item.tags) for index, item in enumerate(items) if item.tags is not None]
    if not found:
        return None
    rows = [np.stack([np.full(len(tags), index, np.int64), tags], 1) for index, tags in found]
    return torch.from_numpy(np.concatenate(rows))


def planar(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] -> contiguous [3, H, W]."""
    out = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
    cv2.split(np.ascontiguousarray(image), list(out))
    return out
