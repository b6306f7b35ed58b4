"""Runs one rival once, in the rival's own environment, and prints what it measured as one line of JSON.

    PYTHONPATH=. .bench/grain/bin/python -m tests.bench.loaders.runner '{"task": "read", "peer": "grain", ...}'

An epoch is read once, batch by batch; nothing is done with a batch but a checksum of some of its labels. The rate is
that between two batches at which all workers are busy: past the start, and before the last batches, which are ready or
under way by then (at the end a rate would count what was done before the clock started). The distance is a multiple of
six, since batches of two or three workers come in bursts. The first batch is timed from the start of the process.
"""

from __future__ import annotations

import time

STARTED = time.time()

import json  # noqa: E402 (the clock starts before anything is imported)
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from importlib import import_module, metadata  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from tests.bench.loaders.work import Job, label_sum  # noqa: E402

WARM_UP = 4  # batches before the clock of the rate starts, and at least as many after it has stopped
BURST = 6  # divisible by any number of workers that is tried
MARKS = (0.1, 0.5, 1.0)  # shares of the epoch at which memory is read
TOKEN = "RESULT "


def window(batches: int) -> tuple[int, int]:
    """After which batches (from 1) the clock of the rate starts and stops."""
    bursts = (batches - 2 * WARM_UP) // BURST
    return (WARM_UP, WARM_UP + bursts * BURST) if bursts > 0 else (1, batches)


def measure(batches: Iterable[Any], job: Job, total: int) -> dict[str, Any]:
    """Read an epoch and say how that went; `total` samples are expected.

    Returns:
        samples; checksum; first (seconds from the start of the process to the first batch); memory {share of the
        epoch: MB}; batch_mb (of one batch); and between the two ends of `window`: seconds, rate (samples/s) and
        cpu_ms (of all processes, for a sample).
    """
    found: dict[str, Any] = {"samples": 0, "checksum": 0.0, "memory": {}}
    marks, ends, seen = list(MARKS), window(-(-total // job.batch)), []
    for number, (images, labels) in enumerate(batches, 1):
        if number in ends:
            seen.append((time.perf_counter(), found["samples"] + len(images), cpu_seconds()))
        if number == 1:
            found["first"] = time.time() - (job.spawned or STARTED)
            found["batch_mb"] = (size_of(images) + size_of(labels)) / 1e6
        found["samples"] += len(images)
        found["checksum"] += label_sum(labels)
        if job.first:
            return found
        while marks and found["samples"] >= marks[0] * total:
            found["memory"][str(marks.pop(0))] = memory_mb()
    (begin, first, used), (end, last, used_then) = seen[0], seen[-1]
    found["seconds"] = end - begin
    if last > first:
        found["rate"] = (last - first) / found["seconds"]
        found["cpu_ms"] = 1000 * (used_then - used) / (last - first)
    return found


def size_of(value: Any) -> int:
    """Bytes of a batch's part: an array, a tensor, a list of bytes or a tuple of arrays."""
    if isinstance(value, list | tuple):
        return sum(len(part) if isinstance(part, bytes) else size_of(part) for part in value)
    return int(value.nbytes)


def memory_mb() -> float | None:
    """Memory of this process and those below it, shared pages counted once; None where /proc does not tell."""
    try:
        return sum(_pss(pid) for pid in _family(os.getpid())) / 1e6
    except OSError:
        return None


def cpu_seconds() -> float:
    """CPU time of this process and those below it; of this one alone where /proc does not tell of others."""
    try:
        return sum(_ticks(pid) for pid in _family(os.getpid())) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.process_time()


def _ticks(pid: int) -> int:
    """User and system time in clock ticks; 0 for a process that has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def _family(pid: int) -> list[int]:
    below = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [pid, *(one for child in below for one in _family(child))]


def _pss(pid: int) -> int:
    """Proportional set size in bytes; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions."""
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Do the job given as JSON in the first argument."""
    request = json.loads(sys.argv[1])
    total = request.pop("total", 0)
    job = Job(**request)
    peer = import_module(f"tests.bench.loaders.peer_{job.peer}")
    if job.task == "write":
        peer.write(job)
        found: dict[str, Any] = {}
    else:
        found = measure(peer.batches(job), job, total)
    found["versions"] = versions((*peer.DISTRIBUTIONS, "numpy", "torch"))
    print(TOKEN + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
