"""The checksum of each sample in a tar's index: damage is found without hashing a shard; old sets have none."""

from __future__ import annotations

import json
import os
import re
import zlib

import pytest

import shards
from shards import FormatError, local, tarset
from shards.index import decode_index
from shards.local import LocalStore, OpenFile
from shards.published import tar_set
from shards.sets.convert import convert, plan_conversion
from shards.sets.plan import OpenSet
from shards.shardfile import Blocks, ShardStream
from shards.tar import sample_blocks
from shards.tarset import TarReader
from shards.verify import verify
from tests.shards.build import build, seal_anew

INDEX = "train/1-2/train-1-2-00000.index.jsonl"
TAR = "train/1-2/train-1-2-00000.tar"


def written(folder, samples):
    """Samples written as every set is; what the manifest says of them."""
    (folder / "val/1").mkdir(parents=True)
    stream = ShardStream(folder / "val/1", "val/1", 1 << 20)
    for key, members in samples.items():
        stream.add(key, Blocks(sample_blocks(key, members), {suffix: len(data) for suffix, data in members.items()}))
    stream.finish()
    return tar_set(stream.take_closed())


def unhashed(monkeypatch):
    """From now on nothing may be hashed whole."""

    def refuse(self):
        raise AssertionError(f"{self.path} hashed")

    monkeypatch.setattr(OpenFile, "sha256", refuse)
    monkeypatch.setattr(local, "PROOFS", local.Proofs())


def test_every_flipped_bit_of_a_tar_is_found_and_nothing_is_hashed(tmp_path, monkeypatch):
    samples = {"a": {"jpg": b"\xff\xd8" + bytes(range(200)), "json": b"{}"}, "b/c": {"json": b'{"key":"b/c"}'}}
    part = written(tmp_path, samples)
    unhashed(monkeypatch)
    assert [TarReader(LocalStore(tmp_path), part).members(i) for i in range(2)] == list(samples.values())
    handle = os.open(tmp_path / part.shards[0].path, os.O_RDWR)
    store, data = LocalStore(tmp_path), (tmp_path / part.shards[0].path).read_bytes()
    for at, byte in enumerate(data):
        for bit in range(8):
            os.pwrite(handle, bytes([byte ^ 1 << bit]), at)
            reader = TarReader(store, part)
            with pytest.raises(FormatError, match=r"val-1-00000\.tar \[(a|b/c)"):
                [reader.members(i) for i in range(2)]
        os.pwrite(handle, bytes([byte]), at)
    os.close(handle)
    assert TarReader(store, part).members(0) == samples["a"]


def test_without_checks_nothing_is_compared(tmp_path, monkeypatch):
    build(tmp_path)
    path = tmp_path / TAR
    data = path.read_bytes()
    at = data.index(b"IDAT") + 8
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(FormatError, match=r"\[city/train_000\]: checksum of the sample differs"):
        shards.open(tmp_path, split="train", scale="1/2").members(0)
    assert shards.open(tmp_path, split="train", scale="1/2").members(1)  # others are as they were
    unhashed(monkeypatch)
    monkeypatch.setattr(tarset, "check_blocks", None)
    assert shards.open(tmp_path, split="train", scale="1/2", check=False).members(0)


def test_an_old_set_is_hashed(tmp_path, monkeypatch):
    build(tmp_path, sums=False)
    assert b"crc32" not in (tmp_path / INDEX).read_bytes()
    hashed, sha256 = [], OpenFile.sha256
    monkeypatch.setattr(OpenFile, "sha256", lambda self: hashed.append(str(self.path)) or sha256(self))
    monkeypatch.setattr(local, "PROOFS", local.Proofs())
    ds = shards.open(tmp_path, split="train", scale="1/2")
    assert [ds.members(i) for i in range(2)]
    assert hashed == [str(tmp_path / TAR)]


def test_the_checksum_is_of_the_blocks(tmp_path):
    part = written(tmp_path, {"a": {"jpg": b"x" * 600}, "b": {"json": b"{}"}})
    data = (tmp_path / part.shards[0].path).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / part.shards[0].index.path).read_text().splitlines()]
    assert [row["crc32"] for row in rows] == [zlib.crc32(data[:1536]), zlib.crc32(data[1536:-1024])]


