"""The k nearest class embeddings of each pixel: exact, without gradient, one function, three backends.

    ids = nearest(queries, table, k=8)                   # int64 [N, 8], nearest first
    index = build_index(table, backend="faiss")          # kept for n steps where the table moves slowly
    ids = index.nearest(queries, k=8)

What "nearest" means is settled in train/neighbors/contract.py: squared distances in float64 on the given values, ties
to the lower class id, NaN last. All backends agree with it to the index; they differ in time and in what they need:

    torch    always there: numba on the CPU, chunked matrix products elsewhere
    faiss    a flat L2 index, on the GPU through torch tensors without host copies; `pip install segshards[faiss]`
    triton   a fused kernel on CUDA: distance and running top-k in registers; comes with torch on Linux
    auto     the quickest by train/neighbors/choice.py, whose table `python -m tests.bench.search` measures

Void rows are the caller's to drop before the search.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from shards.errors import SettingsError
from train.neighbors.choice import choose

Backend = Literal["auto", "torch", "faiss", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
SCRATCH_MB = 64.0  # what a chunk may hold; beyond it only the result and O(C d) for the table


class Searcher(Protocol):
    """A table made ready by one backend."""

    def __init__(self, table: Tensor, scratch: int) -> None:
        """Table [C, d] in float32 or float64; bytes that a chunk may hold."""

    def search(self, queries: Tensor, k: int) -> Tensor:
        """ids int64 [N, k] of queries [N, d] on the table's device; arguments are checked already."""


@dataclass(frozen=True)
class Index:
    """A class table made ready for search. It keeps the values of the moment it was built: rebuild it when the table
    moves (each step, or every n steps).

    Args:
        backend: the backend's name, never "auto".
        classes: C.
        width: d.
        device: where the table lies.
        searcher: the backend's own index.
    """

    backend: str
    classes: int
    width: int
    device: torch.device
    searcher: Searcher

    def nearest(self, queries: Tensor, k: int) -> Tensor:
        """ids int64 [N, k] of the k nearest classes of queries [N, d], any floating type; see `nearest`."""
        _check_queries(queries, self)
        check_k(k, self.classes)
        if len(queries) == 0:
            return torch.empty(0, k, dtype=torch.int64, device=queries.device)
        return self.searcher.search(queries.detach(), k)


def nearest(queries: Tensor, table: Tensor, k: int, backend: str = "auto", *, scratch_mb: float = SCRATCH_MB) -> Tensor:
    """The k nearest rows of `table` for each query.

    Args:
        queries: [N, d], any floating type, any length (not only unit vectors); may require grad, gets none.
        table: [C, d], any floating type, on the same device.
        k: 1 to C.
        backend: "auto", "torch", "faiss" or "triton".
        scratch_mb: megabytes that one chunk of the search may hold; the result does not depend on it.

    Returns:
        int64 [N, k], ascending by float64 distance, ties by class id. A query with NaN gets 0 to k - 1; a class with
        NaN comes after all others.

    Raises:
        SettingsError: shapes, types or devices that do not fit, k outside of 1 to C, an unknown backend.
        UserError: a backend whose package is not installed.
    """
    number = queries.shape[0] if queries.ndim else 0  # what is no matrix is refused by the index
    return build_index(table, backend, queries=number, k=k, scratch_mb=scratch_mb).nearest(queries, k)


def build_index(
    table: Tensor, backend: str = "auto", *, queries: int = 1 << 20, k: int = 8, scratch_mb: float = SCRATCH_MB
) -> Index:
    """Make a class table [C, d] ready for many searches.

    Args:
        table: [C, d], any floating type.
        backend: as in `nearest`.
        queries, k: the search to expect, for "auto"; any other works too.
        scratch_mb: as in `nearest`.

    Raises:
        SettingsError, UserError: as `nearest`.
    """
    _check_table(table)
    if backend not in BACKENDS:
        raise SettingsError(f"search backend {backend!r} is not known; expected one of {', '.join(BACKENDS)}")
    classes, width = table.shape
    name = choose(table.device.type, queries, classes, width, k) if backend == "auto" else backend
    scratch = max(1, int(scratch_mb * (1 << 20)))
    module = importlib.import_module(f"train.neighbors.{name}_search")  # faiss and triton only where asked for
    searcher: type[Searcher] = getattr(module, f"{name.capitalize()}Index")
    kind = torch.float64 if table.dtype == torch.float64 else torch.float32  # half types are subsets of float32
    values = table.detach().to(kind, copy=True)  # an optimiser may change the table in place
    return Index(name, classes, width, table.device, searcher(values, scratch))


def check_k(k: int, classes: int) -> None:
    """Refuse a k outside of 1 to C."""
    if not 1 <= k <= classes:
        raise SettingsError(f"k = {k} nearest of {classes} classes; expected 1 to {classes}")


def _check_table(table: Tensor) -> None:
    """Refuse what is no class table."""
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        found = f"{tuple(table.shape)} of {table.dtype}"
        raise SettingsError(f"class table {found}; expected floating [C, d] with at least one class and dimension")


def _check_queries(queries: Tensor, index: Index) -> None:
    """Refuse queries that do not fit the table."""
    if queries.ndim != 2 or queries.shape[1] != index.width or not queries.is_floating_point():
        found = f"{tuple(queries.shape)} of {queries.dtype}"
        raise SettingsError(f"queries {found}; expected floating [N, {index.width}] as the class table is")
    if queries.device != index.device:
        raise SettingsError(f"queries on {queries.device}, class table on {index.device}; expected one device")
