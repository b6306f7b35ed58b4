"""Training stopped after any step and continued on any ranks and data workers: the same samples, each once, in order.

All that a checkpoint keeps of the data is the step: that every setup gives exactly the positions of its steps, from
every step on, means that each can go on from each.
"""

from __future__ import annotations

import copy
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import recipe
from tests.train.test_loop import LONG, equal, losses, stop_at, trainer, weights
from tests.train.test_mixed_stream import make_sets, mixed, opened
from tests.train.toy_stream import Toy
from train.batch import Batch
from train.config import from_dict
from train.distributed import World
from train.feed import Positions, _Announced, _collate, batches
from train.sources import open_sources
from train.stream import Positioned, Stream

RANKS, WORKERS, STEPS = (1, 2, 3, 4), (0, 1, 2, 3), 4
fixture = make_sets


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.feed.cores", lambda: 8)


def taken(stream: Positioned, ranks: int, start: int) -> list[list[str]]:
    """Step by step, what all ranks take together."""
    parts = stream.recipe.loop.accumulate
    each = []
    for rank in range(ranks):
        with batches(stream, World(torch.device("cpu"), rank, ranks), start) as source:
            each.append([f"{batch.source}:{key}" for batch in source for key in (*batch.keys, "|")])
    micro = [_split(words) for words in each]
    return [
        list(chain.from_iterable(chain.from_iterable(rank[at : at + parts]) for rank in micro))
        for at in range(0, (STEPS - start) * parts, parts)
    ]


def _split(words: list[str]) -> list[list[str]]:
    """The keys of each micro-batch."""
    found: list[list[str]] = [[]]
    for word in words:
        if word.endswith("|"):
            found.append([])
        else:
            found[-1].append(word)
    return found[:-1]


def toy(workers: int, loader: str = "threads", accumulate: int = 1) -> Toy:
    loop = {"batch": 12, "steps": STEPS, "accumulate": accumulate}
    return Toy(recipe(data={"workers": workers, "loader": loader}, loop=loop))


def truth(start: int) -> list[list[str]]:
    """Global batches of 12, one after the other."""
    return [[f"0:{position}" for position in range(12 * step, 12 * step + 12)] for step in range(start, STEPS)]


