"""When a process kills itself. SIGKILL: no handler, no buffer, no clean-up runs after it.

A kill by the clock falls where time is spent, nearly always in encoding. Publishing takes milliseconds, so kills are
also counted in calls (of Python or C functions) and in calls that change the disk: before or after each of them. All
threads count together: zarr writes from threads of its own.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

Kind = Literal["clock", "call", "disk"]

# C functions that change what lies on the disk: of the system's modules, and methods of files that are not in memory.
SYSTEM = frozenset(
    ("write", "fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "truncate", "ftruncate", "link")
)
METHODS = frozenset(("write", "truncate", "flush", "close"))
AWAY = b"killed in another thread than the main one\n"


@dataclass(frozen=True)
class Moment:
    """A moment to die at.

    Args:
        kind: clock: `at` seconds from now. call, disk: the `at`-th call (that changes the disk).
        at: seconds, or how many calls.
        after: the call has been made, and not only been reached.
    """

    kind: Kind
    at: float
    after: bool = False


def die() -> None:
    """What nobody can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: Moment) -> None:
    """Arm this process; from here on it dies at the moment, or ends before."""
    if moment.kind == "clock":
        threading.Thread(target=lambda: (time.sleep(moment.at), die()), daemon=True).start()
    else:
        _watch(_Counter(moment))


def count_calls(kind: Kind) -> _Counter:
    """Count instead of dying; the returned object's `seen` is how many calls there have been."""
    counter = _Counter(Moment(kind, float("inf")))
    _watch(counter)
    return counter


def stop_counting() -> None:
    """Let this thread, and those that it starts, go on unwatched."""
    _watch(None)


def _watch(counter: _Counter | None) -> None:
    """In this thread and in all that start later; a forked process has no others."""
    threading.setprofile(counter)
    sys.setprofile(counter)


class _Counter:
    """A profile function that counts calls. It counts returns too where a kill comes after a call.

    Attributes:
        seen: calls so far, of all threads: each takes a number of its own.
        elsewhere: of these, in other threads than the one that made this.
    """

    def __init__(self, moment: Moment) -> None:
        self.moment, self.seen, self.elsewhere = moment, 0, 0
        self._numbers, self._home = itertools.count(1), threading.get_ident()
        self._wanted = "c_return" if moment.kind == "disk" and moment.after else "c_call"

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.moment.kind == "disk":
            if event != self._wanted or not _changes_disk(argument):
                return
        elif event not in ("call", "c_call"):
            return
        number, away = next(self._numbers), threading.get_ident() != self._home  # no two threads get the same number
        self.seen = max(self.seen, number)
        self.elsewhere += away
        if number >= self.moment.at:
            if away:
                os.write(2, AWAY)
            die()


def _changes_disk(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, io.FileIO | io.BufferedWriter | io.BufferedRandom):
        return function.__name__ in METHODS
    return getattr(owner, "__name__", "") in ("posix", "fcntl") and function.__name__ in SYSTEM
