"""The cache of remote shard sets as a reader uses it: its cap, what stays, reading ahead, what is not trusted."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

import shards
from shards import FormatError, UserError
from shards.cache import CacheSettings
from shards.loader import Loader
from shards.manifest import publish
from tests.shards.build import build
from tests.shards.remote import members_of, open_half
from tests.shards.server import Server, Trouble

pytestmark = pytest.mark.usefixtures("no_proxy")


def sizes(folder, split="train", scale="1/2"):
    return [shard.bytes for shard in shards.load_manifest(folder).splits[split].scales[scale].shards]


def test_an_epoch_under_a_small_cap_gives_the_same_bytes(tar_set, server, tmp_path):
    most = 2 * max(sizes(tar_set))
    settings = CacheSettings(tmp_path / "cache", most=most, timeout=5, pause=0.001)
    ds, local = open_half(server, settings), members_of(tar_set)
    largest = 0
    for i in [4, 0, 2, 1, 3, 0, 4, 2]:
        ds = pickle.loads(pickle.dumps(ds))  # noqa: S301  # so that no file stays open
        assert ds.members(i) == local[i]
        largest = max(largest, sum(p.stat().st_size for p in settings.folder.iterdir()))
    assert largest <= most
    assert server.times(".tar") > 3  # some came twice


def test_what_was_used_last_stays(tar_set, server, tmp_path):
    a, b, c = (f"train/1-2/train-1-2-0000{n}" for n in range(3))
    small = sum(s.index.bytes for s in shards.load_manifest(tar_set).splits["train"].scales["1/2"].shards)
    settings = CacheSettings(tmp_path / "cache", most=sizes(tar_set)[0] + sizes(tar_set)[2] + small, pause=0.001)
    for index, expected in ((0, {a}), (2, {b}), (4, {b, c})):
        ds = open_half(server, settings)
        ds.members(index)
        for path in settings.folder.glob("?" * 64):  # as if it were an hour ago
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
        held = {r.path.removesuffix(".tar") for r in ds._reader.part.shards if (settings.folder / r.sha256).exists()}
        assert expected & held
        assert f"train/1-2/train-1-2-0000{index // 2}" in held  # never what was just asked for


def test_a_cap_smaller_than_a_file(server, tmp_path):
    settings = CacheSettings(tmp_path / "cache", most=1000)
    with pytest.raises(UserError, match=r"train-1-2-00000\.tar takes .* set SEGSHARDS_CACHE_GB") as caught:
        open_half(server, settings).members(0)
    assert "\n" not in str(caught.value)


def test_reading_ahead_fetches_whole_shards_in_order(server, quick, tar_set, monkeypatch):
    monkeypatch.setattr("shards.remote.FETCHERS", 1)
    ds = open_half(server, quick)
    ds.ahead([4, 0, 1])
    deadline = time.monotonic() + 5
    while server.times("00000.tar") == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    paths = [one.path[-13:] for one in server.asked if one.path.endswith(".tar")]
    assert paths == ["1-2-00002.tar", "1-2-00000.tar"]
    assert ds.members(4) == members_of(tar_set)[4]
    assert ds.members(1) == members_of(tar_set)[1]
    assert server.times(".tar") == 2


def test_reading_ahead_says_nothing_and_keeps_to_half_of_the_cache(server, tmp_path, tar_set):
    server.trouble = lambda path, before: Trouble(404) if "index" in path else None
    settings = CacheSettings(tmp_path / "cache", most=2 * sizes(tar_set)[0] + 2000, pause=0.001)
    ds = open_half(server, settings)
    ds.ahead(range(5))
    deadline = time.monotonic() + 5
    while ds.store._fetchers and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.times(".tar") == 1
    with pytest.raises(FormatError, match="not found"):
        ds.members(0)


def test_a_loader_reads_a_remote_set_as_a_local_one(shard_set, quick):
    with Server(shard_set) as server:
        remote = shards.open(server.url, split="train", scale="1/2", cache=quick)
        local = shards.open(shard_set, split="train", scale="1/2")
        found, expected = (
            [s.key for b in Loader(ds, batch=2, threads=2).epoch(1) for s in b] for ds in (remote, local)
        )
        assert found == expected
        paths = [one.path for one in server.asked]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("wait", ["for bytes", "for another try", "for another process"])
def test_a_loader_that_is_stopped_waits_for_no_shard(server, quick, tar_set, wait, monkeypatch):
    """Ctrl-C ends a program at once, whatever its threads are fetching; what has come is kept."""
    monkeypatch.setattr(shards.ShardDataset, "ahead", lambda *_: None)  # else other threads would fetch
    record = shards.load_manifest(tar_set).splits["train"].scales["1/2"].shards[0]
    part = quick.folder / f"{record.sha256}-{record.bytes}.part"
    slow = {"for bytes": Trouble(trickle=0.1), "for another try": Trouble(500), "for another process": None}[wait]
    server.trouble = lambda path, before: slow if path.endswith(".tar") else None
    loader = Loader(open_half(server, replace(quick, timeout=9, pause=9)), batch=2, threads=2, shuffle=False)
    quick.folder.mkdir()

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with open(part, "wb") as held:
            if wait == "for another process":
                fcntl.flock(held, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                next(loader.epoch(0))
            while [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]:
                time.sleep(0.01)  # the program's end waits for them, if the loop does not
            assert time.monotonic() - began < 4
    finally:
        signal.signal(signal.SIGALRM, before)


def test_files_of_a_wrong_size_are_not_trusted(server, quick, tar_set):
    open_half(server, quick).members(2)
    file = shards.load_manifest(tar_set).splits["train"].scales["1/2"].shards[1]
    path = quick.folder / file.sha256
    path.write_bytes(path.read_bytes()[:100])
    assert open_half(server, quick).members(2) == members_of(tar_set)[2]
    index = quick.folder / file.index.sha256
    index.write_bytes(bytes(file.index.bytes))  # of the right size: an index is hashed whenever it is read
    assert open_half(server, quick).members(2) == members_of(tar_set)[2]


def test_settings_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHARDS_CACHE", str(tmp_path / "there"))
    monkeypatch.setenv("SEGSHARDS_CACHE_GB", "1.5")
    assert CacheSettings.of() == CacheSettings(tmp_path / "there", 1_500_000_000)
    assert CacheSettings.of(tmp_path).folder == tmp_path
    for wrong in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv("SEGSHARDS_CACHE_GB", wrong)
        with pytest.raises(UserError, match="expected a number of gigabytes above 0"):
            CacheSettings.of()
    monkeypatch.delenv("SEGSHARDS_CACHE_GB")
    monkeypatch.delenv("SEGSHARDS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CacheSettings.of() == CacheSettings(tmp_path / ".cache" / "segshards")


def test_a_folder_needs_none_of_this(tar_set):
    code = (
        "import sys, shards; ds = shards.open(sys.argv[1], split='train'); ds[0]; ds.ahead([1]);"
        "assert not {'fsspec', 'urllib.request', 'http.client', 'zarr', 'shards.remote'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tar_set)], check=True)


def test_the_manifest_of_another_release_is_not_cached(tmp_path, quick):
    """Opening reads the manifest that is there now, not one from the cache."""
    manifest = build(tmp_path / "set")
    with Server(tmp_path / "set") as server:
        first = open_half(server, quick).manifest.digest
        publish(manifest.model_copy(update={"title": "Changed"}), tmp_path / "set")
        assert open_half(server, quick).manifest.digest != first