@pytest.mark.parametrize("workers", WORKERS)
def test_every_step_on_every_number_of_ranks_and_threads(workers: int) -> None:
    for ranks, start in product(RANKS, range(STEPS + 1)):
        assert taken(toy(workers), ranks, start) == truth(start)
        assert not workers or by_copies(toy(workers, "processes"), ranks, workers, start) == truth(start)
    assert taken(toy(workers, accumulate=3), 4, 1) == truth(1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("number", range(12))
def test_processes_too(number: int) -> None:
    """All (ranks, workers) and all steps occur, each rank's part by itself."""
    ranks, workers = RANKS[number % 4], WORKERS[1 + number // 4]
    start, rank = (number + number // 4) % STEPS, number % ranks
    with batches(toy(workers, "processes"), World(torch.device("cpu"), rank, ranks), start) as source:
        found = [[f"0:{key}" for key in batch.keys] for batch in source]
    share = 12 // ranks
    assert found == [step[rank * share : (rank + 1) * share] for step in truth(start)]


def test_a_mixture_with_quotas(sets: dict[str, Path]) -> None:
    """The truth is a plain list: each source's own order, dealt out part by part as the shares say."""

    whole = truth_of_mixture(sets)
    for ranks, workers, start in product(RANKS, WORKERS, range(STEPS)):
        assert taken(opened(sets, mixture(workers)), ranks, start) == whole[start:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("number", range(12))
def test_a_mixture_in_processes(sets: dict[str, Path], number: int) -> None:
    """All (ranks, workers) and all steps occur, each rank's part by itself."""
    ranks, workers = RANKS[number % 4], WORKERS[1 + number // 4]
    start, rank = (number + number // 4) % STEPS, number % ranks
    stream, share = opened(sets, mixture(workers, "processes")), 24 // ranks
    with batches(stream, World(torch.device("cpu"), rank, ranks), start) as source:
        found = [f"{batch.source}:{key}" for batch in source for key in batch.keys]
    steps = truth_of_mixture(sets)[start:]
    assert found == list(chain.from_iterable(step[rank * share : (rank + 1) * share] for step in steps))


def test_a_mixture_in_copies_of_the_stream(sets: dict[str, Path]) -> None:
    """What processes do, all of it: each worker has a copy of its own, and makes every n-th batch."""
    stream, whole = opened(sets, mixture(1, "processes")), truth_of_mixture(sets)
    for ranks, workers, start in product(RANKS, WORKERS[1:], range(STEPS)):
        assert by_copies(stream, ranks, workers, start) == whole[start:]


def test_a_mixture_of_three_with_quotas(sets: dict[str, Path]) -> None:
    """3, 2 and 1 parts in each cycle of 6, two of the sources from one shard set."""
    whole = taken(three(sets, 0), 1, 0)
    places = [place for step in whole for place in step]
    parts = [places[at : at + 12] for at in range(0, len(places), 12)]
    turns = [part[0][0] for part in parts]
    assert all([part[:2] for part in places[at : at + 12]] == [f"{places[at][0]}:"] * 12 for at in range(0, 96, 12))
    assert [sorted(turns[at : at + 6]) for at in range(3)] == [list("000112")] * 3
    for source, one in enumerate(three(sets, 0).streams):
        own = [key[2:] for key in places if key.startswith(f"{source}:")]
        assert own == [one.sources.sample(one.index(place), "1").key for place in range(len(own))]
    for ranks, workers, start in product(RANKS, WORKERS, range(STEPS)):
        found = (
            taken(three(sets, workers), ranks, start) if workers != 2 else by_copies(three(sets, 2), ranks, 2, start)
        )
        assert found == whole[start:]


def three(sets: dict[str, Path], workers: int) -> Any:
    config = mixture(workers).to_dict()
    config["mixture"]["sources"] = [
        {**config["mixture"]["sources"][0], "name": "pixels", "share": 3},
        {**config["mixture"]["sources"][1], "name": "tags", "share": 2},
        {**config["mixture"]["sources"][0], "name": "again", "share": 1},
    ]
    return opened({**sets, "again": sets["pixels"]}, from_dict(config))


def by_copies(stream: Positioned, ranks: int, workers: int, start: int) -> list[list[str]]:
    """As `taken`, in the way of torch's data workers, without their processes."""
    parts, each = stream.recipe.loop.accumulate, []
    for rank in range(ranks):
        lists = list(_Announced(stream, Positions(stream.recipe, World(torch.device("cpu"), rank, ranks), start)))
        copies = [copy.deepcopy(stream) for _ in range(workers)]
        made = [_collate(copies[number % workers].__getitems__(some)) for number, some in enumerate(lists)]
        each.append([[f"{batch.source}:{key}" for key in batch.keys] for batch in made if isinstance(batch, Batch)])
    return [
        list(chain.from_iterable(chain.from_iterable(rank[at : at + parts]) for rank in each))
        for at in range(0, (STEPS - start) * parts, parts)
    ]


def mixture(workers: int, loader: str = "threads") -> Any:
    return mixed(STEPS, 24, data={"workers": workers, "loader": loader})


def truth_of_mixture(sets: dict[str, Path]) -> list[list[str]]:
    """Step by step, every source's own order, dealt out."""
    stream = opened(sets, mixture(0))
    own = [
        [stream.sources.each[source].sample(one.index(place), "1").key for place in range(24 * STEPS)]
        for source, one in enumerate(stream.streams)
    ]
    dealt, seen = [], [0, 0]
    for part in range(2 * STEPS):
        source = (0, 1, 0)[part % 3]  # pixels to tags as 2 to 1
        dealt.append([f"{source}:{own[source][place]}" for place in range(seen[source], seen[source] + 12)])
        seen[source] += 12
    return [dealt[at] + dealt[at + 1] for at in range(0, 2 * STEPS, 2)]


def test_an_epoch_of_the_stream_holds_every_sample_once_on_any_ranks(shard_set: Path) -> None:
    """Eleven samples, batches of twelve: positions become samples by the plain order of each epoch."""
    config = recipe(data={"workers": 2, "loader": "threads", "scales": ["1/4"]}, loop={"batch": 12, "steps": STEPS})
    sources = open_sources([shard_set], config)
    names = [sources.sample(index, "1/4").key for index in range(11)]
    order = [names[index] for epoch in range(5) for index in sources.order(config.loop.seed, epoch)]
    for ranks, start in ((1, 0), (3, 1), (4, 2), (2, 3)):
        found = list(chain.from_iterable(taken(Stream(sources, config), ranks, start)))
        assert found == [f"0:{name}" for name in order[12 * start : 12 * STEPS]]


def test_a_run_goes_on_with_other_workers_after_each_stop(shard_set: Path, tmp_path: Path) -> None:
    """End to end: a run that changes its feed at every stop has the losses and weights of one that does not stop."""
    loop = {"steps": 8}
    trainer(shard_set, tmp_path / "straight", recipe(**LONG, loop=loop)).run()
    feeds = [(0, "auto", 2), (2, "threads", 3), (2, "processes", 5), (1, "auto", 7), (3, "threads", None)]
    for number, (workers, loader, stop) in enumerate(feeds):
        data = {**LONG["data"], "workers": workers, "loader": loader}
        now = trainer(shard_set, tmp_path / "run", recipe(**{**LONG, "data": data}, loop=loop), resume=number > 0)
        if stop is not None:
            stop_at(now, stop)
        assert now.run().step == (stop or 8)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))
