"""A new set's folder: whole or not there, whoever else wants the same name at whatever moment."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from shards import SettingsError
from shards.sets import newset
from shards.sets.newset import check_new, new_set


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(out: Path, content: str) -> None:
    with new_set(out) as folder:
        (folder / "set").write_text(content)


def test_a_set_is_there_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "new" / "out", "mine")
    assert names(tmp_path / "new") == ["out"]
    assert names(tmp_path / "new" / "out") == ["set"]
    with pytest.raises(SettingsError, match="is there already"):
        make(tmp_path / "new" / "out", "other")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "mine")
    assert names(tmp_path / "empty") == ["set"]


def test_links_are_followed_and_what_cannot_be_replaced_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder cannot be renamed to a link or a mount point: that must not show when all the work is done."""
    (tmp_path / "empty").mkdir()
    for name, target in {"link": "empty", "dangling": "there", "circle": "circle"}.items():
        (tmp_path / name).symlink_to(target)
    make(tmp_path / "link", "mine")
    make(tmp_path / "dangling", "mine")
    assert names(tmp_path) == ["circle", "dangling", "empty", "link", "there"]
    assert [names(tmp_path / name) for name in ("empty", "link", "there")] == [["set"]] * 3
    with pytest.raises(SettingsError, match="is a link in a circle: expected a new or empty folder"):
        check_new(tmp_path / "circle")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    with pytest.raises(SettingsError, match="is a mount point, which nothing can be renamed to: expected a new"):
        check_new(tmp_path / "volume")


@pytest.mark.parametrize("moment", ["sync", "replace before", "replace after", "sync_folder"])
def test_a_second_one_while_the_first_is_published(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step of publishing, another that wants the same name is refused, and nothing is emptied."""
    out, refused = tmp_path / "out", []
    replace, sync_tree, sync_folder = Path.replace, newset.sync_tree, newset.sync_folder

    def other() -> None:
        with pytest.raises(SettingsError, match=r"another seg-shards is making|is there already") as caught:
            make(out, "other")
        refused.append(str(caught.value))

    def replacing(self: Path, target: Path) -> None:
        if moment == "replace before":
            other()
        replace(self, target)
        if moment == "replace after":
            other()

    if moment == "sync":
        monkeypatch.setattr(newset, "sync_tree", lambda folder: (other(), sync_tree(folder)))
    elif moment == "sync_folder":
        monkeypatch.setattr(newset, "sync_folder", lambda folder: (other(), sync_folder(folder)))
    else:
        monkeypatch.setattr(Path, "replace", replacing)
    make(out, "mine")
    assert len(refused) == 1
    assert (out / "set").read_text() == "mine"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("first", ["publishes", "fails"])
@pytest.mark.parametrize("third", [False, True])
def test_a_lock_that_was_opened_before_it_was_removed_is_worth_nothing(
    tmp_path: Path, first: str, third: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, then another one ends and removes the file (and a third begins with a file of its own), then locked."""
    out, flock, asked = tmp_path / "out", fcntl.flock, []
    stack = ExitStack()

    def meanwhile() -> None:
        if first == "publishes":
            make(out, "first")
        else:
            with pytest.raises(KeyboardInterrupt), new_set(out):
                raise KeyboardInterrupt
        if third and first == "fails":
            (stack.enter_context(new_set(out)) / "set").write_text("third")

    def hooked(fd: int, how: int) -> None:
        asked.append(how)
        if len(asked) == 1:
            meanwhile()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", hooked)
    with stack:
        if first == "fails" and not third:
            make(out, "second")
        else:
            says = "is there already" if first == "publishes" else "another seg-shards is making"
            with pytest.raises(SettingsError, match=says):
                make(out, "second")
        if third and first == "fails":
            assert (tmp_path / ".out.partial" / "set").read_text() == "third"
    expected = {"publishes": "first", "fails": "third" if third else "second"}[first]
    assert (out / "set").read_text() == expected
    assert names(tmp_path) == ["out"]


def test_one_that_fails_touches_nothing_of_the_one_that_came_between(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def late() -> None:
        with new_set(out) as folder:
            (folder / "set").write_text("mine")
            out.mkdir()
            (out / "set").write_text("somebody's")

    with pytest.raises(SettingsError, match="is there already"):
        late()
    assert (out / "set").read_text() == "somebody's"
    assert names(tmp_path) == ["out"]


def test_processes_that_all_want_one_name(tmp_path: Path) -> None:
    """Of six at once one makes it, five are told so; what it holds is from one of them alone."""
    code = (
        "import sys, time; from pathlib import Path; from shards.sets.newset import new_set; from shards import "
        "SettingsError\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "try:\n"
        "    with new_set(Path(sys.argv[1])) as f:\n"
        "        for n in range(20): (f / f'{n}').write_text(sys.argv[3])\n"
        "except SettingsError: sys.exit(7)\n"
    )
    start = time.time() + 2
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out"), str(start), str(n)]) for n in range(6)
    ]
    ended = sorted(child.wait(60) for child in children)
    assert ended == [0, 7, 7, 7, 7, 7]
    assert len({path.read_text() for path in (tmp_path / "out").iterdir()}) == 1
    assert len(names(tmp_path / "out")) == 20
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("how", ["file", "link", "folder"])
def test_what_lies_where_the_folder_grows_goes(tmp_path: Path, how: str) -> None:
    partial, elsewhere = tmp_path / ".out.partial", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    if how == "file":
        partial.write_text("")
    elif how == "link":
        partial.symlink_to(elsewhere)
    else:
        (partial / "half").mkdir(parents=True)
        (tmp_path / ".out.lock").write_text("")
    make(tmp_path / "out", "mine")
    assert names(tmp_path) == ["elsewhere", "out"]
    assert names(tmp_path / "out") == ["set"]
    assert names(elsewhere) == ["kept"]


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SettingsError, match=r"cannot be locked \(No locks available\).*choose another --out"):
        make(tmp_path / "out", "mine")


def test_importing_needs_no_locks(tmp_path: Path) -> None:
    """As on Windows, where reading works."""
    code = (
        "import sys; sys.modules['fcntl'] = None; import shards.cli, shards.sets.cli, shards.cache, shards.sets.write"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from shards.sets.newset import new_set\n"
        "with new_set(Path(sys.argv[1])) as f: (f / 'half').write_text('x'); time.sleep(99)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")])
    end = time.monotonic() + 60
    while not (tmp_path / ".out.partial" / "half").exists() and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(SettingsError, match="another seg-shards is making"):
        make(tmp_path / "out", "mine")
    assert (tmp_path / ".out.partial" / "half").exists()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    make(tmp_path / "out", "mine")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["set"]
