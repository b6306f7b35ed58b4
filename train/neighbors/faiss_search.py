"""The FAISS backend: a flat L2 index, on CUDA the GPU index fed with torch tensors (no host copies).

FAISS works in float32 with |q|^2 - 2qc + |c|^2 and breaks ties as it likes. So queries and table are centred on the
table's mean, a few more neighbours than k are asked for, and train/neighbors/contract.py re-ranks them; rows whose
rounding could hide a neighbour (and those where FAISS returns fewer, for NaN or overflow) go to the torch backend.

FAISS is optional and imported at the first index. Its GPU handle keeps cuBLAS from TF32, unless the environment's
NVIDIA_TF32_OVERRIDE forces it: the bound follows.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shards.errors import UserError
from train.neighbors import contract
from train.neighbors.torch_search import TorchIndex

MOST = 2048  # neighbours that the GPU index can return
UNDERFLOW = 2.0**-110  # what float32 may lose of a distance whose squares are subnormal
ROW_BYTES = 64  # scratch for a query and a candidate: FAISS's distances and ids, re-ranking in float64


class FaissIndex:
    """A class table in a flat FAISS index.

    Args:
        table: [C, d], float32 or float64.
        scratch: bytes that one chunk may hold.

    Raises:
        UserError: FAISS is not installed, or has no GPU support where the table lies on CUDA.
    """

    def __init__(self, table: Tensor, scratch: int) -> None:
        self.scratch = scratch
        self.faiss = _faiss()
        self.exact = TorchIndex(table, scratch)
        self.columns = self.exact.columns
        self.mean = self.columns.mean(1)
        centred = (self.columns.t() - self.mean).float().contiguous()
        self.longest = centred.double().square().sum(1).max().sqrt()
        self.index = self._gpu_index(centred) if table.is_cuda else self._cpu_index(centred)

    def search(self, queries: Tensor, k: int) -> Tensor:
        """ids int64 [N, k]; k at most C."""
        classes = self.columns.shape[1]
        m = min(k + contract.EXTRA, classes)
        if m > MOST:
            return self.exact.search(queries, k)
        rows = max(1, self.scratch // (ROW_BYTES * (m + self.columns.shape[0])))
        ids = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        settled = torch.empty(len(queries), dtype=torch.bool, device=queries.device)
        for low in range(0, len(queries), rows):
            part = slice(low, low + rows)
            block = contract.wide(queries[part])
            centred = block - self.mean
            rough, found = self._ask(centred.float().contiguous(), m)
            whole = (found >= 0).all(1)
            order, exact = contract.rerank(block, self.columns, found.clamp_min(0))
            ids[part] = order[:, :k]
            if m < classes:
                slack = _slack(len(self.columns)) * (centred.square().sum(1).sqrt() + self.longest).square()
                whole &= exact[:, k - 1] < rough.amax(1).double() - slack - UNDERFLOW
            settled[part] = whole
        rows_left = (~settled).nonzero()[:, 0]
        if len(rows_left):
            ids[rows_left] = self.exact.search(queries[rows_left], k)
        return ids

    def _ask(self, queries: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """FAISS's distances float32 [n, m] and ids int64 [n, m], -1 where it found none."""
        if queries.is_cuda:
            rough, found = self.index.search(queries, m)
            return rough, found
        self.faiss.omp_set_num_threads(torch.get_num_threads())
        values, ids = self.index.search(queries.numpy(), m)
        return torch.from_numpy(values), torch.from_numpy(ids)

    def _cpu_index(self, table: Tensor) -> Any:
        """A flat index in host memory."""
        index = self.faiss.IndexFlatL2(table.shape[1])
        index.add(table.numpy())
        return index

    def _gpu_index(self, table: Tensor) -> Any:
        """A flat index on the table's GPU, filled from the tensor itself."""
        if not hasattr(self.faiss, "GpuIndexFlatL2"):
            raise UserError("the installed FAISS has no GPU support; pip install segshards[faiss] or backend torch")
        importlib.import_module("faiss.contrib.torch_utils")  # lets indices take torch tensors
        self.resources = self.faiss.StandardGpuResources()
        self.resources.setTempMemory(self.scratch)  # its default takes 1.5 GB
        config = self.faiss.GpuIndexFlatConfig()
        config.device = table.device.index or 0
        index = self.faiss.GpuIndexFlatL2(self.resources, table.shape[1], config)
        index.add(table)
        return index


def _slack(width: int) -> float:
    """Bound on float32's error in FAISS's distances, in units of (|q| + |c|)^2, conversion and centring included."""
    unit = 2.0**-10 if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1" else 2.0**-24
    return (2 * width + 32) * unit


def _faiss() -> ModuleType:
    """The FAISS module.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError("search backend faiss: FAISS is not installed; pip install segshards[faiss]") from error
