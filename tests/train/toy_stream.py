"""A stream whose samples are their positions, for tests of the feed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import shards
from tests.train.conftest import recipe
from train.batch import Item, targets_of
from train.config import Recipe
from train.distributed import World
from train.stream import Positioned

CPU = World(torch.device("cpu"))


class Toy(Positioned):
    """Samples that are their positions; `work` is called for each."""

    def __init__(self, config: Recipe, work: Any = lambda position: None, reach: int = 5) -> None:
        self.recipe, self.work, self._reach = config, work, reach
        self.told: list[list[int]] = []

    def item(self, position: int) -> Item:
        self.work(position)
        image = np.full((3, 2, 2), position % 256, np.uint8)
        return Item(str(position), image, targets_of(shards.SoftLabel.from_hard(np.zeros((2, 2), np.uint16))))

    @property
    def reach(self) -> int:
        return self._reach

    def ahead(self, positions: Sequence[int]) -> None:
        self.told.append(list(positions))


def toy(workers: int = 2, loader: str = "threads", work: Any = lambda position: None, **loop: int) -> Toy:
    return Toy(recipe(data={"workers": workers, "loader": loader}, loop={"batch": 4, "steps": 6, **loop}), work)


def numbers(source: Any) -> list[list[int]]:
    return [[int(key) for key in batch.keys] for batch in source]


def data_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]
