"""Shard sets at URLs: the same bytes as in a folder, whatever the network does, or one line that says what it did."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import socket
import sys
from dataclasses import replace

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

import shards
from shards import FormatError, UserError
from shards.cli import command
from shards.store import as_place, open_store
from shards.verify import verify
from tests.shards.build import SCALES, build
from tests.shards.remote import TAR, kept, members_of, open_half
from tests.shards.server import Server, Trouble

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("scale", SCALES)
def test_equal_to_the_folder(shard_set, quick, split, scale):
    with Server(shard_set) as server:
        ds = shards.open(server.url, split=split, scale=scale, cache=quick)
        assert ds.keys() == shards.open(shard_set, split=split, scale=scale).keys()
        assert [ds.members(i) for i in range(len(ds))] == members_of(shard_set, split, scale)
        assert ds[2].key == ds.keys()[2]
        paths = [asked.path for asked in server.asked]
    assert len(paths) == len(set(paths))  # nothing twice
    assert all(path == "manifest.json" or path.startswith(f"{split}/{scale.replace('/', '-')}/") for path in paths)


def test_other_file_systems_of_fsspec(shard_set, quick):
    memory = fsspec.filesystem("memory")
    memory.put(str(shard_set), "/sets/tiny", recursive=True)
    try:
        ds = shards.open("memory://sets/tiny", split="train", scale="1/4", cache=quick)
        assert [ds.members(i) for i in range(5)] == members_of(shard_set, scale="1/4")
        with pytest.raises(UserError, match=r"no manifest\.json found in memory://sets/other"):
            shards.open("memory://sets/other", split="train", cache=quick)
    finally:
        memory.rm("/sets", recursive=True)
    ds = shards.open(f"file://{shard_set}", split="train", scale="1/4")
    assert [ds.members(i) for i in range(5)] == members_of(shard_set, scale="1/4")


def test_file_systems_that_a_fork_breaks(tar_set, quick, monkeypatch):
    """s3fs and gcsfs refuse to work in another process than their own: a child has to make its own."""

    class Touchy(MemoryFileSystem):
        protocol = "touchy"

        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            self.process = os.getpid()

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(path.replace("touchy://", "memory://"))

        def _open(self, *given, **options):
            if self.process != os.getpid():
                raise RuntimeError("This class is not fork-safe")
            return super()._open(*given, **options)

    fsspec.register_implementation("touchy", Touchy, clobber=True)
    memory = fsspec.filesystem("memory")
    memory.put(str(tar_set), "/sets/tiny", recursive=True)
    try:
        ds = shards.open("touchy://sets/tiny", split="train", scale="1/2", cache=quick)
        expected = members_of(tar_set)
        child = multiprocessing.get_context("fork").Process(
            target=lambda: os._exit(0 if ds.members(3) == expected[3] else 1)
        )
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert ds.members(0) == expected[0]
    finally:
        memory.rm("/sets", recursive=True)


def test_verify_reads_a_remote_set(shard_set, quick):
    with Server(shard_set) as server:
        store = open_store(server.url, quick)
        assert list(verify(store)) == []
        store.check(next(iter(shards.load_manifest(store).files)))
        path = max(quick.folder.glob("?" * 64), key=lambda p: p.stat().st_size)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert list(verify(open_store(server.url, quick))) == []  # fetched again
        assert path.read_bytes() == data


def test_a_rotten_copy_is_replaced_also_for_those_that_have_it_open(server, quick, tar_set):
    ds, expected = open_half(server, quick), members_of(tar_set)[2]
    record = shards.load_manifest(tar_set).splits["train"].scales["1/2"].shards[1]
    assert ds.members(2) == expected
    other = open_half(server, quick)
    assert other.members(2) == expected
    (quick.folder / record.sha256).write_bytes(bytes(record.bytes))
    assert ds.store.check(record) is None
    assert ds.members(2) == expected
    assert other.members(2) == expected  # which still had the damaged one open
    assert server.times(TAR) == 2


def test_the_tools_look_into_remote_sets(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSHARDS_CACHE", str(tmp_path / "cache"))
    run = CliRunner().invoke
    assert run(command, ["ls", server.url]).output == run(command, ["ls", str(server.folder)]).output
    assert run(command, ["stats", server.url]).stdout == run(command, ["stats", str(server.folder)]).stdout
    keys = run(command, ["ls", server.url, "--keys", "--split", "test"]).output.splitlines()
    assert keys == [f"city/test_{i:03d}" for i in range(5)]
    found = run(command, ["cat", server.url, "--key", keys[3], "--save", str(tmp_path / "look")])
    assert found.output.startswith(f"key      {keys[3]}")
    assert len(list((tmp_path / "look").iterdir())) >= 1
    server.replaced[TAR] = bytes(100)
    (tmp_path / "cache").rename(tmp_path / "other")
    done = run(command, ["verify", server.url, "--quiet"])
    assert f"{server.url}/{TAR}: 100 bytes found" in done.output


def test_a_second_opening_fetches_the_manifest_alone(server, quick):
    ds = open_half(server, quick)
    first = [ds.members(i) for i in range(5)]
    asked = len(server.asked)
    again = open_half(server, quick)
    copy = pickle.loads(pickle.dumps(again))  # noqa: S301  # what a data loader does
    assert [copy.members(i) for i in range(5)] == first
    assert [one.path for one in server.asked[asked:]] == ["manifest.json"]


@pytest.mark.parametrize(("status", "kind", "says"), [(404, FormatError, "not found"), (403, UserError, "refused")])
def test_files_that_the_server_will_not_give(server, quick, status, kind, says):
    server.trouble = lambda path, before: Trouble(status) if path == TAR else None
    ds = open_half(server, quick)
    ds.members(0)
    with pytest.raises(kind, match=rf"^{server.url}/{TAR}.*{says} \(HTTP {status} ") as caught:
        ds.members(2)
    assert "\n" not in str(caught.value)
    assert server.times(TAR) == 1  # asking again would not help
    assert not any("part" in name for name in kept(quick))


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Trouble(404), "no manifest.json found in http"),
        (Trouble(403), "refused"),
        (Trouble(416), r"refused \(HTTP 416"),
        (Trouble(500), "HTTP 500"),
        (Trouble(cut=50), "connection cut after 50 of"),
        (Trouble(stall=50), "nothing came for 0.2 s, after 3 tries"),
    ],
)
def test_a_manifest_that_does_not_come(server, quick, trouble, says):
    server.trouble = lambda path, before: trouble
    patience = 0.2 if trouble.stall else quick.timeout
    with pytest.raises(UserError, match=says) as caught:
        open_half(server, replace(quick, timeout=patience))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/set", "http://no-such-host.invalid/set"])
def test_unreachable_hosts(quick, url, monkeypatch):
    if "invalid" in url:  # no test asks a name server

        def unknown(*_, **__):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"no connection: .*after 3 tries: check the address"):
            shards.open(url.format(port=free.getsockname()[1]), split="train", cache=quick)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_a_cut_connection_is_taken_up_where_it_ended(server, quick, ranges, length, tar_set):
    size = (tar_set / TAR).stat().st_size
    server.ranges, server.length = ranges, length
    server.trouble = lambda path, before: Trouble(cut=[1000, 2000][before]) if path == TAR and before < 2 else None
    assert open_half(server, quick).members(2) == members_of(tar_set)[2]
    starts = [one.start for one in server.asked if one.path == TAR]
    assert starts == ([0, 1000, 3000] if ranges else [0, 0, 0])
    assert server.sent(TAR) == (size if ranges else size + 3000)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_a_connection_lost_after_the_last_byte(server, quick, tar_set, cut, changed):
    """All is there: nothing more is asked for (a server would answer 416), and the checksum decides."""

    def trouble(path, before):
        if path == TAR:
            return Trouble(cut=1000) if cut and before == 0 else Trouble(endless=True)
        return None

    server.trouble, server.length = trouble, False
    data = (tar_set / TAR).read_bytes()
    if not changed:
        assert open_half(server, quick).members(2) == members_of(tar_set)[2]
        assert server.times(TAR) == 1 + cut
        return
    server.replaced[TAR] = data[:-1] + b"x"
    with pytest.raises(FormatError, match=r"sha256 .* found; the manifest has .*changed under the same name"):
        open_half(server, quick).members(2)
    server.replaced[TAR] = data[:-512]  # all that it sends, and still too little: no end of the file
    with pytest.raises(FormatError, match=r"HTTP 416|changed under the same name"):
        open_half(server, quick).members(2)


def test_a_connection_that_gets_further_is_not_counted_as_failed(server, quick, tar_set, monkeypatch):
    monkeypatch.setattr("shards.remote.FURTHER", 1)
    server.trouble = lambda path, before: Trouble(cut=500) if path == TAR else None
    assert open_half(server, quick).members(2) == members_of(tar_set)[2]
    assert server.times(TAR) > quick.retries + 1


def test_what_has_come_is_kept_for_the_next_run(server, quick, tar_set):
    server.trouble = lambda path, before: Trouble(cut=2000 if before == 0 else 0) if path == TAR else None
    with pytest.raises(UserError, match="connection cut after 2000 of"):
        open_half(server, quick).members(2)
    server.trouble = lambda path, before: None
    assert open_half(server, quick).members(2) == members_of(tar_set)[2]
    assert server.sent(TAR) == (tar_set / TAR).stat().st_size


def test_stalled_and_trickling_connections_end(server, quick, tar_set):
    server.trouble = lambda path, before: Trouble(stall=1500) if path == TAR and before == 0 else None
    assert open_half(server, replace(quick, timeout=0.8)).members(2) == members_of(tar_set)[2]
    assert [one.start for one in server.asked if one.path == TAR] == [0, 1500]
    server.trouble = lambda path, before: Trouble(trickle=0.02) if path == slow else None
    for slow, split in (("manifest.json", "train"), ("test/1-2/test-1-2-00000.tar", "test")):
        with pytest.raises(UserError, match=rf"{slow}: only \d+ bytes came in \d s, after 1 try"):
            open_half(server, replace(quick, timeout=0.4, retries=0), split).members(0)


@pytest.mark.parametrize("change", ["other", "longer", "shorter"])
@pytest.mark.parametrize("length", [True, False])
def test_changed_content_is_an_error_and_never_kept(server, quick, tar_set, change, length):
    data = (tar_set / TAR).read_bytes()
    server.length = length
    server.replaced[TAR] = {"other": bytes([data[0] ^ 1]) + data[1:], "longer": data + b"x", "shorter": data[:-512]}[
        change
    ]
    ds = open_half(server, quick)
    with pytest.raises(FormatError, match=rf"^{server.url}/{TAR}.*changed under the same name"):
        ds.members(2)
    assert not any("part" in name for name in kept(quick))
    if length:
        assert server.times(TAR) == 1  # its length alone shows it, or its checksum
    del server.replaced[TAR]
    assert ds.members(2) == members_of(tar_set)[2]


def test_an_answer_without_end_is_left_soon(server, quick, tar_set):
    server.length = False
    server.replaced[TAR] = (tar_set / TAR).read_bytes() + bytes(40 << 20)
    with pytest.raises(FormatError, match="more than"):
        open_half(server, quick).members(2)
    assert server.sent(TAR) == 0  # the connection was closed before all was sent


@pytest.mark.parametrize("keep", [2000, 10**9])
def test_no_mix_of_what_came_before_and_after_a_change(server, quick, tar_set, keep):
    """A first part of other content (an old set, a torn disk, zeros after a power cut) is found, and fetched anew."""
    file = shards.load_manifest(tar_set).splits["train"].scales["1/2"].shards[1]
    quick.folder.mkdir()
    (quick.folder / f"{file.sha256}-{file.bytes}.part").write_bytes(bytes(min(keep, file.bytes + 7)))
    assert open_half(server, quick).members(2) == members_of(tar_set)[2]
    assert not any("part" in name for name in kept(quick))


def test_a_set_published_anew_is_read_whole_or_not_at_all(tmp_path, quick):
    """The old manifest with a new shard is an error; opening again reads the new set; nothing is ever mixed."""
    build(tmp_path / "old")
    build(tmp_path / "new", per_shard=3)
    with Server(tmp_path / "old") as server:
        ds = open_half(server, quick)
        ds.members(0)
        server.folder = tmp_path / "new"
        with pytest.raises(FormatError, match="changed under the same name"):
            ds.members(2)
        assert ds.members(0) == members_of(tmp_path / "old")[0]
        again = open_half(server, quick)
        assert [again.members(i) for i in range(5)] == members_of(tmp_path / "new")


def test_servers_that_answer_another_range_or_in_gzip(server, quick, monkeypatch):
    server.trouble = lambda path, before: Trouble(cut=100, wrong_range=True) if path == TAR else None
    with pytest.raises(UserError, match="another range than it was asked for"):
        open_half(server, quick).members(2)


def test_redirects_are_followed_to_the_web_only(server, quick, tmp_path):
    from tests.shards.server import _Handler

    class Redirecting(_Handler):
        def do_GET(self):
            if self.path.startswith("/elsewhere/"):
                self.path = self.path.replace("/elsewhere/", "/data/")
                return super().do_GET()
            self.send_response(302)
            self.send_header("Location", target + self.path.removeprefix("/data"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

    server._http.RequestHandlerClass = Redirecting
    target = server.url.removesuffix("/data/set") + "/elsewhere"
    assert len(open_half(server, quick).members(0)) == 3
    target = f"ftp://127.0.0.1{tmp_path}"
    with pytest.raises(UserError, match=r"no connection|refused"):
        open_half(server, quick)


def test_signed_urls_and_odd_paths(tmp_path, quick, tar_set):
    copy = tmp_path / "a b"
    shutil.copytree(tar_set, copy)
    with Server(tmp_path) as server:
        ds = shards.open(f"{server.url}/a%20b/?token=x%2Fy", split="train", scale="1/2", cache=quick)
        assert ds.members(1) == members_of(tar_set)[1]
        server.trouble = lambda path, before: Trouble(404)
        with pytest.raises(FormatError, match="a%20b/train") as caught:
            ds.members(3)
        assert "token" not in str(caught.value)
    with pytest.raises(UserError, match=r"a password found in the URL for host\.invalid"):
        shards.open("https://me:secret@host.invalid/set", split="train", cache=quick)


def test_packages_that_are_missing_are_named(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, extra in (("s3://bucket/set", "s3"), ("gs://bucket/set", "gcs")):
        with pytest.raises(
            UserError, match=rf"needs a package that is not installed: pip install 'segshards\[{extra}\]'"
        ):
            shards.open(url, split="train", cache=quick)
    with pytest.raises(UserError, match="expected a URL that fsspec knows"):
        shards.open("nonsense://a/b", split="train", cache=quick)


def test_urls_and_folders_are_told_apart(tmp_path):
    for url in ("https://h/a", "s3://b/c", "memory://x", "simplecache::s3://b/c"):
        assert as_place(url) == url
    for folder in ("data/x", "/data/x", "C:\\data", "a:b", "http:/x"):
        assert as_place(folder) == type(tmp_path)(folder)
