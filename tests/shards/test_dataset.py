"""shards.open: random access by index and key, in both formats, in any process."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr

import shards
from shards import FormatError, UserError, resize_image, soften, tarset, zarrset
from shards.index import encode_index
from shards.manifest import ScaleSet, Shard
from shards.store import open_store
from shards.tar import TAR_END, IndexEntry, sample_blocks
from shards.tarset import TarReader
from tests.shards.build import SCALES, build, file_of, pair, seal_anew


@pytest.mark.parametrize("scale", SCALES)
def test_samples_are_what_was_written(shard_set, scale):
    ds = shards.open(shard_set, split="train", scale=scale)
    assert len(ds) == 5
    assert ds.keys() == [f"city/train_{i:03d}" for i in range(5)]
    assert sum(ds.groups) == 5
    for i in (3, 0, -1):
        sample = ds[i]
        image, hard = pair(i % 5)
        np.testing.assert_array_equal(sample.image, resize_image(image, scale, "box"))
        if scale == "1":
            np.testing.assert_array_equal(sample.hard, hard)
            np.testing.assert_array_equal(sample.instances, hard == 1)
            assert sample.soft is None
        else:
            assert sample.soft == soften(hard, scale)
            assert sample.hard is None
        assert sample.weak.tolist() == [0, 1]
        assert ds[sample.key].meta == sample.meta


def test_unlabelled_split(shard_set):
    sample = shards.open(shard_set, split="test", scale="1/2")[2]
    assert sample.hard is sample.soft is sample.weak is None


def test_travels_to_other_processes(shard_set):
    ds = shards.open(shard_set, split="train", scale="1/2")
    ds[0]
    copy = pickle.loads(pickle.dumps(ds))  # noqa: S301  # what a data loader does
    assert copy[1].soft == ds[1].soft


def test_what_is_not_there_is_named(shard_set):
    ds = shards.open(shard_set, split="train", scale="1")
    with pytest.raises(UserError, match="'nokey' not found"):
        ds["nokey"]
    with pytest.raises(IndexError):
        ds[5]
    with pytest.raises(UserError, match="holds test, train"):
        shards.open(shard_set, split="val")
    with pytest.raises(UserError, match="scale 1/8 not found"):
        shards.open(shard_set, split="train", scale="1/8")


def test_missing_and_damaged_files_are_named(tmp_path):
    build(tmp_path)
    tar = tmp_path / "train/1-2/train-1-2-00000.tar"
    tar.write_bytes(tar.read_bytes()[:900])
    with pytest.raises(FormatError, match=r"train-1-2-00000\.tar"):
        shards.open(tmp_path, split="train", scale="1/2")[0]
    tar.with_suffix(".index.jsonl").unlink()
    with pytest.raises(FormatError, match=r"00000\.index\.jsonl"):
        shards.open(tmp_path, split="train", scale="1/2").keys()


def test_a_broken_zarr_store_is_named(tmp_path):
    build(tmp_path, "zarr")
    store = tmp_path / "train/1-2/train-1-2.zarr"
    chunk = store / "soft.npz/data/c/0"
    chunk.write_bytes(chunk.read_bytes()[:-50])
    with pytest.raises(FormatError, match=r"train-1-2\.zarr"):
        shards.open(tmp_path, split="train", scale="1/2")[0]
    (store / "zarr.json").unlink()
    with pytest.raises(FormatError, match=r"train-1-2\.zarr/zarr\.json"):
        shards.open(tmp_path, split="train", scale="1/2")[0]


def test_a_lost_chunk_is_no_zeros(tmp_path):
    build(tmp_path, "zarr")
    (tmp_path / "train/1/train-1.zarr/seg.png/data/c/0").unlink()
    with pytest.raises(FormatError, match=r"seg\.png/data/c/0 \[seg\.png of city/train_002\]: cannot be opened"):
        shards.open(tmp_path, split="train")[2]


def test_no_torch_is_pulled_in():
    code = "import shards, sys; assert not {'torch', 'faiss', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_store_of_huge_chunks_is_refused(zarr_set, monkeypatch):
    monkeypatch.setattr(zarrset, "MAX_CHUNK", 100)
    with pytest.raises(FormatError, match="chunks of more than 100"):
        shards.open(zarr_set, "train", "1/2")[0]


@pytest.mark.parametrize(("place", "value"), [(0, 1), (2, 0), (5, 1 << 40), (3, (1 << 64) - 1)])
def test_offsets_of_a_store_are_not_trusted(tmp_path, place, value):
    build(tmp_path, "zarr")
    store = zarr.open_group(str(tmp_path / "train/1-2/train-1-2.zarr"), mode="r+")
    store["image/offsets"][place] = np.uint64(value)
    with pytest.raises(FormatError, match=r"image/offsets/c/0: checksum differs"):
        shards.open(tmp_path, "train", "1/2")[4]
    seal_anew(tmp_path)
    with pytest.raises(FormatError, match="image: offsets do not rise or leave the data"):
        shards.open(tmp_path, "train", "1/2")[4]


def test_reading_keeps_a_few_bytes_a_sample(tmp_path, monkeypatch):
    """Ten thousand samples opened at random must not leave their index entries in memory, but for a fixed part."""
    import tracemalloc

    monkeypatch.setattr(tarset, "INDEX_BYTES", 0)
    entries, at = [], 0
    blocks = sample_blocks("key000000", {"jpg": b"x", "json": b"{}"})
    with open(tmp_path / "a.tar", "wb") as file:
        for number in range(10_000):
            key = f"key{number:06d}"
            file.write(sample_blocks(key, {"jpg": b"x", "json": b"{}"}))
            entries.append(IndexEntry(key, at, {"jpg": 1, "json": 2}))
            at += len(blocks)
        file.write(TAR_END)
    (tmp_path / "a.index.jsonl").write_bytes(encode_index(entries))
    index, tar = file_of(tmp_path, tmp_path / "a.index.jsonl"), file_of(tmp_path, tmp_path / "a.tar")
    shard = Shard(**tar.model_dump(), samples=10_000, index=index)
    reader = TarReader(open_store(tmp_path), ScaleSet(groups=[10_000], shards=[shard]))
    tracemalloc.start()
    for number in (9_999, 0, 5_000, 1, 9_998):
        assert reader.members(number) == {"jpg": b"x", "json": b"{}"}
    assert tracemalloc.get_traced_memory()[0] < 10_000 * 10
    tracemalloc.stop()
    assert reader.keys()[5_000] == "key005000"


def test_an_index_that_changes_while_it_is_read_is_found(shard_set, tmp_path, monkeypatch):
    monkeypatch.setattr(tarset, "INDEX_BYTES", 0)  # what is kept of it would go on being right
    dataset = shards.open(shard_set, split="train", scale="1")
    if dataset.manifest.format == "zarr":
        pytest.skip("a Zarr store has no index beside it")
    copy = tmp_path / "set"
    shutil.copytree(shard_set, copy)
    dataset = shards.open(copy, split="train", scale="1")
    dataset[0]
    for path in copy.rglob("*.index.jsonl"):
        path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    last = dataset.manifest.splits["train"].scales["1"].shards[0].samples - 1
    with pytest.raises(FormatError, match="is not an index entry"):
        dataset[last]


def test_what_was_read_does_not_travel_to_other_processes(shard_set):
    ds = shards.open(shard_set, split="train", scale="1")
    fresh = len(pickle.dumps(ds))
    ds[0]
    assert len(pickle.dumps(ds)) == fresh


def test_an_index_that_has_lost_a_line_is_no_shorter_set(tmp_path):
    build(tmp_path, "webdataset")
    ds = shards.open(tmp_path, split="train", scale="1")
    record = ds.manifest.splits["train"].scales["1"].shards[0]
    path = tmp_path / record.index.path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(FormatError, match=rf"bytes found; the manifest has {record.index.bytes}"):
        ds[0]
