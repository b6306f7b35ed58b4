"""A batch: images and sparse targets as tensors of fixed shape, made out of samples with sparse soft labels.

A target is `ids` and `weights` of K planes, K the largest number of classes in any cell of the batch (a hard label is
K = 1). Void has no plane: it shows as weights that sum to less than 1, and a cell of zeros is void altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

import shards
from shards.errors import SettingsError

VoidRule = Literal["mask", "renormalise", "keep"]
Ids = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """One sample after augmentation, still in NumPy.

    Args:
        key: the sample's key.
        image: uint8 [3, H, W].
        ids: int32 [K, H, W]; 0 where the weight is 0.
        weights: float32 [K, H, W], shares after the void rule.
        capped: cells whose lightest classes were left out (data.max_classes_per_cell).
    """

    key: str
    image: npt.NDArray[np.uint8]
    ids: Ids
    weights: Weights
    capped: int = 0


@dataclass(frozen=True)
class Batch:
    """Samples stacked; tensors as in `Item`, with a leading batch axis.

    Args:
        images: uint8 [B, 3, H, W].
        ids: int32 [B, K, H, W].
        weights: float32 [B, K, H, W].
        keys: the samples' keys, in order.
        capped: cells of the batch whose lightest classes were left out.
    """

    images: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    keys: tuple[str, ...]
    capped: int = 0

    def to(self, device: torch.device) -> Batch:
        """The batch on `device` (asynchronous from pinned memory)."""
        images, ids, weights = (t.to(device, non_blocking=True) for t in (self.images, self.ids, self.weights))
        return Batch(images, ids, weights, self.keys, self.capped)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's DataLoader calls this."""
        images, ids, weights = (t.pin_memory() for t in (self.images, self.ids, self.weights))
        return Batch(images, ids, weights, self.keys, self.capped)


def targets_of(soft: shards.SoftLabel, void: VoidRule = "mask", most: int = 8) -> tuple[Ids, Weights, int]:
    """Planes of class ids and shares from a sparse soft label.

    Args:
        soft: the label, h x w cells.
        void: "mask": a cell with a void share of 1/2 or more is void, others sum to 1; "renormalise": every cell with
            any class sums to 1; "keep": a cell sums to 1 less its void share.
        most: keep this many classes a cell, the heaviest; their shares then stand for the left-out ones as well.

    Returns:
        ids int32 [K, h, w], weights float32 [K, h, w], and the number of cells that lost a class to `most`;
        K is the largest number of classes in any cell, 1 to `most`.
    """
    ids, weights = soft.topk(soft.max_classes)  # uint16 [k, h, w], void among the classes
    if len(ids) == 1:
        known = ids != shards.IGNORE
        return np.where(known, ids, 0).astype(np.int32), known.astype(np.float32), 0
    flat_ids, flat_weights = ids.reshape(len(ids), -1), weights.reshape(len(ids), -1)
    mixed = np.flatnonzero(flat_weights[1])  # only these need arithmetic
    few_ids, shares, capped = _mixed_targets(
        flat_ids[:, mixed].astype(np.int32), flat_weights[:, mixed].astype(np.int32), soft.denominator, void, most
    )
    planes = len(few_ids)
    known = flat_ids[0] != shards.IGNORE
    out_ids = np.zeros((planes, flat_ids.shape[1]), np.int32)
    out_weights = np.zeros((planes, flat_ids.shape[1]), np.float32)
    out_ids[0], out_weights[0] = np.where(known, flat_ids[0], 0), known
    out_ids[:, mixed], out_weights[:, mixed] = few_ids, shares
    return out_ids.reshape(planes, *soft.shape), out_weights.reshape(planes, *soft.shape), capped


def _mixed_targets(ids: Ids, weights: Ids, denominator: int, void: VoidRule, most: int) -> tuple[Ids, Weights, int]:
    """`targets_of` for the mixed cells: ids and weights int32 [k, m] by falling weight -> [K, m] and cells cut."""
    if not ids.shape[1]:
        return ids[:1], weights[:1].astype(np.float32), 0
    weights = np.where(ids == shards.IGNORE, 0, weights)  # empty slots hold weight 0 already
    order = np.argsort(weights == 0, axis=0, kind="stable")  # void and empty slots last, the rest stays sorted
    ids, weights = np.take_along_axis(ids, order, 0), np.take_along_axis(weights, order, 0)
    mass = weights.sum(0)  # what the cell's classes hold together
    planes = int(np.clip((weights > 0).sum(0).max(), 1, most))
    capped = int((weights[planes:] > 0).any(0).sum())
    ids, weights = ids[:planes], weights[:planes]
    total = mass / denominator if void == "keep" else np.ones(len(mass))  # what the shares sum to
    if void == "mask":
        total = np.where(2 * mass > denominator, total, 0.0)
    shares = (weights * (total / np.maximum(weights.sum(0), 1))).astype(np.float32)
    return np.where(shares > 0, ids, 0).astype(np.int32), shares, capped


def collate(items: Sequence[Item]) -> Batch:
    """Stack items; planes that an item lacks are filled with weight 0.

    Raises:
        SettingsError: the items' sizes differ.
    """
    sizes = sorted({item.image.shape[1:] for item in items})
    if len(sizes) > 1:
        found = ", ".join(f"{h}x{w}" for h, w in sizes[:3])
        raise SettingsError(f"samples of sizes {found} share a batch: set augment.crop = [height, width]")
    planes = max(len(item.ids) for item in items)
    shape = (len(items), planes, *sizes[0])
    ids, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for index, item in enumerate(items):
        ids[index, : len(item.ids)], weights[index, : len(item.ids)] = item.ids, item.weights
    return Batch(
        images=torch.from_numpy(np.stack([item.image for item in items])),
        ids=torch.from_numpy(ids),
        weights=torch.from_numpy(weights),
        keys=tuple(item.key for item in items),
        capped=sum(item.capped for item in items),
    )


def planar(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] -> contiguous [3, H, W]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))
