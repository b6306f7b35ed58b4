"""Timing for the benchmarks: rivals take turns in one process, and the medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def alternate(
    rivals: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each rival over some rounds; in a round each runs once, after one unmeasured call of all.

    Taking turns spreads whatever else the machine does over all rivals; `clock=time.process_time` counts CPU time,
    which waiting for a core does not lengthen.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for job in rivals.values():
        job()
    for _ in range(rounds):
        for name, job in rivals.items():
            begin = clock()
            job()
            seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def met(yes: bool) -> str:
    """A target's verdict, as reports have it."""
    return "met" if yes else "MISSED"
