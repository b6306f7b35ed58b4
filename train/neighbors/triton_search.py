"""The triton backend: one fused CUDA kernel, distances and running top-k in registers; N x C is never written.

A program holds ROWS queries. It walks over the classes, BLOCK at a time, sums squared differences in float32 (no
matrix unit, so no TF32), and while any of its queries has a distance below its worst kept one, swaps one in per query.
It keeps k + 4 candidates. Then, still in the kernel, candidates get their float64 distance as
train/neighbors/contract.py says, are ordered by counting who comes before whom, and the row says whether float32 could
have hidden a neighbour; the few such rows go to the torch backend. The kernel is compiled without fused multiply-adds
(`enable_fp_fusion=False`), which would change the float64 bits.

float64 queries or tables go to the torch backend as a whole. Without CUDA the kernel runs only in triton's interpreter
(TRITON_INTERPRET=1), which is how it is tested here; its speed has not been measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shards.errors import UserError
from train.neighbors import contract
from train.neighbors.choice import TRITON_K, TRITON_WIDTH
from train.neighbors.torch_search import TorchIndex

try:
    import triton  # type: ignore[import-untyped,unused-ignore]

    from train.neighbors.triton_kernel import nearest_kernel
except ImportError as error:
    raise UserError("search backend triton: triton is not installed; it comes with torch on Linux") from error

WARPS = 4
# (queries a program, classes at a time) with up to 16 candidates and with more: of those tried, the ones whose compiled
# code for sm_90 leaves room for several programs at a time (80 and 154 registers a thread, none spilled).
TILES = {16: (32, 32), 64: (16, 64)}


class TritonIndex:
    """A class table made ready for the fused kernel.

    Args:
        table: [C, d], float32 or float64.
        scratch: bytes that one chunk of the torch backend may hold.
    """

    def __init__(self, table: Tensor, scratch: int) -> None:
        self.scratch = scratch
        self.exact = TorchIndex(table, scratch)
        self.columns = table.t().contiguous() if table.dtype == torch.float32 else None
        if not table.is_cuda and not _interpreted():
            raise UserError("search backend triton needs CUDA (or TRITON_INTERPRET=1 for tests); choose torch or faiss")

    def search(self, queries: Tensor, k: int) -> Tensor:
        """ids int64 [N, k]; k at most C."""
        width = queries.shape[1]
        if self.columns is None or queries.dtype == torch.float64 or k > TRITON_K or width > TRITON_WIDTH:
            return self.exact.search(queries, k)
        ids, settled = launch(queries.contiguous(), self.columns, k)
        rows = (~settled).nonzero()[:, 0]
        if len(rows):
            ids[rows] = self.exact.search(queries[rows], k)
        return ids


def launch(queries: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The kernel alone: ids int64 [N, k] and which rows are certain, bool [N].

    Args:
        queries: [N, d], contiguous, float32 or a half type.
        columns: float32 [d, C], contiguous.
        k: at most `TRITON_K` and C.
    """
    (number, width), classes = queries.shape, columns.shape[1]
    keep = min(k + contract.EXTRA, classes)
    ids = torch.zeros(number, k, dtype=torch.int64, device=queries.device)
    settled = torch.empty(number, dtype=torch.int8, device=queries.device)
    slots = triton.next_power_of_2(keep)
    rows, block = TILES[16 if slots <= 16 else 64]
    nearest_kernel[(triton.cdiv(number, rows),)](
        queries, columns, ids, settled, number, classes, classes, *_slack(width),
        D=width, K=k, KEEP=keep, SLOTS=slots, R=rows, B=block,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return ids, settled.bool()


def _slack(width: int) -> tuple[float, float]:
    """The (relative, absolute) error of the kernel's float32 distances: as in cpu_search, with room to spare."""
    return 4 * (width + 8) * 2.0**-24, 8 * (width + 1) * 2.0**-126


def _interpreted() -> bool:
    """Whether triton runs kernels on the CPU."""
    return bool(triton.knobs.runtime.interpret)
