"""Batches of decoded samples, in an order that depends on nothing but data, seed and epoch; without torch.

    >>> ds = shards.open("data/camvid", split="train", scale="1/2")
    >>> loader = shards.Loader(ds, batch=16, seed=1)
    >>> for batch in loader.epoch(0):          # lists of Sample
    ...     state = loader.state()             # JSON can hold it
    >>> rest = shards.Loader(ds, batch=16, seed=1, start=state).epoch()     # of this epoch, or at its end the next one

The order of an epoch is `epoch_order`: a pure function of (manifest digest, seed, epoch, window). `batch` counts the
samples of all ranks: batch b holds places b * batch to (b + 1) * batch - 1 of the order, fewer at its end, and of its
n samples rank r of R takes those from n * r // R to n * (r + 1) // R - 1. So every rank gives equally many batches,
shares differ by one sample at most, and a last batch of fewer samples than ranks is empty on some. The number of ranks
and threads decides who reads a sample and never which one is next: a state can be continued on any.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from shards.ahead import MapAhead
from shards.dataset import Sample, ShardDataset, check_room
from shards.errors import SettingsError, UserError
from shards.order import RUN, WINDOW, epoch_order

Out = TypeVar("Out")
ANNOUNCED = 4096  # samples of which a dataset hears at a time, at most: shards may hold any number
STATE = {"epoch": int, "position": int, "seed": int, "digest": str, "order": str}


class Loader(Generic[Out]):
    """Epochs of batches of a dataset.

    Args:
        dataset: an open split.
        batch: samples in a batch, over all ranks.
        seed: of the order, from 0.
        threads: that decode ahead of the caller; None: as many as there are cores; 0: none, all in the caller's thread.
        ahead: samples of this rank that may be decoded and not yet taken; None: a batch and two for each thread.
        rank, ranks: this process among those that share the batches.
        shuffle: False: samples come as they are stored, in every epoch.
        window, run: shards whose samples are mixed with each other, in runs of so many samples, or whole (run=None,
            window=4: for sets at a URL that are larger than the cache); see `epoch_order`.
        transform: applied to each sample in the threads; batches are lists of what it returns. Its randomness, if any,
            must come from the sample, or results depend on the number of threads.
        start: what `state` gave, of this or another process.

    Raises:
        SettingsError: an argument out of its range, or a set at a URL that is larger than its cache, in runs.
        UserError: the state belongs to other data, another seed or another order, or is no state.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        batch: int,
        seed: int = 0,
        threads: int | None = None,
        ahead: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        window: int = WINDOW,
        run: int | None = RUN,
        transform: Callable[[Sample], Out] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        _check(batch=batch, seed=seed, threads=threads, ahead=ahead, rank=rank, ranks=ranks, window=window, run=run)
        if shuffle:
            check_room([dataset], run, "run=None, window=4")
        self.dataset = dataset
        self.batch, self.seed, self.rank, self.ranks = int(batch), int(seed), int(rank), int(ranks)  # NumPy's, too
        self.window, self.run = int(window), None if run is None else int(run)
        self.shuffle, self.transform = shuffle, transform
        self.threads = cores() if threads is None else threads
        self.ahead = -(-batch // ranks) + 2 * self.threads if ahead is None else ahead
        self._start = self._checked(start) if start is not None else (0, 0)
        self._at = self._start

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-len(self.dataset) // self.batch)

    def epoch(self, number: int | None = None) -> Epoch[Out]:
        """The batches of one epoch, from its beginning, or from where `start` says if that lies in this epoch.

        Args:
            number: from 0; None: the one of `start`, 0 without.
        """
        first, place = self._start
        if number is not None and number < 0:
            raise SettingsError(f"epoch {number} found; expected one from 0 on")
        number = first if number is None else int(number)
        return Epoch(self, number, place if number == first else 0)

    def state(self) -> dict[str, Any]:
        """Where the batches taken last end, in the order that all ranks share: what `start` takes."""
        epoch, position = self._at
        known = {"seed": self.seed, "digest": self.dataset.manifest.digest, "order": self._order_digest()}
        return {"epoch": epoch, "position": position, **known}

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The samples of an epoch in order, for all ranks: int64 [len(dataset)]."""
        if not self.shuffle:
            return np.arange(len(self.dataset), dtype=np.int64)
        digest = self.dataset.manifest.digest
        return epoch_order(self.dataset.groups, digest, self.seed, epoch, self.window, self.run)

    def read(self, index: int) -> Out:
        """One sample, transformed."""
        sample = self.dataset[index]
        return cast(Out, sample) if self.transform is None else self.transform(sample)

    def _order_digest(self) -> str:
        """Stands for what the order follows from, besides the seed and the manifest."""
        mixed = (self.window, self.run, *self.dataset.groups) if self.shuffle else ()
        return hashlib.sha256(repr((self.dataset.split, len(self.dataset), mixed)).encode()).hexdigest()[:16]

    def _checked(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """(epoch, position) of a state; raises UserError."""
        if any(type(state.get(name)) is not kind for name, kind in STATE.items()):
            raise UserError(f"the state to start from lacks one of {', '.join(STATE)}; expected what Loader.state gave")
        where = f"{self.dataset.folder} split {self.dataset.split}"
        if state["digest"] != self.dataset.manifest.digest:
            raise UserError(
                f"the state to start from belongs to a shard set of digest {state['digest'][:12]}, and {where} has "
                f"{self.dataset.manifest.digest[:12]}: other data, or built anew; start without a state"
            )
        if state["seed"] != self.seed:
            raise UserError(f"the state to start from has seed {state['seed']}; found seed={self.seed}: give the same")
        if state["order"] != self._order_digest():
            raise UserError(
                f"the state to start from is of another order of {where}: give the same split, window and run"
            )
        if not (state["epoch"] >= 0 and 0 <= state["position"] <= len(self.dataset)):
            raise UserError(f"the state to start from lies outside of the {len(self.dataset)} samples of {where}")
        return state["epoch"], state["position"]

    def _reached(self, epoch: int, position: int) -> None:
        """Batches up to `position` are taken."""
        whole = position >= len(self.dataset)
        self._at = (epoch + 1, 0) if whole else (epoch, position)


class Epoch(Iterator[list[Out]], Generic[Out]):
    """The batches of one epoch on one rank. Leaving the loop ends its threads; `close` also waits for them."""

    def __init__(self, loader: Loader[Out], epoch: int, position: int) -> None:
        self._loader, self._epoch, self._position = loader, epoch, position
        self._end = len(loader.dataset)
        own = own_places(position, self._end, loader.batch, loader.rank, loader.ranks)
        indices = _announced(loader, loader.order(epoch)[own])
        self._samples = MapAhead(loader.read, indices, loader.threads, loader.ahead)

    def __iter__(self) -> Epoch[Out]:
        return self

    def __len__(self) -> int:
        """Batches to come."""
        return -(-(self._end - self._position) // self._loader.batch)

    def __next__(self) -> list[Out]:
        loader, size = self._loader, min(self._loader.batch, self._end - self._position)
        if size <= 0:
            self.close()
            raise StopIteration
        low, high = share(size, loader.rank, loader.ranks)
        try:
            batch = list(islice(self._samples, high - low))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        self._position += size
        loader._reached(self._epoch, self._position)
        return batch

    def close(self, wait: bool = True) -> None:
        """End the epoch here; no thread of it is left. Without `wait` each still ends the sample that it is at."""
        self._end = self._position
        self._samples.close(wait)

    def __enter__(self) -> Epoch[Out]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=kind is not KeyboardInterrupt)  # Ctrl-C need not wait for a server that does not answer


def share(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """(first, end) of a rank's samples among the `size` of a batch."""
    return size * rank // ranks, size * (rank + 1) // ranks


def own_places(position: int, end: int, batch: int, rank: int, ranks: int) -> npt.NDArray[np.int64]:
    """The places of the order that a rank takes from `position` on, int64, rising."""
    places = np.arange(position, end, dtype=np.int64)
    offset = (places - position) % batch
    last = (end - position) // batch * batch  # where a short batch begins
    (low, high), short = share(batch, rank, ranks), share((end - position) % batch, rank, ranks)
    mine = (offset >= low) & (offset < high)
    mine[last:] = (offset[last:] >= short[0]) & (offset[last:] < short[1])
    return places[mine]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _announced(loader: Loader[Any], indices: npt.NDArray[np.int64]) -> Iterator[int]:
    """The indices, one by one; the dataset hears of two windows of shards before the first of them is read."""
    groups = loader.dataset.groups
    window = -(-len(loader.dataset) // max(1, len(groups))) * loader.window // loader.ranks
    window = max(1, min(window, ANNOUNCED))
    for first in range(0, len(indices), window):
        loader.dataset.ahead(indices[first : first + 2 * window])
        yield from indices[first : first + window].tolist()


def _check(**given: int | None) -> None:
    """Raise SettingsError where an argument of `Loader` is out of range."""
    least = {"batch": 1, "ranks": 1, "window": 1, "run": 1, "ahead": 1}
    for name, value in given.items():
        if value is not None and not isinstance(value, int | np.integer):
            raise SettingsError(f"{name}={value!r} found; expected a whole number")
        if value is not None and value < least.get(name, 0):
            raise SettingsError(f"{name}={value} found; expected {least.get(name, 0)} or more")
    rank, ranks, batch = given["rank"] or 0, given["ranks"] or 1, given["batch"] or 1
    if rank >= ranks:
        raise SettingsError(f"rank={rank} found; expected less than ranks={ranks}")
    if batch < ranks:
        raise SettingsError(f"batch={batch} found; expected at least one sample for each of ranks={ranks}")
