"""Two seg-prep processes on one output folder: the second refuses, and a crash of the first frees the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.build import outdir
from shards import lock
from shards.errors import SettingsError
from shards.lock import take
from tests.fakes import fake_camvid
from tests.prep.builds import SegPrep, run_build, tree

OPTIONS = {"scales": "1,1/2", "shard_size": 60_000}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_camvid(tmp_path_factory.mktemp("raw") / "cv", {"val": 60}, size=(96, 128))


def arguments(root: Path, out: Path) -> list[str]:
    run = ["--scales", "1,1/2", "--shard-size", "0.06", "--workers", "1", "--quiet"]
    return ["camvid", "--root", str(root), "--out", str(out), *run]


def started(root: Path, out: Path, slow: bool = False) -> subprocess.Popen[str]:
    """A real seg-prep; a slow one takes a nap at every line of its journal."""
    nap = "from prep.build.journal import Journal as J; import time; a = J.append;"
    nap += "J.append = lambda self, line: (a(self, line), time.sleep(0.3))[0];"
    code = f"{nap if slow else ''}from prep.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments(root, out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_lines(out: Path, lines: int) -> None:
    journal, end = out / ".build" / "journal.jsonl", time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_the_second_refuses_and_a_killed_first_frees_the_folder(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    out = tmp_path / "out"
    first = started(root, out, slow=True)
    try:
        wait_for_lines(out, 3)
        first.send_signal(signal.SIGSTOP)  # it holds the lock however long it sleeps
        before = tree(out)
        second = started(root, out)
        _, err = second.communicate(timeout=120)
        assert (second.returncode, len(err.splitlines())) == (2, 1), err
        assert f"another seg-prep is building into {out}" in err
        assert "another --out" in err
        fresh = seg_prep.refused(*arguments(root, out), "--fresh")
        assert "another seg-prep" in fresh
        assert tree(out) == before
    finally:
        first.kill()
        first.communicate()
    assert (out / ".build" / "lock").exists()  # the file stays; the lock went with the process
    outcome = run_build("camvid", root, out, **OPTIONS)
    assert outcome.resumed >= 2
    run_build("camvid", root, tmp_path / "whole", **OPTIONS)
    assert tree(out) == tree(tmp_path / "whole")


def test_of_many_at_once_one_builds(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [started(root, out) for _ in range(3)]
    ends = [(process.communicate(timeout=240)[1], process.returncode) for process in processes]
    assert {code for _, code in ends} <= {0, 2}, ends
    assert any(code == 0 for _, code in ends), ends
    assert all("another seg-prep" in err and len(err.splitlines()) == 1 for err, code in ends if code == 2), ends
    run_build("camvid", root, tmp_path / "whole", **OPTIONS)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_prep: SegPrep, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    line = seg_prep.refused(*arguments(root, tmp_path / "out"))
    assert "lock" in line
    assert str(tmp_path / "out") in line  # which file system, and so what to do
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()


def at_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, before: Callable[[], None]) -> None:
    """Let something happen just before the next call of owner.name, once."""
    original, left = getattr(owner, name), [before]

    def hooked(*args: object, **options: object) -> object:
        while left:
            left.pop()()
        return original(*args, **options)

    monkeypatch.setattr(owner, name, hooked)


def test_nobody_gets_the_lock_while_a_finished_build_tidies_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each thing that is removed another process tries; its lock, once it gets one, is left alone."""
    out, refused, got = tmp_path / "out", [], list[int]()
    unlink, rmdir = Path.unlink, Path.rmdir

    def trying(call: Callable[..., None]) -> Callable[..., None]:
        def tried(path: Path, *args: object, **options: object) -> None:
            if path.is_relative_to(out):
                handle = take(out / ".build" / "lock")
                got.append(handle) if handle is not None else refused.append(path.name)
            call(path, *args, **options)

        return tried

    with outdir.locked(out) as build:
        for name in ("journal.jsonl", "zz"):
            (build / name).write_bytes(b"x")
        (build / "ready").mkdir()
        (out / "manifest.json").write_bytes(b"{}")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", trying(unlink))
            patch.setattr(Path, "rmdir", trying(rmdir))
            outdir.remove_held(build)
    assert refused == ["journal.jsonl", "zz", "lock"]
    (handle,) = got  # where the lock had gone and the folder had not
    assert [path.name for path in build.iterdir()] == ["lock"]
    assert os.path.samestat(os.fstat(handle), (build / "lock").stat())
    with pytest.raises(SettingsError, match="another seg-prep"), outdir.locked(out):
        pass
    os.close(handle)
    with outdir.locked(out):
        pass
    assert not build.exists()  # the set is finished: nothing was left to hold it for


def test_a_folder_that_goes_before_it_is_locked_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    at_call(monkeypatch, lock.os, "open", (out / ".build").rmdir)
    with pytest.raises(SettingsError, match="another seg-prep is building into"), outdir.locked(out):
        pass


def test_who_is_refused_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it made the folder that the other one then was first to lock."""
    out, held = tmp_path / "out", list[int | None]()
    at_call(monkeypatch, outdir, "take", lambda: held.append(take(out / ".build" / "lock")))
    with pytest.raises(SettingsError, match="another seg-prep is building into"), outdir.locked(out):
        pass
    (handle,) = held
    assert handle is not None
    assert os.path.samestat(os.fstat(handle), (out / ".build" / "lock").stat())
    os.close(handle)
