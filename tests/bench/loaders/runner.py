"""Runs one rival once, in the rival's own environment, and prints what it measured as one line of JSON.

    PYTHONPATH=. .bench/grain/bin/python -m tests.bench.loaders.runner '{"task": "read", "peer": "grain", ...}'

An epoch is read once, batch by batch; nothing is done with a batch but a checksum of some of its labels. The rate
leaves out the first batches, and so the start of workers; the first batch is timed from the process's own start.
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

WARM_UP = 4  # batches before the clock of the rate starts
MARKS = (0.1, 0.5, 1.0)  # shares of the epoch at which memory is read
TOKEN = "RESULT "


def measure(batches: Iterable[Any], job: Job, total: int) -> dict[str, Any]:
    """Read an epoch and say how that went; `total` samples are expected.

    Returns:
        samples; seconds and rate (samples/s) after the warm-up; first (seconds from the start of the process to the
        first batch); checksum; memory {share of the epoch: MB}; batch_mb (of one batch).
    """
    begin = end = time.perf_counter()
    found: dict[str, Any] = {"samples": 0, "checksum": 0.0, "memory": {}}
    marks, from_sample = list(MARKS), 0
    for number, (images, labels) in enumerate(batches):
        if number == 0:
            found["first"] = time.time() - (job.spawned or STARTED)
            found["batch_mb"] = (size_of(images) + size_of(labels)) / 1e6
        found["samples"] += len(images)
        found["checksum"] += label_sum(labels)
        if job.first:
            return found
        while marks and found["samples"] >= marks[0] * total:
            found["memory"][str(marks.pop(0))] = memory_mb()
        end = time.perf_counter()
        if number == WARM_UP - 1:
            begin, from_sample = end, found["samples"]
    counted = found["samples"] - from_sample
    found["seconds"] = end - begin
    found["rate"] = counted / found["seconds"] if counted else 0.0
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
    if not job.first:
        found["versions"] = versions((*peer.DISTRIBUTIONS, "numpy", "torch"))
    print(TOKEN + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
