"""Stopped after any batch and continued on any number of ranks and threads: the same remaining samples, each once."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from shards import Loader, epoch_order

GROUPS = [5, 7, 3, 6, 2, 4]
SETUPS = list(product((1, 2, 3, 4), (0, 1, 2, 3)))  # ranks, threads


class Numbers:
    """A dataset whose samples are their own numbers."""

    def __init__(self, groups: list[int]) -> None:
        self.groups, self.split, self.folder = groups, "train", "numbers"
        self.manifest = SimpleNamespace(digest="d" * 64)
        self.store = SimpleNamespace(room=None)  # a folder
        self.told: list[list[int]] = []

    def __len__(self) -> int:
        return sum(self.groups)

    def __getitem__(self, index: int) -> int:
        return index

    def ahead(self, indices: Any) -> None:
        self.told.append(list(indices))


def opened(rank: int, ranks: int, threads: int, batch: int, start: dict[str, Any] | None = None) -> Loader[int]:
    return Loader(Numbers(GROUPS), batch=batch, seed=4, threads=threads, rank=rank, ranks=ranks, start=start)  # type: ignore[arg-type]


def rounds(ranks: int, threads: int, batch: int, start: dict[str, Any] | None, epoch: int | None = None):
    """Batch by batch: what all ranks took together, in order, and the state that each of them gives."""
    loaders = [opened(rank, ranks, threads, batch, start) for rank in range(ranks)]
    for parts in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
        states = [loader.state() for loader in loaders]
        assert all(state == states[0] for state in states)
        yield [index for part in parts for index in part], states[0]


def truth(epoch: int) -> list[int]:
    return epoch_order(GROUPS, "d" * 64, 4, epoch).tolist()


@pytest.mark.parametrize("batch", [12, 5])
def test_every_step_of_every_setup_continued_on_every_other(batch: int) -> None:
    """12 divides by all ranks, 5 by none but one; 27 samples by neither. The states of one step are all equal, so that
    continuing one of them everywhere continues every setup everywhere."""
    states: dict[int, dict[str, Any]] = {}
    for ranks, threads in SETUPS:
        seen: list[int] = []
        for taken, state in rounds(ranks, threads, batch, None, epoch=1):
            seen += taken
            assert seen == truth(1)[: len(seen)]
            assert states.setdefault(len(seen), state) == state
        assert seen == truth(1)
    assert len(states) == -(-27 // batch)
    assert states.pop(27)["epoch"] == 2
    for (position, state), (ranks, threads) in product(states.items(), SETUPS):
        assert (state["epoch"], state["position"]) == (1, position)
        rest = [index for taken, _ in rounds(ranks, threads, batch, state) for index in taken]
        assert rest == truth(1)[position:]


def test_a_chain_of_setups() -> None:
    """A run that changes its ranks, threads and batch after every batch, through two epochs."""
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for number in range(200):
        ranks, threads = SETUPS[number * 5 % len(SETUPS)]
        batch = 4 + number % 3
        taken, state = next(iter(rounds(ranks, threads, batch, state)))
        seen += taken
        if state["epoch"] == 2:
            break
    assert seen == truth(0) + truth(1)


def test_of_huge_shards_a_dataset_hears_bit_by_bit() -> None:
    """Not of a whole window of shards before the first sample is read."""
    dataset = Numbers([30_000, 30_000])
    loader = Loader(dataset, batch=100, threads=0)  # type: ignore[arg-type]
    taken = next(loader.epoch(0))
    assert len(dataset.told) == 1
    assert dataset.told[0][:100] == taken
    assert len(dataset.told[0]) == 2 * 4096
