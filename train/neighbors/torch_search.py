"""The torch backend: compiled rows on the CPU, chunks of a float64 matrix product and top-k on every other device.

On the CPU `torch.topk` over 1,284 columns alone costs more than FAISS's whole search, so the search is compiled by
numba there (train/neighbors/cpu_search.py). Elsewhere |q|^2 - 2qc + |c|^2 is taken in float64 around the table's
mean: TF32 and autocast cannot touch it, and its rounding is far below the gaps between neighbours. Candidates are
re-ranked by the contract; rows that its bound leaves open go through the full search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.neighbors import contract, cpu_search

CLASSES = 1 << 14  # classes at a time
UNDERFLOW = 2.0**-1000  # what float64 may lose of a distance whose squares are subnormal
PAIR_BYTES = 24  # scratch for a query and a class: the product and top-k's workspace


class TorchIndex:
    """A class table made ready for chunked search.

    Args:
        table: [C, d], float32 or float64.
        scratch: bytes that one chunk may hold.
    """

    def __init__(self, table: Tensor, scratch: int) -> None:
        self.scratch = scratch
        self.table = table
        self.cpu: dict[torch.dtype, cpu_search.CpuTable] = {}
        self.columns = contract.wide(table).t().contiguous()

    def search(self, queries: Tensor, k: int) -> Tensor:
        """ids int64 [N, k]; k at most C."""
        if self.table.device.type == "cpu" and k <= cpu_search.WIDEST:
            return cpu_search.search(queries, self._compiled(queries.dtype), k)
        return self.chunked(queries, k)

    def _compiled(self, dtype: torch.dtype) -> cpu_search.CpuTable:
        """The table for the compiled kernel, in a type that holds both it and the queries exactly; made once."""
        exact = torch.promote_types(dtype, self.table.dtype)
        if exact not in self.cpu:
            self.cpu[exact] = cpu_search.prepare(self.table.to(exact))
        return self.cpu[exact]

    def chunked(self, queries: Tensor, k: int) -> Tensor:
        """`search` by torch alone, for any device and any k."""
        mean = self.columns.mean(1, keepdim=True)
        columns = self.columns - mean
        squares = columns.square().sum(0)
        longest = squares.max().sqrt()
        rows = max(1, self.scratch // (PAIR_BYTES * min(CLASSES, columns.shape[1])))
        ids = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        settled = torch.empty(len(queries), dtype=torch.bool, device=queries.device)
        for low in range(0, len(queries), rows):
            part = slice(low, low + rows)
            block = contract.wide(queries[part])
            centred = block - mean[:, 0]
            length = centred.square().sum(1)
            found, edge = _candidates(centred, length, columns, squares, k + contract.EXTRA)
            order, exact = contract.rerank(block, self.columns, found)
            ids[part] = order[:, :k]
            slack = _slack(len(columns)) * (length.sqrt() + longest).square()
            settled[part] = exact[:, k - 1] < edge - slack - UNDERFLOW
            if found.shape[1] == columns.shape[1]:
                settled[part] = True  # every class was compared
        return contract.settle(ids, settled, queries, self.columns, self.scratch)


def _slack(width: int) -> float:
    """Bound on the error of the expanded square, in units of (|q| + |c|)^2: products, sums, centring, the contract."""
    return (8 * width + 64) * 2.0**-53


def _candidates(centred: Tensor, length: Tensor, columns: Tensor, squares: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m classes (or all) of least rough distance, int64 [n, m], and the largest distance kept, [n]."""
    best: Tensor | None = None
    ids: Tensor | None = None
    for low in range(0, columns.shape[1], CLASSES):
        part = slice(low, low + CLASSES)
        rough = torch.addmm(squares[part], centred, columns[:, part], alpha=-2)
        rough += length[:, None]
        values, found = rough.topk(min(m, rough.shape[1]), dim=1, largest=False)
        found += low
        if best is None or ids is None:
            best, ids = values, found
            continue
        values, found = torch.cat([best, values], 1), torch.cat([ids, found], 1)
        best, order = values.topk(min(m, values.shape[1]), dim=1, largest=False)
        ids = found.gather(1, order)
    assert best is not None
    assert ids is not None  # a table has at least one class
    return ids, best.amax(1)
