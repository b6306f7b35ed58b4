"""The cache of remote files: bounded, shared by processes, never believed further than it was written."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import shards
from shards import SettingsError, UserError
from shards.cache import Cache, CacheSettings, Part
from shards.manifest import File
from tests.shards.server import Server, Trouble

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def file_of(data, path="a.tar"):
    return File(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def putting(data):
    return lambda part: part.append(data[part.length :])


def never(part):
    raise AssertionError("fetched, though it was here")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def taken(folder):
    """Bytes of the files in a cache."""
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # just renamed or removed
            total += entry.stat().st_size if entry.name != "lock" else 0
    return total


def removed(folder):
    """What leads to files of a folder that this process has open and that are there no more."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(link.readlink())
            found += [link] if target.startswith(str(folder)) and target.endswith(" (deleted)") else []
    return found


def held(cache, *contents):
    """Which of these contents are in the cache, as a string of 0 and 1."""
    return "".join(str(int(cache.path(file_of(data)).exists())) for data in contents)


def age(cache, *contents):
    """Make these files look unused since the past, the first the longest."""
    for place, data in enumerate(contents):
        when = time.time() - 1000 + place
        os.utime(cache.path(file_of(data)), (when, when))


def test_a_file_is_fetched_once_and_found_under_its_checksum(tmp_path):
    cache = Cache(CacheSettings(tmp_path / "new" / "cache"))
    file = file_of(b"content")
    assert cache.find(file) is None
    assert cache.open(file, putting(b"content")).read(0, 99) == b"content"
    assert cache.open(file, never).read(0, 99) == b"content"
    assert names(tmp_path / "new" / "cache") == [file.sha256]
    assert cache.path(file).read_bytes() == b"content"


def test_what_was_used_longest_ago_makes_room_and_strangers_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_bytes(bytes(1000))
    (tmp_path / ("0" * 63)).write_bytes(b"mine too")
    cache = Cache(CacheSettings(tmp_path, most=300))
    a, b, c, d = (letter * 100 for letter in (b"a", b"b", b"c", b"d"))
    for data in (a, b, c):
        cache.open(file_of(data), putting(data))
    age(cache, a, b, c)
    cache.open(file_of(a), never)  # a use
    kept_open = cache.open(file_of(b), never)
    age(cache, b, c)
    cache.open(file_of(d), putting(d))
    assert held(cache, a, b, c, d) == "1011"
    assert kept_open.read(0, 100) == b  # whoever has it open reads on
    cache.open(file_of(b"e" * 290), putting(b"e" * 290))
    assert held(cache, a, b, c, d, b"e" * 290) == "00001"
    assert (tmp_path / "mine.txt").exists()
    assert (tmp_path / ("0" * 63)).exists()


def test_a_folder_with_room_is_not_looked_through_for_each_file(tmp_path, monkeypatch):
    cache, looked = Cache(CacheSettings(tmp_path, most=100_000)), []
    entries = cache._entries
    monkeypatch.setattr(cache, "_entries", lambda: looked.append(1) or entries())
    for number in range(100):
        data = number.to_bytes(100, "little")
        cache.open(file_of(data), putting(data))
    assert 1 <= len(looked) <= 3
    other = Cache(CacheSettings(tmp_path, most=10_400))  # others come and go, and the bound holds
    for number in range(100, 140):
        data = number.to_bytes(100, "little")
        other.open(file_of(data), putting(data))
        assert taken(tmp_path) <= 10_400


def fill(folder, first, start, late):
    """In a process of its own: 60 files of 1,000 bytes, with a rest before number ``late``."""
    cache = Cache(CacheSettings(folder, most=100_000))
    start.wait()
    for number in range(60):
        if number == late:
            time.sleep(0.3)
        data = (first + number).to_bytes(1000, "little")
        cache.open(file_of(data), putting(data))


def test_the_cap_holds_with_any_number_of_processes(tmp_path):
    """Six fill an empty cache at once, one of them more slowly: none has room of its own that the others do not see."""
    start = FORK.Event()
    workers = [FORK.Process(target=fill, args=(tmp_path, 100 * n, start, 3 if n == 0 else None)) for n in range(6)]
    for worker in workers:
        worker.start()
    start.set()
    most = 0
    while any(worker.is_alive() for worker in workers):
        most = max(most, taken(tmp_path))
        time.sleep(0.001)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert 90_000 < max(most, taken(tmp_path)) <= 100_000
    assert taken(tmp_path) > 90_000


