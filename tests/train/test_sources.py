"""The shard sets of a run: what they say to their stores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shards.manifest import File
from tests.train.conftest import recipe
from train.sources import Sources, open_sources


class Recording:
    """A store that notes what it is told will be read."""

    def __init__(self, store: Any) -> None:
        self.store, self.heard = store, list[list[str]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def ahead(self, files: Iterable[File]) -> None:
        self.heard.append([file.path for file in files])


def recorded(sources: Sources) -> list[Recording]:
    stores = []
    for opened in sources.sets:
        stores.append(Recording(next(iter(opened.values())).store))
        for dataset in opened.values():
            dataset.store = stores[-1]
    return stores


def test_all_scales_of_a_set_are_told_of_at_once(shard_set: Path) -> None:
    """A store forgets what it was told before: the scales one after the other would leave the last one alone."""
    config = recipe(data={"labels": "nearest"})  # images at 1/2, hard labels at 1
    sources = open_sources([shard_set, shard_set], config)
    first, second = recorded(sources)
    sources.ahead([11 + 4, 7, 6, 0])  # shards of three samples; eleven samples in each set
    assert first.heard == [
        [f"train/{scale}/train-0000{n}.{end}" for n in (2, 0) for scale in ("1-2", "1") for end in ("jsonl", "tar")]
    ]
    assert second.heard == [[f"train/{scale}/train-00001.{end}" for scale in ("1-2", "1") for end in ("jsonl", "tar")]]
    sources.ahead([0])
    assert [len(first.heard), len(second.heard)] == [2, 1]
