"""Memory of a process that reads shards: flat over an epoch, and how much of it is not the batch itself.

    python -m tests.bench.loader_memory [--shards DIR] [--split train] [--scale 1] [--batch 16] [--threads 2]

After every tenth of an epoch: resident memory (Linux), of it what is the process's own (without pages of files), what
one batch of decoded samples holds, and the rest beyond that batch. Without --shards it makes the demo's set for the
moment; --epochs is 9 unless told. Flat: over the second half of the epochs the process's own memory is on average less
than a batch above that of the first half (the first epoch left out): it swings by what batches are on their way.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import shards
from tests.bench.demo_set import shards_or_demo
from tests.bench.timing import markdown, met

MB = 1e6


class Mark(NamedTuple):
    """What was found at a moment, in MB: the process's own memory, all of it beyond a batch, the batch."""

    epoch: int
    own: float
    beyond: float
    batch: float


def resident() -> dict[str, float]:
    """RssAnon and VmRSS of this process in MB."""
    text = Path("/proc/self/status").read_text()
    return {name: int(size) * 1024 / MB for name, size in re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB", text, re.M)}


def held(batch: list[shards.Sample]) -> float:
    """MB of decoded arrays."""
    arrays = [array for s in batch for array in (s.image, s.hard, s.instances) if array is not None]
    soft = [array for s in batch if s.soft for array in (s.soft.base, s.soft.ids, s.soft.weights, s.soft.cells)]
    return sum(array.nbytes for array in arrays + soft) / MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards")
    parser.add_argument("--split", default="train")
    parser.add_argument("--scale", default="1")
    for name, value in (("batch", 16), ("threads", 2), ("epochs", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with shards_or_demo(given.shards) as given.shards:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Read the epochs, print the table and the verdicts."""
    before = resident()["VmRSS"]
    dataset = shards.open(given.shards, given.split, given.scale)
    loader: shards.Loader[shards.Sample] = shards.Loader(dataset, batch=given.batch, threads=given.threads)
    rows, marks, every = [], list[Mark](), max(1, len(loader) // 10)
    for epoch in range(given.epochs):
        began = time.perf_counter()
        for number, batch in enumerate(loader.epoch(epoch), 1):
            if number % every == 0:
                now, own = resident(), held(batch)
                rate = number * given.batch / (time.perf_counter() - began)
                figures = (now["VmRSS"], now["RssAnon"], own, now["VmRSS"] - own)
                marks.append(Mark(epoch, now["RssAnon"], now["VmRSS"] - own, own))
                rows.append([f"{epoch}: {number * given.batch}", *(f"{x:.0f}" for x in figures), f"{rate:.0f}"])
    print(f"{dataset.folder} {given.split} at {given.scale}: {len(dataset)} samples; Python {sys.version.split()[0]}")
    print(f"{before:.0f} MB after the imports")
    print(markdown(["epoch: samples", "resident MB", "own MB", "batch MB", "beyond it MB", "samples/s"], rows))
    print(f"\n{verdict(marks)}")


def verdict(marks: list[Mark]) -> str:
    """What the marks say of the targets."""
    most, last = max(mark.beyond for mark in marks), marks[-1].epoch
    halves: tuple[list[float], list[float]] = ([], [])
    for mark in marks:
        if mark.epoch or not last:
            halves[mark.epoch > last / 2].append(mark.own)
    before, after = halves[0] or halves[1], halves[1] or halves[0]
    grown = statistics.mean(after) - statistics.mean(before)
    small = f"beyond a batch at most {most:.0f} MB (target under 300 MB: {met(most < 300)})"
    return f"{small}; from half to half {grown:+.0f} MB (target less than a batch: {met(grown < marks[-1].batch)})"


if __name__ == "__main__":
    main()
