"""A build in a process of its own, forked from one that has everything loaded: a trial costs no start-up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prep.build import worker
from tests.prep.builds import run_build
from tests.torture.moments import AWAY, Kind, Moment, count_calls, die_at, stop_counting
from tests.torture.sabotage import SABOTAGE

FAILED = 3  # exit code of a build that ended with an error
PATIENCE = 120  # seconds for a build; one that hangs ends as if by SIGALRM


@dataclass(frozen=True)
class Job:
    """What is built.

    Args:
        root: a fake CamVid.
        options: of `run_build`.
        sabotage: how the build is broken, or None.
    """

    root: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    sabotage: str | None = None

    def __call__(self, out: Path) -> int:
        """Build in this process; returns how many chunks the journal had."""
        if self.options.get("workers", 1) > 1:  # else a build as small as this one starts none
            worker.WORTH_SECONDS = 0.0
            worker.any_ready = bool
        state = run_build("camvid", self.root, out, **self.options).state
        return state.chunks if state else 0


def run(job: Job, out: Path, log: Path, moment: Moment | None = None) -> int:
    """Build in a forked process that dies at `moment`; its exit code, -9 where it was killed. Errors go to `log`."""

    def work() -> None:
        if job.sabotage:
            SABOTAGE[job.sabotage]()
        if moment:
            die_at(moment)
        job(out)

    return _forked(work, log)


def killed_away(log: Path) -> bool:
    """Whether the build that wrote this log was killed in another thread than the main one."""
    return AWAY in log.read_bytes()


def length_of(job: Job, out: Path, log: Path, kind: Kind) -> tuple[float, int]:
    """How long an undisturbed build takes: (seconds, or calls (that change the disk), of these in other threads)."""
    report = log.with_suffix(".length")

    def work() -> None:
        counter, began = count_calls(kind) if kind != "clock" else None, time.monotonic()
        job(out)
        stop_counting()
        found = (counter.seen, counter.elsewhere) if counter else (time.monotonic() - began, 0)
        report.write_text(" ".join(map(str, found)))

    if _forked(work, log):
        raise RuntimeError(f"an undisturbed build failed: {log.read_text()}")
    length, elsewhere = report.read_text().split()
    return float(length), int(elsewhere)


def _forked(work: Callable[[], None], log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            signal.alarm(PATIENCE)
            work()
            code = 0
        except BaseException as error:
            stop_counting()
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