def test_room_is_everybodys(tmp_path, monkeypatch):
    """Nine caches of one folder, by turns: full to the last byte, never beyond, and looked through only when full."""
    caches, looked = [Cache(CacheSettings(tmp_path, most=10_000)) for _ in range(9)], []
    entries = Cache._entries
    monkeypatch.setattr(Cache, "_entries", lambda self: looked.append(1) or entries(self))
    for number in range(100):
        data = number.to_bytes(100, "little")
        caches[number % 9 if number < 90 else 0].open(file_of(data), putting(data))
    assert taken(tmp_path) == 10_000
    assert len(looked) == 1
    for number in range(100, 120):
        data = number.to_bytes(100, "little")
        caches[number % 9].open(file_of(data), putting(data))
        assert taken(tmp_path) == 10_000
    for odd in (b"", b"x" * 20, b"9" * 20, b"1" * 21):  # no figure, or one that is far off: counted anew
        (tmp_path / "lock").write_bytes(odd)
        caches[0].open(file_of(odd + b"y" * 80), putting(odd + b"y" * 80))
        assert taken(tmp_path) <= 10_000


def test_a_figure_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    cache, write = Cache(CacheSettings(tmp_path, most=300)), os.pwrite
    cache.open(file_of(b"a" * 100), putting(b"a" * 100))

    def full(fd, data, at):
        if len(data) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    for letter in (b"b", b"c", b"d", b"e"):
        cache.open(file_of(letter * 100), putting(letter * 100))
        assert (tmp_path / "lock").read_bytes() == b""
        assert taken(tmp_path) <= 300


def test_a_file_that_somebody_published_just_before_is_taken(tmp_path, monkeypatch):
    cache, find, calls = Cache(CacheSettings(tmp_path)), Cache.find, []
    file = file_of(b"content")
    cache.open(file, putting(b"content"))
    monkeypatch.setattr(Cache, "find", lambda self, file: calls.append(1) or (find(self, file) if calls[1:] else None))
    assert cache.open(file, never).read(0, 9) == b"content"
    assert names(tmp_path) == [file.sha256]


def test_parts_count_at_their_full_size_and_those_nobody_fetches_go(tmp_path):
    cache = Cache(CacheSettings(tmp_path, most=300))
    stale = tmp_path / f"{'f' * 64}-250.part"
    stale.write_bytes(b"one byte, say")
    os.utime(stale, (1, 1))
    inside: list[list[str]] = []

    def nested(part):
        part.append(b"a" * 50)
        cache.open(file_of(b"b" * 100), putting(b"b" * 100))
        inside.append(names(tmp_path))  # this part, of 200 bytes in the end, and the other file: 300
        with pytest.raises(UserError, match=r"takes 3.01e-07 GB, more than"):
            cache.open(file_of(bytes(301)), never)
        part.append(b"a" * 150)

    a = b"a" * 200
    cache.open(file_of(a), nested)
    assert not stale.exists()
    assert inside == [sorted([f"{file_of(a).sha256}-200.part", file_of(b"b" * 100).sha256])]
    assert held(cache, a, b"b" * 100) == "11"


def test_a_part_goes_on_where_it_stopped(tmp_path):
    cache = Cache(CacheSettings(tmp_path))
    file = file_of(b"first and second")

    def broken(part):
        part.append(b"first ")
        raise UserError("cut")

    with pytest.raises(UserError, match="cut"):
        cache.open(file, broken)
    assert names(tmp_path) == [f"{file.sha256}-16.part"]

    def rest(part):
        assert part.length == 6
        part.append(b"and second")
        assert part.sha256 == file.sha256  # what had come before is hashed too

    assert cache.open(file, rest).read(0, 99) == b"first and second"

    def nothing(part):
        part.append(b"x")
        part.restart()
        raise UserError("changed")

    with pytest.raises(UserError, match="changed"):
        cache.open(file_of(b"other"), nothing)
    assert names(tmp_path) == [file.sha256]


def test_a_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """After a power cut, a name must not stand for bytes that never reached the disk."""
    done = []
    fsync, rename = os.fsync, type(tmp_path).rename
    monkeypatch.setattr(os, "fsync", lambda fd: done.append("synced") or fsync(fd))
    monkeypatch.setattr(type(tmp_path), "rename", lambda self, to: done.append("rename") or rename(self, to))
    Cache(CacheSettings(tmp_path)).open(file_of(b"x"), putting(b"x"))
    assert done == ["synced", "rename"]


