"""The k nearest classes by definition, in NumPy, and inputs that quick searches get wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st


def nearest(queries: torch.Tensor, table: torch.Tensor, k: int) -> npt.NDArray[np.int64]:
    """ids [N, k]: squared distances in float64, dimension after dimension; ties by id, NaN last."""
    q, c = (values.detach().double().numpy() for values in (queries, table))
    with np.errstate(all="ignore"):
        total = np.zeros((len(q), len(c)))
        for j in range(q.shape[1]):
            total = total + (q[:, j, None] - c[None, :, j]) ** 2
    return np.argsort(total, axis=1, kind="stable")[:, :k]


@st.composite
def hard_cases(draw: Any, most: int = 60) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Queries, a table and k, with duplicated, nearly equal, far off, tiny, huge and missing values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, width, number = draw(st.integers(1, most)), draw(st.sampled_from([1, 2, 3, 4, 7, 12, 17])), 9
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    queries, table = rng.normal(size=(number, width)), rng.normal(size=(classes, width))
    kind = draw(st.sampled_from(["plain", "grid", "duplicates", "near", "on top", "shuffled"]))
    if kind == "grid":
        queries, table = np.rint(queries), np.rint(table)
    elif kind == "duplicates":
        table = table[rng.integers(0, max(1, classes // 3), classes)]
    elif kind == "near":  # neighbouring float32 values around few points
        table = table[rng.integers(0, max(1, classes // 4), classes)].astype(np.float32)
        table = np.nextafter(table, rng.choice([-9, 9], table.shape).astype(np.float32)).astype(float)
    elif kind == "on top":
        queries = table[rng.integers(0, classes, number)]
    elif kind == "shuffled":  # the same distances in real numbers, but not in every order of summing
        queries, table = np.zeros_like(queries), np.stack([rng.permutation(table[0]) for _ in range(classes)])
    scale = draw(st.sampled_from([1.0, 1.0, 1e-4, 1e-22, 1e18, 1e25]))
    shift = draw(st.sampled_from([0.0, 0.0, 1.0, 1e3, 1e7])) * scale
    queries, table = queries * scale + shift, table * scale + shift
    for values in (queries, table):
        if draw(st.booleans()) and draw(st.booleans()):
            values[rng.integers(len(values)), rng.integers(width)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    with np.errstate(over="ignore"):
        pair = [torch.from_numpy(values).to(draw(st.sampled_from(dtypes))) for values in (queries, table)]
    return pair[0], pair[1], draw(st.integers(1, classes))
