"""The loader: which samples are in which batch of which rank, what errors do, and states that are refused."""

from __future__ import annotations

import json
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards import FormatError, Loader, SettingsError, UserError, epoch_order
from shards.loader import own_places
from tests.shards.build import build
from tests.shards.test_ahead import gone

SAMPLES = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loader")
    build(place, samples=SAMPLES, per_shard=3)
    return place


@pytest.fixture
def train(folder: Path) -> shards.ShardDataset:
    return shards.open(folder, "train", "1/2")


def keys(batches) -> list[list[str]]:
    return [[sample.key for sample in batch] for batch in batches]


def positions(rank: int, ranks: int, batch: int, start: int, end: int) -> list[list[int]]:
    """The places of each batch of a rank, one after the other."""
    found = []
    while start < end:
        whole = list(range(start, min(start + batch, end)))
        found.append(whole[len(whole) * rank // ranks : len(whole) * (rank + 1) // ranks])
        start += batch
    return found


# --- what is in a batch ------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 6), st.data())
def test_ranks_share_every_batch(end: int, batch: int, ranks: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, end))
    own = [own_places(start, end, max(batch, ranks), rank, ranks).tolist() for rank in range(ranks)]
    for rank, places in enumerate(own):
        assert places == list(chain.from_iterable(positions(rank, ranks, max(batch, ranks), start, end)))
    assert sorted(chain.from_iterable(own)) == list(range(start, end))
    sizes = [len(part) for part in own]
    assert max(sizes) - min(sizes) <= -(-(end - start) // max(batch, ranks))  # a sample a batch at most


@pytest.mark.parametrize("threads", [0, 1, 3, None])
def test_an_epoch_is_its_order_in_batches(train: shards.ShardDataset, threads: int | None) -> None:
    loader = Loader(train, batch=5, seed=3, threads=threads)
    names = train.keys()
    for epoch in range(2):
        order = epoch_order(train.groups, train.manifest.digest, 3, epoch)
        assert keys(loader.epoch(epoch)) == [[names[i] for i in order[p : p + 5]] for p in (0, 5, 10)]
    assert len(loader) == len(loader.epoch(0)) == 3
    ended = loader.epoch(0)
    assert len(list(ended)) == 3
    assert gone()  # its threads, though it is still here


@pytest.mark.parametrize(("batch", "ranks"), [(4, 2), (5, 2), (5, 3), (5, 5), (12, 4)])
def test_each_rank_takes_its_part(train: shards.ShardDataset, batch: int, ranks: int) -> None:
    order = Loader(train, batch=batch).order(0)
    names = train.keys()
    for rank in range(ranks):
        loader = Loader(train, batch=batch, threads=2, rank=rank, ranks=ranks)
        want = [[names[order[p]] for p in part] for part in positions(rank, ranks, batch, 0, SAMPLES)]
        assert keys(loader.epoch(0)) == want


def test_samples_are_the_stored_ones(train: shards.ShardDataset) -> None:
    order = Loader(train, batch=5).order(0)
    samples = [sample for batch in Loader(train, batch=5, threads=2).epoch(0) for sample in batch]
    for index, sample in zip(order, samples, strict=True):
        assert np.array_equal(sample.image, train[index].image)
        assert sample.soft == train[index].soft


def test_without_shuffle_and_with_another_window(train: shards.ShardDataset) -> None:
    assert keys(Loader(train, batch=SAMPLES, shuffle=False).epoch(4)) == [train.keys()]
    orders = [Loader(train, batch=5, window=window).order(0).tolist() for window in (1, 4)]
    assert orders[0] != orders[1]
    assert orders[0] == epoch_order(train.groups, train.manifest.digest, 0, 0, window=1).tolist()
    runs = epoch_order(train.groups, train.manifest.digest, 0, 0, window=1, run=2)
    assert Loader(train, batch=5, window=1, run=2).order(0).tolist() == runs.tolist() != orders[0]


def test_transform_runs_in_the_threads(train: shards.ShardDataset) -> None:
    def where(sample: shards.Sample) -> tuple[str, str]:
        return sample.key, threading.current_thread().name

    found = [one for batch in Loader(train, batch=4, threads=2, transform=where).epoch(0) for one in batch]
    assert sorted(key for key, _ in found) == train.keys()
    assert all(name.startswith("ahead") for _, name in found)


def test_no_more_than_ahead_is_decoded(train: shards.ShardDataset) -> None:
    done: list[str] = []
    loader = Loader(train, batch=2, threads=2, ahead=6, transform=lambda sample: done.append(sample.key))
    with loader.epoch(0) as epoch:
        next(epoch)
        time.sleep(0.2)
        assert 6 <= len(done) <= 8


def test_the_dataset_hears_of_samples_before_they_are_read(train: shards.ShardDataset) -> None:
    told: list[int] = []
    read: list[int] = []

    class Listening(shards.ShardDataset):
        def ahead(self, indices) -> None:
            told.extend(i for i in np.asarray(indices).tolist() if i not in told)

        def __getitem__(self, index):
            assert index in told
            read.append(index)
            return super().__getitem__(index)

    dataset = Listening.__new__(Listening)
    dataset.__dict__.update(train.__dict__)
    list(Loader(dataset, batch=4, threads=0, window=1).epoch(0))
    assert told == read == Loader(train, batch=4, window=1).order(0).tolist()
    told.clear()
    next(Loader(dataset, batch=4, threads=0, window=1, rank=1, ranks=2).epoch(0))
    assert 0 < len(told) < SAMPLES / 2  # of the rank's own samples, and not the whole epoch at once


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_sample_is_an_error_at_its_place(tmp_path: Path, threads: int) -> None:
    """The batches before come, the error names the shard, the state stays before its batch."""
    build(tmp_path, samples=SAMPLES, per_shard=3)
    dataset = shards.open(tmp_path, "train", "1/2")
    tar = tmp_path / dataset.manifest.splits["train"].scales["1/2"].shards[-1].path  # holds the last sample alone
    data = bytearray(tar.read_bytes())
    data[600:700] = bytes(100)
    tar.write_bytes(data)
    loader = Loader(dataset, batch=2, threads=threads)
    place = loader.order(0).tolist().index(SAMPLES - 1)
    epoch = loader.epoch(0)
    for _ in range(place // 2):
        assert len(next(epoch)) == 2
    with pytest.raises(FormatError):
        next(epoch)
    assert loader.state()["position"] == place // 2 * 2
    with pytest.raises(StopIteration):
        next(epoch)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_integers_of_numpy_are_integers(train: shards.ShardDataset) -> None:
    """The same order and a state that JSON holds and any loader takes."""
    plain = Loader(train, batch=4, seed=3, window=2, run=2, ranks=2)
    odd = Loader(
        train, **{name: np.int64(x) for name, x in (("batch", 4), ("seed", 3), ("window", 2), ("run", 2))}, ranks=2
    )
    epochs = plain.epoch(1), odd.epoch(np.int32(1))
    assert keys([next(epochs[0])]) == keys([next(epochs[1])])
    assert odd.order(np.int64(5)).tolist() == plain.order(5).tolist()
    state = json.loads(json.dumps(odd.state()))
    assert state == plain.state()
    assert keys(Loader(train, batch=4, seed=3, window=2, run=2, ranks=2, start=state).epoch()) == keys(epochs[0])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"batch": 2.5}, "batch=2.5 found; expected a whole number"),
        ({"rank": "0"}, "rank='0' found; expected a whole number"),
        ({"batch": 0}, "batch=0 found; expected 1 or more"),
        ({"threads": -1}, "threads=-1 found; expected 0 or more"),
        ({"ahead": 0}, "ahead=0 found"),
        ({"window": 0}, "window=0 found"),
        ({"run": 0}, "run=0 found"),
        ({"seed": -1}, "seed=-1 found"),
        ({"rank": 2, "ranks": 2}, "rank=2 found; expected less than ranks=2"),
        ({"batch": 2, "ranks": 3}, "batch=2 found; expected at least one sample for each of ranks=3"),
    ],
)
def test_arguments_out_of_range(train: shards.ShardDataset, given: dict[str, int], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        Loader(train, **{"batch": 4, **given})
    with pytest.raises(SettingsError, match="epoch -1"):
        Loader(train, batch=4).epoch(-1)


# --- states ------------------------------------------------------------------------------------------------------


def test_a_state_passes_through_json_and_points_behind_what_was_taken(train: shards.ShardDataset) -> None:
    loader = Loader(train, batch=4, seed=9, threads=2)
    assert (loader.state()["epoch"], loader.state()["position"]) == (0, 0)
    epoch = loader.epoch(1)
    first = keys([next(epoch), next(epoch)])
    state = json.loads(json.dumps(loader.state()))
    assert {name: state[name] for name in ("epoch", "position", "seed")} == {"epoch": 1, "position": 8, "seed": 9}
    assert state["digest"] == train.manifest.digest
    rest = keys(epoch)
    later = Loader(train, batch=4, seed=9, threads=0, start=state)
    assert later.state() == state
    assert keys(later.epoch()) == rest
    assert later.state() == loader.state() == {**state, "epoch": 2, "position": 0}
    assert keys(later.epoch(1)) == rest  # epochs are functions of what the loader was made of
    assert keys(later.epoch(2)) == keys(loader.epoch(2))
    assert keys(loader.epoch(1)) == first + rest


def test_a_state_of_another_scale_goes_on(folder: Path, train: shards.ShardDataset) -> None:
    loader = Loader(train, batch=4)
    epoch = loader.epoch(0)
    next(epoch)
    small = Loader(shards.open(folder, "train", "1/4"), batch=4, start=loader.state())
    assert keys(small.epoch()) == keys(epoch)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"digest": "0" * 64}, "belongs to a shard set of digest 000000000000"),
        ({"seed": 1}, "has seed 1; found seed=0: give the same"),
        ({"position": SAMPLES + 1}, f"outside of the {SAMPLES} samples"),
        ({"position": -1}, "outside"),
        ({"epoch": -1}, "outside"),
        ({"epoch": True}, "lacks one of epoch, position, seed, digest"),
        ({"position": 2.0}, "lacks one of"),
        ({"digest": None}, "lacks one of"),
    ],
)
def test_states_that_are_refused(train: shards.ShardDataset, change: dict[str, object], problem: str) -> None:
    state = Loader(train, batch=4).state()
    with pytest.raises(UserError, match=problem):
        Loader(train, batch=4, start={**state, **change})


def test_a_state_of_another_set_split_or_window(folder: Path, train: shards.ShardDataset, tmp_path: Path) -> None:
    state = Loader(train, batch=4).state()
    build(tmp_path, samples=SAMPLES, per_shard=4)
    with pytest.raises(UserError, match="other data, or built anew"):
        Loader(shards.open(tmp_path, "train", "1/2"), batch=4, start=state)
    for dataset, options in (
        (shards.open(folder, "test", "1/2"), {}),
        (train, {"window": 2}),
        (train, {"run": 2}),
        (train, {"shuffle": False}),
    ):
        with pytest.raises(UserError, match="another order"):
            Loader(dataset, batch=4, start=state, **options)
    with pytest.raises(UserError, match="lacks one of"):
        Loader(train, batch=4, start={})