def test_a_full_disk_gives_up_other_files_first(tmp_path, monkeypatch):
    cache = Cache(CacheSettings(tmp_path))
    for data in (b"a" * 100, b"b" * 100):
        cache.open(file_of(data), putting(data))
    age(cache, b"a" * 100, b"b" * 100)
    write = os.pwrite

    def full(fd, data, offset):
        if sum(p.stat().st_size for p in tmp_path.iterdir()) > 150:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    cache.open(file_of(b"c" * 40), putting(b"c" * 40))
    assert held(cache, b"a" * 100, b"b" * 100, b"c" * 40) == "011"
    (tmp_path / "other").write_bytes(bytes(200))
    with pytest.raises(UserError, match=r"cannot be used \(No space left on device\): free space there") as caught:
        cache.open(file_of(b"d"), putting(b"d"))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["other"]  # nothing half there, and all that could go is gone


def test_files_that_are_open_do_not_fill_the_disk_for_good(tar_set, tmp_path, monkeypatch):
    """What is removed takes space while it is open: a set of three shards is read on a disk of two all the same."""
    folder, write = tmp_path / "cache", os.pwrite
    sizes = sorted(shard.bytes for shard in shards.load_manifest(tar_set).splits["train"].scales["1/2"].shards)

    def used():
        there = {str(path): path.stat().st_size for path in folder.iterdir()}
        return sum({**there, **{str(link.readlink()): link.stat().st_size for link in removed(folder)}}.values())

    def full(fd, data, offset):
        if used() + len(data) > sum(sizes[1:]) + 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    local = shards.open(tar_set, split="train", scale="1/2")
    with Server(tar_set) as server:
        ds = shards.open(server.url, split="train", scale="1/2", cache=CacheSettings(folder, most=10**9, timeout=5))
        for i in (0, 2, 4, 1, 3, 0, 4, 2):
            assert ds.members(i) == local.members(i)


def test_what_was_removed_is_not_kept_open_for_long(tar_set, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("shards.remote.time.monotonic", lambda: now[0])
    with Server(tar_set) as server:
        ds = shards.open(server.url, split="train", scale="1/2", cache=CacheSettings(tmp_path / "cache", timeout=5))
        first = ds.members(0)
        for path in (tmp_path / "cache").iterdir():
            path.unlink()  # as another process does that makes room
        assert ds.members(0) == first

        assert removed(tmp_path) != []
        now[0] += 1000
        ds.members(2)
        assert removed(tmp_path) == []


def test_a_disk_that_takes_no_more_while_a_set_is_read(tar_set, tmp_path):
    """A real limit of the system, in a process of its own: the error is one line, and what was read is right."""
    with Server(tar_set) as server:
        settings = CacheSettings(tmp_path / "cache", timeout=2)

        def child():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
            ds = shards.open(server.url, split="train", scale="1/2", cache=settings)
            try:
                ds.members(0)
            except UserError as error:
                os._exit(7 if f"the cache {settings.folder} cannot be used (File too large)" in str(error) else 1)

        process = FORK.Process(target=child)
        process.start()
        process.join(20)
        assert process.exitcode == 7


@pytest.mark.parametrize("harm", ["file", "unwritable"])
def test_folders_that_cannot_be_written(tmp_path, harm, monkeypatch):
    folder = tmp_path / "cache"
    if harm == "file":
        folder.write_bytes(b"")
    else:
        opened = os.open

        def refuse(path, flags, *more, **named):
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, flags, *more, **named)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        UserError, match=rf"^the cache {folder} cannot be used \(.*make it writable, or set SEGSHARDS_CACHE"
    ):
        Cache(CacheSettings(folder, most=10)).open(file_of(b"x"), putting(b"x"))


