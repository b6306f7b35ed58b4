"""Memory of a process that reads shards: flat over an epoch, and how much of it is not the batch itself.

    python -m tests.bench.loader_memory --shards DIR [--split train] [--scale 1] [--batch 16] [--threads 2] [--epochs 2]

After every tenth of an epoch: resident memory (Linux), of it what is the process's own (without pages of files), what
one batch of decoded samples holds, and the rest beyond that batch.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import shards
from tests.bench.timing import markdown

MB = 1e6


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
    parser.add_argument("--shards", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--scale", default="1")
    for name, value in (("batch", 16), ("threads", 2), ("epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    before = resident()["VmRSS"]
    dataset = shards.open(given.shards, given.split, given.scale)
    loader: shards.Loader[shards.Sample] = shards.Loader(dataset, batch=given.batch, threads=given.threads)
    rows, every = [], max(1, len(loader) // 10)
    for epoch in range(given.epochs):
        began = time.perf_counter()
        for number, batch in enumerate(loader.epoch(epoch), 1):
            if number % every == 0:
                now, own = resident(), held(batch)
                rate = number * given.batch / (time.perf_counter() - began)
                figures = (now["VmRSS"], now["RssAnon"], own, now["VmRSS"] - own)
                rows.append([f"{epoch}: {number * given.batch}", *(f"{x:.0f}" for x in figures), f"{rate:.0f}"])
    print(f"{dataset.folder} {given.split} at {given.scale}: {len(dataset)} samples; Python {sys.version.split()[0]}")
    print(f"{before:.0f} MB after the imports")
    print(markdown(["epoch: samples", "resident MB", "own MB", "batch MB", "beyond it MB", "samples/s"], rows))


if __name__ == "__main__":
    main()
