"""What "auto" means: the quickest installed backend by measurement, per device type and number of classes.

`MEASURED` is copied from `python -m tests.bench.search --clock cpu --threads 1 --queries 32768` (one core of an AMD
EPYC with AVX-512, k = 8, d = 12; the order was the same with two threads). For a device without measurements the order
is the design's: the fused kernel where it fits, else torch.
"""

from __future__ import annotations

import importlib.util

MEASURED: dict[str, dict[int, dict[str, float]]] = {  # device -> classes -> backend -> nanoseconds a query
    "cpu": {
        19: {"torch": 330, "faiss": 1115},
        150: {"torch": 515, "faiss": 1828},
        1284: {"torch": 1110, "faiss": 3172},
        21841: {"torch": 8665, "faiss": 57336},
    },
}
TRITON_K = 32  # the fused kernel keeps its candidates in registers
TRITON_WIDTH = 128
FEW = 4096  # queries on CUDA; not measured


def choose(device: str, queries: int, classes: int, width: int, k: int) -> str:
    """The backend for a device type ("cpu", "cuda", ...), N queries, C classes of d = `width`, and k neighbours.

    The fused kernel is compiled at its first use, so that few queries in all are better off without it.
    """
    sizes = MEASURED.get(device)
    if sizes is not None:
        size = min(sizes, key=lambda measured: max(measured, classes) / min(measured, classes))
        times = {name: time for name, time in sizes[size].items() if name == "torch" or installed(name)}
        return min(times, key=lambda name: times[name])
    if device == "cuda" and queries >= FEW and k <= TRITON_K and width <= TRITON_WIDTH and installed("triton"):
        return "triton"
    return "torch"


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None
