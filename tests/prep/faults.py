"""Faults of the operating system, made up and real: what the tests of `test_faults` set a build up with."""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prep.build import journal
from shards import shardfile

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = ("fsync", "replace", "rename", "mkdir")  # of os, that change what is on disk or make it last
READ_ONLY, REMOUNT = 1, 32


class Counter:
    """Raises at the n-th call that writes; counts on where n is 0."""

    def __init__(self, at: int, code: int) -> None:
        self.at, self.code, self.calls = at, code, 0
        self._lock = threading.Lock()  # Zarr writes from threads

    def step(self, what: object = None) -> None:
        """One call that writes."""
        with self._lock:
            self.calls += 1
            mine = self.calls
        if mine == self.at:
            raise OSError(self.code, os.strerror(self.code), *([] if what is None else [str(what)]))


@contextmanager
def failing_at(at: int, code: int = errno.ENOSPC) -> Iterator[Counter]:
    """Let the `at`-th writing call of this process fail, whichever it is: write, open, fsync, rename or mkdir.

    A write that fails has written half of what it was given.
    """
    counter = Counter(at, code)

    class Faulty(FileIO):
        """A file whose writes may fail half-way."""

        def write(self, data: Any) -> int:
            try:
                counter.step()
            except OSError:
                super().write(bytes(data)[: len(data) // 2])
                raise
            return super().write(data) or 0

    with pytest.MonkeyPatch.context() as patch:
        for module in (shardfile, journal):
            if hasattr(module, "FileIO"):
                patch.setattr(module, "FileIO", Faulty)
        for name in CALLS:
            patch.setattr(os, name, _counted(getattr(os, name), counter))
        for module in (builtins, io):
            patch.setattr(module, "open", _opened(module, counter, Faulty))
        yield counter


def _counted(call: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        counter.step(args[0])
        return call(*args, **options)

    return wrapped


def _opened(module: ModuleType, counter: Counter, kind: type[FileIO]) -> Callable[..., Any]:
    """`open` that hands out faulty files where they are opened to write bytes."""
    original = module.open

    def wrapped(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa+"):
            return original(file, mode, *args, **options)
        counter.step(file)
        if "b" not in mode or isinstance(file, int):
            return original(file, mode, *args, **options)
        raw = kind(file, mode.replace("b", ""))
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    return wrapped


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A real file system of a few KB at `folder`; yields what mounts it anew with other options. Skips loudly."""
    folder.mkdir()
    if not sys.platform.startswith("linux") or _mount(folder, 0, f"size={size}"):
        pytest.skip("a small file system cannot be mounted here (needs root on Linux): full disks are only made up")

    def again(options: str) -> None:
        flags = REMOUNT | (READ_ONLY if options == "ro" else 0)
        assert not _mount(folder, flags, "" if options == "ro" else options)

    try:
        yield again
    finally:
        LIBC.umount2(str(folder).encode(), 2)  # 2: at once, whoever has files open there


def _mount(folder: Path, flags: int, options: str) -> int:
    return int(LIBC.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options.encode()))
