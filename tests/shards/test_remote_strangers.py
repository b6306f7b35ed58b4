"""Remote sets among strangers: answers that make no sense, addresses as people write them, secrets in them."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner

import shards
from shards import UserError
from shards.cli import command
from shards.store import open_store
from shards.verify import verify
from tests.shards.build import build, seal_anew
from tests.shards.remote import TAR, members_of
from tests.shards.server import Server, Trouble

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.mark.parametrize("status", [403, 500])
def test_verify_ends_where_nothing_can_be_fetched(server, quick, status):
    """That says nothing of the set, and each of its samples would be waited for."""
    server.trouble = lambda path, before: Trouble(status) if path.endswith(".tar") else None
    with pytest.raises(UserError, match=rf"\.tar: .*HTTP {status}"):
        list(verify(open_store(server.url, quick)))
    assert server.times(".tar") <= quick.retries + 1
    server.trouble = lambda path, before: Trouble(404) if path == TAR else None
    problems = list(verify(open_store(server.url, quick)))
    assert len(problems) == 3  # the file, and its two samples: a set that lacks a file is damaged
    assert all(problem.startswith(f"{server.url}/{TAR}") and "not found (HTTP 404" in problem for problem in problems)


@pytest.fixture
def answering():
    """A server that gives one answer, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(answer[0])

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/set", answer
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "answer",
    [
        "200 OK\r\nContent-Length: " + "9" * 5000,
        f"206 OK\r\nContent-Range: bytes {'0' * 5000}-9/9",
        "302 Found\r\nLocation: http://[",
        "302 Found\r\nLocation: http://\u00fc" + "a" * 80,
    ],
)
def test_answers_that_make_no_sense(answering, quick, answer):
    url, answers = answering
    answers.append(f"HTTP/1.1 {answer}\r\n\r\n".encode())
    with pytest.raises(
        UserError, match=r"^http://127[^ ]*/manifest.json: refused \(address or answer not understood: "
    ):
        shards.open(url, split="train", cache=quick)


def test_urls_as_people_write_them(tmp_path, quick, tar_set):
    shutil.copytree(tar_set, tmp_path / "\u00fc x")
    with Server(tmp_path) as server:
        ds = shards.open(f"{server.url}/\u00fc x?name=\u00fc&sign=a%2Fb", split="train", scale="1/2", cache=quick)
        assert ds.members(1) == members_of(tar_set)[1]
    with pytest.raises(UserError, match=r"^http://\[::1 is no URL \(Invalid IPv6 URL\): expected one such as"):
        shards.open("http://[::1?secret", split="train", cache=quick)


def test_no_message_holds_a_secret(server, quick, monkeypatch):
    monkeypatch.setenv("SEGSHARDS_CACHE", str(quick.folder))
    signed = f"{server.url}?token=secret"
    for words in (["verify", signed, "--quiet"], ["verify", signed], ["cat", signed, "--key", "none"]):
        done = CliRunner().invoke(command, words)
        assert "secret" not in f"{done.output}{done.exception}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"^ftp://me@127") as caught:
            shards.open(f"ftp://me:secret@127.0.0.1:{free.getsockname()[1]}/set", split="train", cache=quick)
    assert "secret" not in str(caught.value)


def test_a_store_of_another_layout_says_what_the_server_said(tmp_path, quick):
    """A refusal is no damage, whoever reads."""
    build(tmp_path, "zarr")
    for path in tmp_path.glob("train/1/*.zarr/*/*/zarr.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "attributes": {"by": "somebody else"}}))
    seal_anew(tmp_path)
    with Server(tmp_path) as server:
        ds = shards.open(server.url, split="train", cache=quick)
        server.trouble = lambda path, before: Trouble(403) if "/offsets/c/" in path or "/data/c/" in path else None
        with pytest.raises(UserError, match=r"refused \(HTTP 403"):
            ds.keys()
        server.trouble = lambda path, before: Trouble(403) if "/data/c/" in path else None
        with pytest.raises(UserError, match=r"refused \(HTTP 403"):
            ds.members(0)


def test_threads_that_wait_for_one_file_give_up_together(server, quick):
    """Each of them trying anew, one after the other, would take as many times as long to say the same."""
    server.trouble = lambda path, before: Trouble(stall=100) if path == TAR else None
    ds = shards.open(server.url, split="train", scale="1/2", cache=replace(quick, timeout=0.5, retries=1))
    ds.keys()
    start, said = threading.Barrier(5), []

    def read():
        start.wait()
        with pytest.raises(UserError, match=r"nothing came for 0\.5 s, after 2 tries") as caught:
            ds.members(2)
        said.append(str(caught.value))

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 5
    assert server.times(TAR) < 6  # two, but for a thread that came late; ten by themselves
    server.trouble = lambda path, before: None
    assert ds.members(2)  # whoever asks later tries anew
