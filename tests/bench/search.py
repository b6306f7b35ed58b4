"""Time and memory of the k-nearest search: the torch backend against FAISS on the same threads.

    python -m tests.bench.search [--queries 262144] [--rounds 5] [--threads 1 --threads 2] [--clock cpu] [--device cpu]

Rivals take turns in one process: the torch backend, FAISS alone (`IndexFlatL2.search`: float32, ties as they fall) and
the faiss backend (the same, re-ranked to the contract). Queries and classes are random unit vectors, k = 8. On CUDA
(`--device cuda`) the triton backend runs too, and FAISS is the GPU index. `--clock cpu` counts processor time over all
threads, which other programs do not lengthen; it is fair for one thread (OpenMP's threads spin while they wait).
Then the growth of a process of its own during one search: what it held at its peak, less the result.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.bench.timing import alternate, markdown
from train.neighbors import BACKENDS, build_index

K = 8
SIZES = [(19, 12), (150, 12), (1284, 7), (1284, 12), (1284, 64), (21841, 12)]
FEWER = {21841: 16}  # a sixteenth of the queries, or a round takes minutes
RESIDENT = """
import re, sys
import torch
from tests.bench.search import K, points
from train.neighbors import build_index

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

backend, classes, queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
build_index(points(0, 64, 12), backend).nearest(points(1, 64, 12), K)  # compiled and imported
rows, table = points(1, queries, 12), points(0, classes, 12)
result = torch.ones(queries, K, dtype=torch.int64)
del result
open("/proc/self/clear_refs", "w").write("5")
before = peak()
ids = build_index(table, backend).nearest(rows, K)
print(peak() - before - ids.numel() * 8 / 2**20)
"""


def points(seed: int, number: int, width: int, device: str = "cpu") -> torch.Tensor:
    """Random unit vectors [number, width]."""
    return F.normalize(torch.randn(number, width, generator=torch.Generator().manual_seed(seed)), dim=1).to(device)


def rivals(queries: torch.Tensor, table: torch.Tensor, backends: list[str]) -> dict[str, Callable[[], object]]:
    """What takes turns: each backend with a ready index, and FAISS alone where it is installed."""
    wait = torch.cuda.synchronize if queries.is_cuda else lambda: None
    jobs: dict[str, Callable[[], object]] = {}
    for name in backends:
        index = build_index(table, name)
        jobs[name] = lambda index=index: (index.nearest(queries, K), wait())  # type: ignore[misc]
        if name == "faiss":
            raw, rows = index.searcher.index, queries if queries.is_cuda else queries.numpy()  # type: ignore[attr-defined]
            jobs["FAISS alone"] = lambda raw=raw, rows=rows: (raw.search(rows, K), wait())  # type: ignore[misc]
    return jobs


def speed(options: argparse.Namespace, threads: int, backends: list[str]) -> list[list[str]]:
    """A row of the table of times for each size."""
    rows = []
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for classes, width in SIZES:
        number, device = options.queries // FEWER.get(classes, 1), options.device
        jobs = rivals(points(1, number, width, device), points(0, classes, width, device), backends)
        seconds = alternate(jobs, options.rounds, clock)
        cells = [f"{seconds[name] / number * 1e9:.0f}" for name in jobs]
        ratios = [f"{seconds[name] / seconds['FAISS alone']:.2f}" for name in jobs if name != "FAISS alone"]
        rows.append([str(classes), str(width), str(threads), *cells, *(ratios if "FAISS alone" in jobs else [])])
        print("...", rows[-1], file=sys.stderr, flush=True)
    return rows


def resident(backend: str, classes: int, queries: int) -> str:
    """Peak growth of a process during one search, less the result, in MB."""
    if not Path("/proc/self/clear_refs").exists():
        return "not measured"
    command = [sys.executable, "-c", RESIDENT, backend, str(classes), str(queries)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{float(done.stdout):.1f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1 << 18)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--backend", action="append", choices=[name for name in BACKENDS if name != "auto"])
    options = parser.parse_args()
    backends = options.backend or (["torch", "faiss"] if options.device == "cpu" else ["torch", "faiss", "triton"])
    table = []
    for threads in options.threads or [1, 2]:
        torch.set_num_threads(threads)
        table += speed(options, threads, backends)
    names = [name for each in backends for name in ([each, "FAISS alone"] if each == "faiss" else [each])]
    header = ["classes", "d", "threads", *(f"{name}, ns a query" for name in names)]
    if "faiss" in backends:
        header += [f"{name} / FAISS alone" for name in backends]
    print(markdown(header, table), end="\n\n")
    if options.device == "cpu":
        memory = [[str(c), *(resident(name, c, 1 << 16) for name in backends)] for c in (19, 150, 1284, 21841)]
        print(
            markdown(
                ["classes (65,536 queries, d = 12)", *(f"{name}, MB beyond the result" for name in backends)], memory
            )
        )


if __name__ == "__main__":
    main()