@pytest.mark.parametrize(
    "sums", ['"crc32":1', '"crc32":1,"crc33":2', '"crc32":-1', '"crc32":4294967296', '"crc32":"1"']
)
def test_index_lines_with_odd_checksums(sums):
    good = '{"key":"a","offset":0,"members":{"jpg":512},"crc32":7}\n'
    line = f'{{"key":"b","offset":1024,"members":{{"jpg":1}},{sums}}}\n'
    if sums == '"crc32":1':
        assert [entry.crc for entry in decode_index((good + line).encode())] == [7, 1]
        with pytest.raises(FormatError, match="some samples have a checksum and some have none"):
            decode_index((good + line.replace(f",{sums}", "")).encode())
    else:
        with pytest.raises(FormatError, match="line 2 is not an index entry"):
            decode_index((good + line).encode())


def test_verify_and_readers_find_a_checksum_that_does_not_fit(tmp_path):
    build(tmp_path)
    path = tmp_path / INDEX
    path.write_text(re.sub(r'"crc32":\d+', '"crc32":5', path.read_text(), count=1))
    seal_anew(tmp_path)
    with pytest.raises(FormatError, match=r"\[city/train_000\]: checksum of the sample differs"):
        shards.open(tmp_path, split="train", scale="1/2").members(0)
    (problem,) = verify(tmp_path)
    assert problem == f"{tmp_path / TAR}: headers or samples differ from the index {INDEX}"


@pytest.mark.parametrize("sums", [True, False])
def test_an_index_that_goes_beyond_its_shard_reads_nothing(tmp_path, monkeypatch, sums):
    build(tmp_path, sums=sums)
    path = tmp_path / INDEX
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    row["members"]["png"] = (1 << 31) - 1
    path.write_text(f"{lines[0]}\n{json.dumps(row)}\n")
    seal_anew(tmp_path)
    ds = shards.open(tmp_path, split="train", scale="1/2")
    assert ds.members(0)
    monkeypatch.setattr(OpenFile, "read", None)
    with pytest.raises(FormatError, match=r"00000\.tar \[city/train_001\]: is shorter than the index .* says"):
        ds.members(1)


def test_a_line_is_read_by_itself_where_texts_are_not_kept(tmp_path, monkeypatch):
    build(tmp_path, samples=6, per_shard=3)
    ds = shards.open(tmp_path, split="train", scale="1/2")
    expected = [ds.members(i) for i in range(6)]
    monkeypatch.setattr(tarset, "INDEX_BYTES", 1)
    read, honest = [], LocalStore.range

    def noted(self, file, offset, length, proven=False):
        read.append((file.path.endswith(".tar"), length))
        return honest(self, file, offset, length, proven)

    monkeypatch.setattr(LocalStore, "range", noted)
    ds = shards.open(tmp_path, split="train", scale="1/2")
    assert [ds.members(i) for i in range(6)] == expected
    assert [found for found in read if not found[0]] == [(False, length) for length in lengths(tmp_path, (1, 2))]


def lengths(folder, numbers):
    """Bytes of some lines of both indexes: the first of each is read with the whole."""
    texts = [path.read_bytes().splitlines(keepends=True) for path in sorted((folder / "train/1-2").glob("*.jsonl"))]
    return [len(text[number]) for text in texts for number in numbers]


@pytest.mark.parametrize("sums", [True, False])
def test_a_converted_set_has_them(tmp_path, sums):
    build(tmp_path / "tar", sums=sums)
    for source, out in (("tar", "zarr"), ("zarr", "again")):
        opened = OpenSet.at(tmp_path / source)
        convert(opened, plan_conversion(opened, None), tmp_path / out)
    part = shards.load_manifest(tmp_path / "again").splits["train"].scales["1/2"]
    for shard in part.shards:
        data, text = ((tmp_path / "again" / path).read_bytes() for path in (shard.path, shard.index.path))
        assert all(entry.crc == zlib.crc32(data[entry.offset :][: entry.length]) for entry in decode_index(text))
