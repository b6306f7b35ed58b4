"""A child process in which cases are judged: its memory is capped, its time is watched, its death is a verdict."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tests.corpus.bases import Bases
from tests.corpus.case import Case
from tests.corpus.cases import corpus
from tests.corpus.judge import CRASHED, Judge, Verdict
from tests.corpus.peer import HUNG, Peer, PeerVerdict

HEADROOM = 1 << 30  # bytes of address space beyond what the child has once all is loaded
SECONDS = 20  # for one case; the longest honest one takes one
_STATE: dict[str, Any] = {}


class TooLongError(BaseException):
    """A case that hangs; nothing catches it."""


def start(folder: Path, headroom: int, peers: bool, check: bool) -> None:
    """The child's start: load what is needed, then shut the lid."""
    bases = Bases(folder)
    _STATE["cases"] = {case.name: case for case in corpus(bases)}
    _STATE["bases"], _STATE["judge"] = bases, Judge(bases, check)
    _STATE["peer"] = Peer(bases) if peers else None
    for base in ("jpeg", "png", "webp", "zarr"):
        sound = Case(f"sound/{base}", "sound", base, lambda _: None, harmless=True)
        assert not _STATE["judge"].judge(sound, bases[base]).faults
    signal.signal(signal.SIGALRM, _ring)
    limit = _status("VmSize") + headroom
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _ring(*_: object) -> None:
    raise TooLongError


def judged(name: str) -> tuple[Verdict, PeerVerdict | None, int]:
    """In the child: the verdicts on a case, and by how many bytes the most that it held grew."""
    case, bases = _STATE["cases"][name], _STATE["bases"]
    folder = bases.folder / f"case-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    case.make(bases, folder)
    Path("/proc/self/clear_refs").write_text("5")  # the most that was held starts anew
    before = _status("VmRSS")
    try:
        hung = Verdict(reader=CRASHED, faults=[f"took more than {SECONDS} s"])
        ours = _in_time(_STATE["judge"], case, folder, hung)
        grown = max(0, _status("VmHWM") - before)
        peer = _in_time(_STATE["peer"], case, folder, PeerVerdict(HUNG, HUNG)) if _STATE["peer"] else None
        return ours, peer, grown
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_time(judge: Any, case: Case, folder: Path, late: Any) -> Any:
    """A judge's verdict, or `late` where it takes too long."""
    signal.alarm(SECONDS)
    try:
        return judge.judge(case, folder)
    except TooLongError:
        return late
    finally:
        signal.alarm(0)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


class Guard:
    """Judges cases in a child, and starts another one where a case killed it."""

    def __init__(self, bases: Bases, peers: bool, check: bool = True) -> None:
        self._state = (bases.folder, HEADROOM, peers, check)
        self._pool: ProcessPoolExecutor | None = None

    def judge(self, case: Case) -> tuple[Verdict, PeerVerdict | None, int]:
        """The verdicts on a case, and the memory that it took."""
        self._pool = self._pool or self._started()
        try:
            return self._pool.submit(judged, case.name).result(timeout=3 * SECONDS)
        except BrokenProcessPool:
            said = "the process died"
        except TimeoutError:
            said = "the process hung and would not be woken"
            for process in list(self._pool._processes.values()):
                process.kill()
        self._pool.shutdown(wait=False)
        self._pool = None
        return Verdict(reader=CRASHED, faults=[said]), None, 0

    def close(self) -> None:
        """End the child."""
        if self._pool is not None:
            self._pool.shutdown()

    def _started(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=start, initargs=self._state)
        pool.submit(int).result()  # on a busy machine starting takes longer than any case may
        return pool
