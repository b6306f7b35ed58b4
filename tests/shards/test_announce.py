"""Reading ahead: each file once, in the order of use, over all scales of a set; and no more is worked out than used."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

import shards
from shards import zarrset
from shards.cache import CacheSettings
from shards.dataset import announce
from tests.shards.build import build
from tests.shards.server import Server


class Recording:
    """Takes so many of the files that it is told of."""

    def __init__(self, store, most=None):
        self.store, self.name, self.most, self.heard = store, store.name, most, []

    def __getattr__(self, name):
        return getattr(self.store, name)

    def ahead(self, files):
        self.heard.append([file.path for file in itertools.islice(files, self.most)])


def noting(opened, real, store):
    return lambda file, *rest: opened.append(file.path) or real(store, file, *rest)


def used(dataset, indices):
    """(place, path) of the files that reading samples one after the other opens, by watching the store."""
    seen, found, store = set(), [], dataset.store
    for place, i in enumerate(indices):
        opened = []
        for name in ("range", "whole"):
            real = getattr(type(store), name)
            setattr(store, name, noting(opened, real, store))
        dataset.members(i)
        for path in opened:
            if path not in seen and not path.endswith("zarr.json") and "/offsets/" not in path:
                seen.add(path)
                found.append((place, path))
        del store.range, store.whole
    return found


@pytest.mark.parametrize("block", [2, 4096])
def test_files_are_those_that_reading_opens(shard_set, block, monkeypatch):
    monkeypatch.setattr(zarrset, "BLOCK", block)
    for indices in ([4, 0, 1, 4, 2], np.array([3, 3, 0]), range(5), []):
        dataset = shards.open(shard_set, split="train", scale="1/2", check=False)
        found = [(place, file.path) for place, file in dataset.files(indices)]
        opened = used(shards.open(shard_set, split="train", scale="1/2", check=False), indices)
        keys = [pair for pair in found if "/key/" in pair[1]]  # a key is read where a message needs it
        assert set(found) - set(keys) == set(opened) - set(keys)
        assert [place for place, _ in found] == sorted(place for place, _ in found)
        assert len({path for _, path in found}) == len(found)


def test_two_scales_are_announced_together(tmp_path):
    """What is asked for anew replaces what was asked for before: the scales of a set must be told of at once."""
    build(tmp_path, samples=6, per_shard=2)
    one, half = (shards.open(tmp_path, split="train", scale=scale) for scale in ("1", "1/2"))
    one.store = half.store = Recording(one.store)
    announce([one, half], [4, 5, 0])
    tars = [[path for path in heard if path.endswith(".tar")] for heard in one.store.heard]
    assert tars == [
        [f"train/{s}/train-{s}-0000{n}.tar" for n, s in ((2, "1"), (2, "1-2"), (0, "1"), (0, "1-2"))]
    ]  # fmt: skip
    assert len(one.store.heard[0]) == 8  # with their indexes


def test_two_remote_scales_both_come(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    build(tmp_path / "set")
    with Server(tmp_path / "set") as server:
        settings = CacheSettings(tmp_path / "cache", timeout=5)
        one = shards.open(server.url, split="train", scale="1", cache=settings)
        half = shards.ShardDataset(one.store, one.manifest, "train", shards.Scale.parse("1/2"))
        announce([one, half], [4, 0])
        end = time.monotonic() + 10
        while server.times("00000.tar") < 2 and time.monotonic() < end:
            time.sleep(0.005)
        asked = {path for path in (one.path for one in server.asked) if path.endswith(".tar")}
    assert asked == {f"train/{s}/train-{s}-0000{n}.tar" for s in ("1", "1-2") for n in (0, 2)}


def test_no_more_is_worked_out_than_is_taken(zarr_set, monkeypatch):
    """A local store is told of a few files: an epoch of samples must not be gone through for them."""
    dataset, blocks = shards.open(zarr_set, split="train", scale="1/2"), []
    files = zarrset.PlainBytes.files
    monkeypatch.setattr(zarrset.PlainBytes, "files", lambda self, *given: blocks.append(1) or files(self, *given))
    dataset.store = Recording(dataset.store, most=4)
    dataset.ahead(np.arange(10**6) % 5)
    assert len(dataset.store.heard[0]) == 4
    assert len(blocks) <= 5  # one block, each member


def test_an_epoch_of_samples_takes_no_time(zarr_set):
    dataset = shards.open(zarr_set, split="train", scale="1/2")
    dataset[0]
    began = time.process_time()
    assert len(list(dataset.files(np.arange(200_000) % 5))) == 4
    assert time.process_time() - began < 2  # 200,000 x 4 members one by one in Python: more


def test_a_broken_store_is_heard_of_by_whoever_reads_it(tmp_path):
    build(tmp_path, "zarr")
    dataset = shards.open(tmp_path, split="train")
    (tmp_path / "train/1/train-1.zarr/json/offsets/zarr.json").write_bytes(b"[]")
    dataset.ahead([0, 1])
    assert list(dataset.files([0, 1])) == []
    with pytest.raises(shards.FormatError, match="json/offsets"):
        dataset[0]
