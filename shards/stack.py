"""Samples of one size decoded into the rows of one array, as ``Loader.stacked`` hands them out.

A batch that is decoded in place is neither copied together nor asks for memory once a sample: at 512 x 1024 that is a
tenth to a fifth of the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.codec.sample import Sample
from shards.errors import SettingsError

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one size.

    Args:
        images: uint8 [B, H, W, 3], RGB; [0, 0, 0, 3] where a rank has no sample in a short last batch.
        hard: uint16 [B, H, W], void 65535; None where any sample has no hard label.
        samples: the samples, whose images and hard labels are rows of these arrays.
    """

    images: U8
    hard: U16 | None
    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)


class Stack:
    """The arrays of one batch: made when the first sample's size is known, filled by any threads.

    Args:
        count: B, from 0.
    """

    def __init__(self, count: int) -> None:
        self._count, self._lock = count, threading.Lock()
        self._size: tuple[int, int] | None = None
        self._images: U8 | None = None
        self._hard: U16 | None = None

    def rows(self) -> Iterator[Row]:
        """A place for each sample, in order."""
        return (Row(self, place) for place in range(self._count))

    def batch(self, samples: list[Sample]) -> Batch:
        """The batch of these samples, each decoded into its row."""
        if self._images is None:
            return Batch(np.zeros((0, 0, 0, 3), np.uint8), None, samples)
        return Batch(self._images, self._hard if all(s.hard is not None for s in samples) else None, samples)

    def images(self, size: tuple[int, int], where: str) -> U8:
        """uint8 [B, H, W, 3]; raises SettingsError unless `size` is that of the samples before."""
        with self._lock:
            self._check(size, where)
            if self._images is None:
                self._images = np.empty((self._count, *size, 3), np.uint8)
            return self._images

    def labels(self, size: tuple[int, int], where: str) -> U16:
        """uint16 [B, H, W]; raises SettingsError unless `size` is that of the samples before."""
        with self._lock:
            self._check(size, where)
            if self._hard is None:
                self._hard = np.empty((self._count, *size), np.uint16)
            return self._hard

    def _check(self, size: tuple[int, int], where: str) -> None:
        if self._size is None:
            self._size = size
        if self._size != size:
            (h, w), (height, width) = size, self._size
            raise SettingsError(
                f"{where}: {w}x{h} pixels found in a batch of {width}x{height}: samples can be stacked only where all "
                "have one size; take Loader.epoch, whose batches are lists"
            )


@dataclass(frozen=True)
class Row:
    """Where a sample of a stack is decoded to (``shards.codec.sample.Room``)."""

    stack: Stack
    place: int

    def image(self, size: tuple[int, int], where: str) -> U8:
        """uint8 [H, W, 3]."""
        row: U8 = self.stack.images(size, where)[self.place]
        return row

    def hard(self, size: tuple[int, int], where: str) -> U16:
        """uint16 [H, W]."""
        row: U16 = self.stack.labels(size, where)[self.place]
        return row
