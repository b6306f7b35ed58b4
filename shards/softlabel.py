"""The soft label: for every cell of a grid the exact share of each class, void included, stored sparsely.

Most cells hold one class, so a label is a ``base`` map of each cell's heaviest class and a list of the mixed cells
with all their entries. Weights are integers over one ``denominator``; nothing here rounds. The [h, w, C] array is
built by ``dense`` alone, for those who ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.classes import IGNORE
from shards.errors import SettingsError

U16 = npt.NDArray[np.uint16]
F32 = npt.NDArray[np.float32]
VoidRule = Literal["mask", "renormalise", "keep"]
VOID_RULES = ("mask", "renormalise", "keep")


@dataclass(frozen=True, eq=False)
class SoftLabel:
    """A sparse soft label; a value: no method changes it.

    Args:
        base: uint16 [h, w], heaviest class of each cell (ties: lowest id, void last); void = 65535.
        denominator: what the weights of every cell sum to, 1 to 65535.
        cells: int32 [m], flat indices of the mixed cells, rising.
        starts: int64 [m + 1], where each mixed cell's entries start.
        ids: uint16 [t], classes of the entries; a cell's entries by falling weight, ties by rising id.
        weights: uint16 [t], their weights, above 0.
    """

    base: U16
    denominator: int
    cells: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    ids: U16
    weights: U16

    @classmethod
    def from_hard(cls, hard: U16) -> SoftLabel:
        """A hard label uint16 [h, w] as a soft one: every cell one class, denominator 1."""
        empty = np.zeros(0, np.uint16)
        return cls(np.ascontiguousarray(hard), 1, np.zeros(0, np.int32), np.zeros(1, np.int64), empty, empty)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in cells."""
        return self.base.shape[0], self.base.shape[1]

    @property
    def max_classes(self) -> int:
        """The largest number of classes in any cell, void counted as one."""
        return int(np.diff(self.starts).max(initial=1))

    @property
    def largest_id(self) -> int:
        """The largest class id, void aside; -1 where all is void."""
        return max(_largest(self.base), _largest(self.ids))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SoftLabel):
            return NotImplemented
        return self.denominator == other.denominator and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("base", "cells", "starts", "ids", "weights")
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, held in arrays

    def topk(self, k: int, out: tuple[U16, U16] | None = None) -> tuple[U16, U16]:
        """The k heaviest entries of each cell.

        Args:
            k: how many, from 1.
            out: two arrays uint16 [k, h, w] to write into, contiguous, such as a sample's place in a batch.

        Returns:
            ids uint16 [k, h, w] and weights uint16 [k, h, w] over ``denominator``, by falling weight; void is id
            65535 as any other class; empty slots hold id 65535 and weight 0.
        """
        if k < 1:
            raise SettingsError(f"topk({k}) asked for; expected k >= 1")
        from shards import kernels_cells

        ids, weights = np.empty((2, k, *self.shape), np.uint16) if out is None else out
        for array in (ids, weights):
            if array.shape != (k, *self.shape) or array.dtype != np.uint16 or not array.flags.c_contiguous:
                raise SettingsError(
                    f"topk: out of shape {list(array.shape)}, {array.dtype} found; expected contiguous uint16 "
                    f"{[k, *self.shape]}"
                )
        flat = np.ascontiguousarray(self.base).reshape(-1)
        planes = (ids.reshape(k, -1), weights.reshape(k, -1))
        kernels_cells.top_planes(flat, self.cells, self.starts, self.ids, self.weights, self.denominator, planes)
        return ids, weights

    def dense(self, classes: int, void: VoidRule = "mask") -> F32:
        """Shares as float32 [h, w, classes].

        Args:
            classes: C; a class id of C or more in the label raises SettingsError.
            void: ``mask`` cells with a void share of at least 1/2 are all zero, the others sum to 1 (the ladder
                paper's rule); ``renormalise`` all cells with any class sum to 1; ``keep`` sums are 1 - void share.
        """
        if void not in VOID_RULES:
            raise SettingsError(f"void rule {void!r} found; expected one of {', '.join(VOID_RULES)}")
        if self.largest_id >= classes:
            raise SettingsError(f"class id {self.largest_id} found in a soft label; expected ids below {classes}")
        out: F32 = np.zeros((self.base.size, classes), np.float32)
        flat = self.base.ravel()
        real = np.flatnonzero(flat != IGNORE)
        out[real, flat[real]] = 1.0
        out[self.cells] = 0.0
        cell, _ = self._entry_cells()
        shown = self.ids != IGNORE
        out[cell[shown], self.ids[shown]] = self.weights[shown].astype(np.float32) / np.float32(self.denominator)
        if void != "keep" and len(self.cells):
            self._renormalise(out, void)
        h, w = self.shape
        return out.reshape(h, w, classes)

    def _renormalise(self, out: F32, void: VoidRule) -> None:
        """Divide mixed cells by their class mass; under ``mask`` clear those that are void by half or more."""
        mass = self.denominator - self._void_weights()
        kept = mass * 2 > self.denominator if void == "mask" else mass > 0
        factor = np.where(kept, self.denominator / np.maximum(mass, 1), 0.0).astype(np.float32)
        touched = np.flatnonzero(factor != 1.0)
        out[self.cells[touched]] *= factor[touched, None]

    def void(self) -> F32:
        """Void share of each cell, float32 [h, w]."""
        out: F32 = (self.base.ravel() == IGNORE).astype(np.float32)
        out[self.cells] = self._void_weights().astype(np.float32) / np.float32(self.denominator)
        return np.asarray(out.reshape(self.shape), np.float32)

    def harden(self) -> U16:
        """The heaviest class of each cell, uint16 [h, w]; void where the void share is at least 1/2."""
        out = self.base.copy().ravel()
        heaviest = self.ids[self.starts[:-1]]
        second = self.ids[np.minimum(self.starts[:-1] + 1, len(self.ids) - 1)] if len(self.cells) else heaviest
        out[self.cells] = np.where(heaviest == IGNORE, second, heaviest)  # a mixed cell holds one class at least
        out[self.cells[self._void_weights() * 2 >= self.denominator]] = IGNORE
        return out.reshape(self.shape)

    def entropy(self) -> F32:
        """Entropy of each cell's shares in nats, void as a class, float32 [h, w]."""
        out = np.zeros(self.base.size, np.float32)
        share = self.weights / self.denominator
        cell, _ = self._entry_cells()
        np.add.at(out, cell, (-share * np.log(share)).astype(np.float32))
        return out.reshape(self.shape)

    def crop(self, y: int, x: int, h: int, w: int) -> SoftLabel:
        """The window of h x w cells from cell (y, x) on; raises SettingsError where it leaves the label."""
        height, width = self.shape
        if not (y >= 0 and x >= 0 and h >= 1 and w >= 1 and y + h <= height and x + w <= width):
            raise SettingsError(f"crop {h}x{w} at ({y}, {x}) leaves a label of {height}x{width} cells")
        from shards import kernels_cells

        low, high = np.searchsorted(self.cells, (y * width, (y + h) * width))
        cells, chosen = np.empty(high - low, np.int32), np.empty(high - low, np.int32)
        found = kernels_cells.window(self.cells[low:high], low, width, y, x, w, cells, chosen)
        return self._gather(np.ascontiguousarray(self.base[y : y + h, x : x + w]), cells[:found].copy(), chosen[:found])

    def flip(self) -> SoftLabel:
        """Mirrored left to right."""
        import cv2

        from shards import kernels_cells

        cells, chosen = np.empty_like(self.cells), np.empty_like(self.cells)
        kernels_cells.mirror(self.cells, self.shape[1], cells, chosen)
        return self._gather(np.asarray(cv2.flip(self.base, 1), np.uint16), cells, chosen)

    def pad(self, h: int, w: int) -> SoftLabel:
        """Grown to h x w cells with void at the bottom and the right; raises SettingsError where it would shrink."""
        height, width = self.shape
        if h < height or w < width:
            raise SettingsError(f"pad to {h}x{w} asked for a label of {height}x{width} cells; expected no less")
        base = np.full((h, w), IGNORE, np.uint16)
        base[:height, :width] = self.base
        row, column = np.divmod(self.cells, width)
        return SoftLabel(base, self.denominator, row * np.int32(w) + column, self.starts, self.ids, self.weights)

    def reduce(self, k: int) -> SoftLabel:
        """Area mean of k x k cells, exact: ``soften(L, 1/2).reduce(2) == soften(L, 1/4)`` for filter box.

        Cells beyond the border count as void, as in ``soften``. The denominator grows by k * k.
        """
        denominator = self.denominator * k * k
        if k < 1 or denominator > IGNORE:
            raise SettingsError(f"reduce({k}) of a soft label over {self.denominator} needs a denominator <= 65535")
        from shards import kernels

        h, w = -(-self.shape[0] // k), -(-self.shape[1] // k)
        room = len(self.ids) + self.base.size + k * k + 1
        merged = (
            np.empty((h, w), np.uint16),
            np.empty(h * w, np.int32),
            np.zeros(h * w + 1, np.int64),
            np.empty(room, np.uint16),
            np.empty(room, np.uint16),
        )
        slot = np.full(self.base.size, -1, np.int32)
        slot[self.cells] = np.arange(len(self.cells), dtype=np.int32)
        end = kernels.merge_cells(
            self.base, slot.reshape(self.shape), self.starts, self.ids, self.weights, k, self.denominator, merged
        )
        return assemble(merged, int(merged[2][0]), int(end), denominator)

    def _entry_cells(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """For every entry its flat cell index and its rank within the cell, both [t]."""
        counts = np.diff(self.starts)
        rank = np.arange(len(self.ids), dtype=np.int64) - np.repeat(self.starts[:-1], counts)
        return np.repeat(self.cells, counts), rank

    def _void_weights(self) -> npt.NDArray[np.int64]:
        """Void weight of each mixed cell, int64 [m]."""
        if not len(self.cells):
            return np.zeros(0, np.int64)
        masked = np.where(self.ids == IGNORE, self.weights, 0).astype(np.int64)
        return np.add.reduceat(masked, self.starts[:-1])

    def _gather(self, base: U16, cells: npt.NDArray[np.int32], chosen: npt.NDArray[np.int32]) -> SoftLabel:
        """A label over ``base`` with the chosen mixed cells, now at flat indices ``cells``."""
        from shards import kernels_cells

        starts = np.empty(len(chosen) + 1, np.int64)
        kernels_cells.count_chosen(self.starts, chosen, starts)
        ids, weights = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.uint16)
        kernels_cells.take(self.starts, self.ids, self.weights, chosen, starts, ids, weights)
        return SoftLabel(base, self.denominator, cells, starts, ids, weights)


def assemble(parts: tuple[npt.NDArray[Any], ...], mixed: int, end: int, denominator: int) -> SoftLabel:
    """A SoftLabel from a kernel's buffers (base, cells, starts, ids, weights), trimmed to what was used."""
    base, cells, starts, ids, weights = parts
    first = starts[: mixed + 1].copy()
    first[0] = 0
    return SoftLabel(base, denominator, cells[:mixed].copy(), first, ids[:end].copy(), weights[:end].copy())


def _largest(ids: U16) -> int:
    """The largest class id, void aside; -1 where there is none."""
    return int((ids + np.uint16(1)).max(initial=0)) - 1  # void wraps round to 0