def test_a_sound_file_that_does_not_open_now_is_kept(tmp_path, monkeypatch):
    """Too many files are open in this process, or it is somebody else's: that is no damage."""
    cache = Cache(CacheSettings(tmp_path))
    cache.open(file_of(b"x"), putting(b"x"))
    opening = os.open
    for number, remedy in ((errno.EMFILE, "ulimit -n"), (errno.EACCES, "make it writable")):

        def failing(path, *given, number=number):
            if str(path) == str(cache.path(file_of(b"x"))):
                raise OSError(number, os.strerror(number), str(path))
            return opening(path, *given)

        monkeypatch.setattr(os, "open", failing)
        for asked in (lambda: cache.open(file_of(b"x"), never), lambda: cache.find(file_of(b"x"))):
            with pytest.raises(UserError, match=rf"cannot be (used|opened) \({os.strerror(number)}\): .*{remedy}"):
                asked()
        assert names(tmp_path) == [file_of(b"x").sha256]


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("shards.cache.Path.home", nobody)
    for name in ("SEGSHARDS_CACHE", "SEGSHARDS_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="no home folder found for a cache: set SEGSHARDS_CACHE to a folder"):
        CacheSettings.of()
    assert CacheSettings.of(tmp_path).folder == tmp_path


def test_threads_that_want_one_file_wait_for_the_one_that_fetches_it(tmp_path):
    cache, fetched, found = Cache(CacheSettings(tmp_path)), [], []

    def fetch(part):
        fetched.append(1)
        time.sleep(0.02)
        part.append(b"content")

    threads = [
        threading.Thread(target=lambda: found.append(cache.open(file_of(b"content"), fetch).read(0, 9)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (fetched, found) == ([1], [b"content"] * 6)
    assert len(names(tmp_path)) == 1


def read_all(url, settings, expected, order):
    """In a process of its own: exit code 0 if all samples are as expected."""
    ds = shards.open(url, split="train", scale="1/2", cache=settings)
    os._exit(0 if all(ds.members(i) == expected[i] for i in order) else 1)


def test_two_processes_share_a_cache(tar_set, tmp_path):
    local = shards.open(tar_set, split="train", scale="1/2")
    expected = [local.members(i) for i in range(5)]
    settings = CacheSettings(tmp_path / "cache", timeout=5)
    with Server(tar_set, trouble=lambda path, before: Trouble(trickle=0.0005)) as server:
        workers = [FORK.Process(target=read_all, args=(server.url, settings, expected, range(5))) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        paths = [one.path for one in server.asked if one.path != "manifest.json"]
    assert len(paths) == len(set(paths)) == 6


def test_processes_that_evict_each_others_files_read_on(tar_set, tmp_path):
    local = shards.open(tar_set, split="train", scale="1/2")
    expected = [local.members(i) for i in range(5)]
    largest = max(shard.bytes for shard in local._reader.part.shards)
    settings = CacheSettings(tmp_path / "cache", most=largest + 700, timeout=5, pause=0.001)
    orders = ([0, 2, 4, 1, 3] * 4, [4, 1, 3, 0, 2] * 4)
    with Server(tar_set) as server:
        workers = [FORK.Process(target=read_all, args=(server.url, settings, expected, order)) for order in orders]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_process_killed_while_it_fetches_leaves_a_usable_cache(tar_set, tmp_path):
    local = shards.open(tar_set, split="train", scale="1/2")
    tar = local._reader.part.shards[0]
    settings = CacheSettings(tmp_path / "cache", timeout=10)
    with Server(tar_set) as server:
        server.trouble = lambda path, before: Trouble(stall=2048) if path == tar.path and before == 0 else None
        worker = FORK.Process(target=read_all, args=(server.url, settings, [], [0]))
        worker.start()
        part = settings.folder / f"{tar.sha256}-{tar.bytes}.part"
        deadline = time.monotonic() + 10
        while not (part.exists() and part.stat().st_size == 2048) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        ds = shards.open(server.url, split="train", scale="1/2", cache=settings)
        assert ds.members(0) == local.members(0)
        starts = [one.start for one in server.asked if one.path == tar.path]
    assert starts == [0, 2048]  # the lock went with its holder; what had come is gone on from
    assert not part.exists()


def test_a_part_takes_bytes_in_any_pieces(tmp_path, monkeypatch):
    fd = os.open(tmp_path / "p", os.O_RDWR | os.O_CREAT)
    write = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: write(fd, data[:3], at)
    )  # a disk may take less than it is given
    part = Part(tmp_path / "p", fd, lambda size: False)
    part.append(b"0123456789")
    part.append(b"abc")
    assert (part.length, part.sha256) == (13, hashlib.sha256(b"0123456789abc").hexdigest())
    os.close(fd)
    assert (tmp_path / "p").read_bytes() == b"0123456789abc"


def test_the_cap_without_one_given_is_half_of_what_is_free(tmp_path, monkeypatch):
    free = [1000]
    monkeypatch.setattr("shards.cache.shutil.disk_usage", lambda path: type("U", (), {"free": free[0]}))
    assert Cache(CacheSettings(tmp_path)).most == 500
    (tmp_path / ("a" * 64)).write_bytes(bytes(300))  # what the cache has counts as free
    assert Cache(CacheSettings(tmp_path)).most == 650
    free[0] = 10**15
    assert Cache(CacheSettings(tmp_path)).most == 64 * 10**9
