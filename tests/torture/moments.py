"""When a process kills itself. SIGKILL: no handler, no buffer, no clean-up runs after it.

A kill by the clock falls where time is spent, nearly always in encoding. Publishing takes milliseconds, so kills are
also counted in calls (of Python or C functions) and in calls that change the disk: before or after each of them.
"""

from __future__ import annotations

import io
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
        sys.setprofile(_Counter(moment))


def count_calls(kind: Kind) -> Any:
    """Count instead of dying; the returned object's `seen` is how many calls there have been."""
    counter = _Counter(Moment(kind, float("inf")))
    sys.setprofile(counter)
    return counter


class _Counter:
    """A profile function that counts calls. It counts returns too where a kill comes after a call."""

    def __init__(self, moment: Moment) -> None:
        self.moment, self.seen = moment, 0
        self._wanted = "c_return" if moment.kind == "disk" and moment.after else "c_call"

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.moment.kind == "disk":
            if event != self._wanted or not _changes_disk(argument):
                return
        elif event not in ("call", "c_call"):
            return
        self.seen += 1
        if self.seen >= self.moment.at:
            die()


def _changes_disk(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, io.FileIO | io.BufferedWriter | io.BufferedRandom):
        return function.__name__ in METHODS
    return getattr(owner, "__name__", "") in ("posix", "fcntl") and function.__name__ in SYSTEM
