"""Ctrl-C at awkward moments, and pressed more than once."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path

import click
import pytest

from prep.build import worker
from shards import terminal
from tests.fakes import fake_camvid
from tests.prep.builds import run_build


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_pressed_again_it_waits_until_the_workers_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Python takes the thread that ends them for ended already, and hangs for ever when it exits."""
    ended: list[int] = []

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, call: Callable[..., object], *_: object) -> Future[object]:
            if call is not os.getpid:
                press()
            return Future()

        def shutdown(self, **_: object) -> None:
            press()
            press()
            ended.append(1)

    monkeypatch.setattr(worker, "ProcessPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        run_build("camvid", fake_camvid(tmp_path / "cv", {"val": 40}), tmp_path / "out", workers=2)
    assert ended == [1]


def stop_in_an_archive() -> None:
    """The archive, closed while a member is open, raises a ValueError."""
    with zipfile.ZipFile(BytesIO(), "w") as archive:
        archive.open("member", "w")
        raise KeyboardInterrupt


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("callback", [stop_in_an_archive, stop])
def test_whatever_it_has_become_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], callback: Callable[[], None]
) -> None:
    handlers: list[object] = []
    monkeypatch.setattr(terminal.signal, "signal", lambda _, handler: handlers.append(handler))
    monkeypatch.setattr("sys.argv", ["seg-prep"])
    with pytest.raises(SystemExit) as end:
        terminal.main_of(click.Command("seg-prep", callback=callback))()
    assert end.value.code == 1
    assert capsys.readouterr().err.strip() == "stopped; run the same command again to go on"
    assert handlers == [signal.SIG_DFL]  # pressed again it says no more


def test_an_error_of_its_own_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("sys.argv", ["seg-prep"])
    with pytest.raises(ValueError, match="a bug"):
        terminal.main_of(click.Command("seg-prep", callback=fail))()
