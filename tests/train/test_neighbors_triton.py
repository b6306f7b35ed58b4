"""The fused kernel without a GPU: run by triton's interpreter at tiny sizes, and compiled for one that is not here.

The interpreter needs a fresh process, because triton decides at import whether it interprets.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shards.errors import UserError
from train.neighbors import nearest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: its backend is not tested", allow_module_level=True)

INTERPRETED = """
import numpy as np
import torch
from hypothesis import given, settings
from tests.train import nearest_oracle as oracle
from tests.train.test_neighbors import unit
from train.neighbors import nearest
from train.neighbors.triton_search import launch

@given(case=oracle.hard_cases(most=40))
@settings(max_examples=15, deadline=None)
def hold(case):
    queries, table, k = case
    np.testing.assert_array_equal(nearest(queries, table, k, "triton").numpy(), oracle.nearest(*case))

def alone(number, classes, width, k, dtype=torch.float32):
    "The kernel itself, nothing settled elsewhere."
    queries, table = unit(number, number, width).to(dtype), unit(classes, classes, width)
    ids, settled = launch(queries, table.t().contiguous(), k)
    assert settled.all(), settled
    np.testing.assert_array_equal(ids.numpy(), oracle.nearest(queries, table, k))

hold()
alone(40, 150, 12, 8)
alone(33, 40, 7, 1, torch.bfloat16)
alone(5, 90, 3, 32)
alone(3, 6, 4, 6)
alone(2, 1, 1, 1)
queries, table = unit(0, 4, 12), unit(1, 30, 12)
queries[1, 3] = table[5, 2] = torch.nan
table[7] = table[20]
ids, settled = launch(queries, table.t().contiguous(), 20)
assert not settled[1]  # a row of NaN is left to the torch backend
twins = launch(table[[7]], table.t().contiguous(), 1)
assert twins[0].tolist() == [[7]] and twins[1].all()  # twins that are both kept need no second look
assert not launch(unit(2, 3, 4), torch.ones(4, 50), 2)[1].any()  # more twins than candidates do
"""


def test_the_kernel_agrees_with_the_definition(tmp_path: Path) -> None:
    variables = {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("tile", "k"), [(16, 8), pytest.param(64, 32, marks=pytest.mark.slow)])
def test_the_kernel_compiles_for_a_gpu_without_fused_float64(
    tile: int, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code for sm_90 is made without a GPU; a fused multiply-add would change the contract's bits."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from train.neighbors.triton_kernel import nearest_kernel
    from train.neighbors.triton_search import TILES, WARPS

    rows, block = TILES[tile]
    fixed = {"D": 12, "K": k, "KEEP": k + 4, "SLOTS": tile, "R": rows, "B": block}
    names = list(nearest_kernel.arg_names)
    kinds = dict.fromkeys(names, "i32") | {"queries": "*fp32", "columns": "*fp32", "out": "*i64", "settled": "*i8"}
    kinds |= {"relative": "fp32", "absolute": "fp32"} | dict.fromkeys(fixed, "constexpr")
    source = ASTSource(nearest_kernel, kinds, constexprs={(names.index(name),): value for name, value in fixed.items()})
    options = {"enable_fp_fusion": False, "num_warps": WARPS}
    code = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert code.asm["cubin"]
    assert re.search(r"mul\S*f64", code.asm["ptx"])
    assert not re.search(r"fma\S*f64|tf32", code.asm["ptx"])


def test_without_cuda_the_backend_says_so() -> None:
    with pytest.raises(UserError, match="search backend triton needs CUDA"):
        nearest(torch.ones(1, 2), torch.ones(3, 2), 1, "triton")
