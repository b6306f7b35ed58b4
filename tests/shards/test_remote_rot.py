"""Copies in the cache that have rotted since they came: noticed, dropped and fetched again, once."""

from __future__ import annotations

import pytest

import shards
from shards import FormatError, local
from shards.recent import Recent
from tests.shards.build import build
from tests.shards.server import Server

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture(params=["webdataset", "webdataset without sums", "zarr"])
def folder(request, tmp_path):
    format = request.param.partition(" ")[0]
    build(tmp_path / "set", format, sums=request.param == "webdataset")
    return tmp_path / "set"


def data_files(folder):
    part = shards.load_manifest(folder).splits["train"].scales["1/2"]
    return part.shards or [file for file in part.files if "/data/c/" in file.path and "/key/" not in file.path]


def later(monkeypatch):
    """As in another process: nothing is known of any file."""
    monkeypatch.setattr("shards.remote.PROOFS", local.Proofs())


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_cached_file_is_mended(folder, quick, monkeypatch, where):
    """Wherever it is: also in pictures that decode all the same."""
    with Server(folder) as server:

        def read():
            ds = shards.open(server.url, split="train", scale="1/2", cache=quick)
            return [ds.members(i) for i in range(5)]

        expected = read()
        asked = len(server.asked)
        for file in data_files(folder):
            flip(quick.folder / file.sha256, int(where * file.bytes * 0.9))
        later(monkeypatch)
        assert read() == expected
        again = sorted(one.path for one in server.asked[asked:] if one.path != "manifest.json")
        assert again == sorted(file.path for file in data_files(folder))
        asked = len(server.asked)
        later(monkeypatch)
        assert read() == expected
        assert [one.path for one in server.asked[asked:]] == ["manifest.json"]
        assert all((quick.folder / f.sha256).read_bytes() == (folder / f.path).read_bytes() for f in data_files(folder))


def test_copies_are_hashed_once_a_process_and_not_on_arrival(tmp_path, quick, monkeypatch):
    build(tmp_path / "set", "zarr")
    hashed, sha256 = [], local.OpenFile.sha256
    monkeypatch.setattr(local.OpenFile, "sha256", lambda self: hashed.append(self.path.name) or sha256(self))
    monkeypatch.setattr("shards.remote.OPEN", Recent(2))  # few stay open: opening again is no reason to hash again
    with Server(tmp_path / "set") as server:
        for reads in (2, 3):
            for _ in range(reads):
                ds = shards.open(server.url, split="train", scale="1/2", cache=quick)
                [ds[i] for i in (0, 4, 1, 3, 2, 0)]
            assert hashed == [] if reads == 2 else sorted(hashed) == sorted(set(hashed))
            later(monkeypatch)
    files = {file.sha256 for file in shards.load_manifest(tmp_path / "set").splits["train"].scales["1/2"].files}
    assert set(hashed) < files
    assert len(hashed) == 4  # image, soft label, metadata, keys: the others are hashed whenever they are read


def test_a_disk_that_fails_for_good_is_an_error(folder, quick, monkeypatch):
    """What is fetched again comes back changed as well: no endless loop."""
    with Server(folder) as server:
        ds = shards.open(server.url, split="train", scale="1/2", cache=quick)
        [ds.members(i) for i in range(5)]
        read = local.OpenFile.read
        rotten = {file.sha256 for file in data_files(folder)}

        def bad(self, offset, length):
            data = read(self, offset, length)
            return data if self.path.name not in rotten or not data else bytes([data[0] ^ 1]) + data[1:]

        monkeypatch.setattr(local.OpenFile, "read", bad)
        later(monkeypatch)
        ds = shards.open(server.url, split="train", scale="1/2", cache=quick)
        with pytest.raises(FormatError, match=r"checksum|disk is failing|differs"):
            [ds.members(i) for i in range(5)]
        assert all(server.times(file.path) <= 3 for file in data_files(folder))


def test_damage_at_the_source_is_no_rot(tmp_path, quick):
    """Bytes that are what the manifest says, and no sample: an error at once, nothing is fetched twice."""
    build(tmp_path / "set", sums=False)
    from tests.shards.build import seal_anew

    tar = tmp_path / "set/train/1-2/train-1-2-00000.tar"
    flip(tar, 3)  # in the name of the first member
    seal_anew(tmp_path / "set")
    with Server(tmp_path / "set") as server:
        ds = shards.open(server.url, split="train", scale="1/2", cache=quick)
        for _ in range(2):
            with pytest.raises(FormatError, match="header"):
                ds.members(0)
        assert server.times("00000.tar") == 1
