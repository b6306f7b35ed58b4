"""The k-nearest search: every backend against the definition, index for index, on inputs made to mislead it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from shards.errors import SettingsError, UserError
from tests.bench.search import resident
from tests.train import nearest_oracle as oracle
from train.neighbors import build_index, choice, contract, cpu_search, nearest, torch_search
from train.neighbors.torch_search import TorchIndex

Search = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def chunked(queries: torch.Tensor, table: torch.Tensor, k: int) -> torch.Tensor:
    """The torch path of other devices, in chunks of a row."""
    kind = torch.promote_types(table.dtype, torch.float32)
    return TorchIndex(table.detach().to(kind), 1).chunked(queries.detach(), k)


def faiss(queries: torch.Tensor, table: torch.Tensor, k: int) -> torch.Tensor:
    """The faiss backend, where FAISS is installed; in chunks of a few rows."""
    pytest.importorskip("faiss", reason="FAISS is not installed: its backend is not tested")
    return nearest(queries, table, k, "faiss", scratch_mb=0.002)


def compiled(queries: torch.Tensor, table: torch.Tensor, k: int) -> torch.Tensor:
    """The torch backend on the CPU."""
    return nearest(queries, table, k, "torch")


SEARCHES: list[Search] = [compiled, chunked, faiss]
per_search = pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)


def unit(seed: int, number: int, width: int) -> torch.Tensor:
    """Random unit vectors."""
    return F.normalize(torch.randn(number, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def check(search: Search, queries: torch.Tensor, table: torch.Tensor, k: int) -> None:
    """Compare a search with the definition."""
    ids = search(queries, table, k)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(queries), k)
    np.testing.assert_array_equal(ids.numpy(), oracle.nearest(queries, table, k))


@per_search
@given(case=oracle.hard_cases())
@settings(max_examples=150)
@example(case=(torch.zeros(1, 1), torch.zeros(3, 1), 3))
def test_every_index_is_the_definitions(search: Search, case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    check(search, *case)


@per_search
@given(case=oracle.hard_cases(most=900))
@settings(max_examples=30)
def test_every_index_is_the_definitions_in_large_tables(search: Search, case: tuple[Any, Any, int]) -> None:
    queries, table, k = case
    check(search, queries, table, min(k, 40))


@per_search
@pytest.mark.parametrize(
    ("classes", "width", "k"), [(1284, 12, 8), (257, 7, 1), (1284, 64, 5), (5000, 12, 64), (300, 3, 300)]
)
def test_large_tables(search: Search, classes: int, width: int, k: int) -> None:
    check(search, unit(0, 130, width), unit(1, classes, width), k)


@per_search
def test_ties_go_to_the_lower_class(search: Search) -> None:
    table = torch.tensor([[3.0, 0], [1, 0], [0, 1], [-1, 0], [1, 0], [0, 0.5]])
    assert search(torch.zeros(1, 2), table, 4).tolist() == [[5, 1, 2, 3]]
    same = torch.ones(400, 12)  # a table whose classes all coincide
    assert search(torch.zeros(2, 12), same, 3).tolist() == [[0, 1, 2]] * 2


@per_search
def test_float32_rounding_hides_nothing(search: Search) -> None:
    """A class that is nearer by less than float32 can tell at that offset is still first."""
    table = torch.full((40, 3), 4097.0)
    table[:, 0] += torch.arange(40.0)
    table[17, 0], table[30, 0] = 4097.0 + 2.0**-9, 4097.0 - 2.0**-9
    queries = torch.tensor([[4097.0 + 2.0**-10, 4097, 4097], [4097.0 - 2.0**-10, 4097, 4097]])
    check(search, queries, table, 3)
    assert search(queries, table, 3).tolist() == [[0, 17, 30], [0, 30, 17]]


@per_search
@pytest.mark.parametrize(("scale", "kind"), [(1e-22, torch.float32), (1e-30, torch.float32), (1e-160, torch.float64)])
def test_squares_that_underflow_hide_nothing(search: Search, scale: float, kind: torch.dtype) -> None:
    check(search, (unit(40, 9, 12).double() * scale).to(kind), (unit(41, 200, 12).double() * scale).to(kind), 5)


@per_search
def test_missing_values_come_last(search: Search) -> None:
    table = unit(2, 9, 5)
    table[4, 1] = torch.nan
    table[6, 0] = torch.inf
    queries = unit(3, 3, 5)
    queries[1, 2] = torch.nan
    ids = search(queries, table, 9)
    assert ids[1].tolist() == list(range(9))
    assert ids[0, -2:].tolist() == [6, 4]
    assert not {4, 6} & set(search(queries, table, 7)[2].tolist())


@per_search
def test_strided_and_learning_inputs(search: Search) -> None:
    pixels = unit(4, 12, 30).reshape(12, 5, 6).requires_grad_()
    table = unit(5, 40, 12).requires_grad_()
    rows = pixels.flatten(1).t()
    ids = search(rows, table, 4)
    assert not ids.requires_grad
    np.testing.assert_array_equal(ids.numpy(), oracle.nearest(rows, table, 4))
    assert pixels.grad is None


@per_search
def test_autocast_changes_nothing(search: Search) -> None:
    queries, table = unit(6, 60, 12), unit(7, 300, 12)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        check(search, queries, table, 8)


@per_search
def test_no_queries(search: Search) -> None:
    assert nearest(torch.zeros(0, 3), torch.zeros(4, 3), 2).shape == (0, 2)


def test_an_index_keeps_the_values_it_was_built_from() -> None:
    queries, table = unit(8, 50, 12), unit(9, 600, 12)
    expected = oracle.nearest(queries, table, 8)
    names = ["torch", "faiss"] if choice.installed("faiss") else ["torch"]
    indices = [build_index(table, name) for name in names]
    table += 1
    for index in indices:
        np.testing.assert_array_equal(index.nearest(queries, 8).numpy(), expected)
        assert (index.classes, index.width) == (600, 12)


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = []
    part = cpu_search._part
    monkeypatch.setattr(cpu_search, "_part", lambda *args: (spans.append(args[3:]), part(*args)))
    monkeypatch.setattr(cpu_search, "SPLIT", 1)
    monkeypatch.setattr(cpu_search, "BLOCK", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    check(compiled, unit(10, 101, 12), unit(11, 300, 12), 8)
    assert sorted(spans) == [(0, 33), (33, 67), (67, 101)]


def test_quick_rows_are_settled_without_float64() -> None:
    """The compiled kernel takes the slow way in few rows of ordinary data, in all rows of a table of twins."""
    queries, table = unit(12, 4000, 12).numpy(), unit(13, 1284, 12)
    slack = cpu_search._slack(12, np.finfo(np.float32))
    ids = np.empty((4000, 8), np.int64)

    def doubts(table: torch.Tensor, length: float = 1.0) -> int:
        made = cpu_search.prepare(table)
        return int(cpu_search._search(np.float32(length) * queries, made.rows, made.panel, made.group, slack, ids))

    assert doubts(table) < 40
    assert doubts(table, 0.3) < 400  # the origin is nearer than any class: padding must not be
    assert doubts(torch.cat([table, table])) == 4000


def test_rough_rows_are_settled_without_the_full_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other paths' bounds settle ordinary data: the full search sees almost no row."""
    rows = []
    search = contract.search
    monkeypatch.setattr(
        contract, "search", lambda queries, *args: (rows.append(len(queries)), search(queries, *args))[1]
    )
    exact = TorchIndex.search
    monkeypatch.setattr(
        TorchIndex, "search", lambda self, queries, k: (rows.append(len(queries)), exact(self, queries, k))[1]
    )
    queries, table = unit(14, 2000, 12), unit(15, 1284, 12)
    chunked(queries[:300], table, 8)
    if choice.installed("faiss"):
        faiss(queries, table, 8)
    chunked(queries[:300].double() + 1e7, table.double() + 1e7, 8)  # an offset costs nothing
    assert sum(rows) < 20


@given(case=oracle.hard_cases(most=50))
def test_classes_in_chunks(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_search, "CLASSES", 7)
        check(chunked, *case)


def test_classes_in_chunks_are_settled_by_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_search, "CLASSES", 100)
    monkeypatch.setattr(contract, "settle", lambda ids, *args: ids)
    check(chunked, unit(18, 50, 12), unit(19, 430, 12), 8)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation returned, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("twins", [False, True])
def test_scratch_is_bounded(twins: bool) -> None:
    """No tensor beyond the setting, also where every row needs the full search."""
    queries, table = unit(16, 3000, 4), unit(17, 2000, 4)
    if twins:
        table = table[:1].expand(2000, 4)
    with Largest() as largest:
        TorchIndex(table.contiguous(), 1 << 20).chunked(queries, 4)
    assert 1 << 16 < largest.bytes <= 1 << 20


def test_the_process_grows_by_little() -> None:
    """4,096 queries x 21,841 classes would be 358 MB."""
    growth = resident("torch", 21841, 4096)
    if growth == "not measured":
        pytest.skip("no /proc/self/clear_refs: memory is not measured on this system")
    assert float(growth) < 24


@pytest.mark.parametrize(
    ("queries", "table", "k", "backend", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "auto", "k = 5 nearest of 4 classes"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "torch", "k = 0"),
        (torch.zeros(2, 3), torch.zeros(4, 2), 1, "torch", r"queries \(2, 3\).*\[N, 2\]"),
        (torch.tensor(1.0), torch.zeros(4, 3), 1, "torch", r"queries \(\)"),
        (torch.zeros(2, 3).long(), torch.zeros(4, 3), 1, "torch", "int64"),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1, "torch", "at least one class"),
        (torch.zeros(2, 3), torch.zeros(4, 3).int(), 1, "torch", "int32"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 1, "annoy", "'annoy' is not known; expected one of auto, torch"),
        (torch.zeros(2, 3, device="meta"), torch.zeros(4, 3), 1, "torch", "one device"),
    ],
)
def test_what_does_not_fit_is_refused(queries: Any, table: Any, k: int, backend: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        nearest(queries, table, k, backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("backend", "says"), [("faiss", r"pip install segshards\[faiss\]"), ("triton", "triton")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, backend: str, says: str) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    for module in ("search", "kernel"):
        monkeypatch.delitem(sys.modules, f"train.neighbors.triton_{module}", raising=False)
    with pytest.raises(UserError, match=says):
        nearest(torch.zeros(2, 3), torch.zeros(4, 3), 1, backend)
    assert nearest(torch.zeros(2, 3), torch.zeros(4, 3), 1).tolist() == [[0], [0]]  # auto does without


def test_auto_chooses_by_device_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"cpu": {10: {"torch": 2.0, "faiss": 1.0}, 1000: {"torch": 1.0, "faiss": 2.0}}}
    monkeypatch.setattr(choice, "MEASURED", times)
    monkeypatch.setattr(choice, "installed", lambda name: True)
    assert [choice.choose("cpu", 99, classes, 12, 8) for classes in (1, 99, 101, 9999)] == [
        "faiss",
        "faiss",
        "torch",
        "torch",
    ]
    assert choice.choose("cuda", 1 << 20, 1284, 12, 8) == "triton"
    assert choice.choose("cuda", 1 << 20, 1284, 12, 33) == "torch"
    assert choice.choose("cuda", 1 << 20, 1284, 256, 8) == "torch"
    assert choice.choose("cuda", 100, 1284, 12, 8) == "torch"
    monkeypatch.setattr(choice, "installed", lambda name: False)
    assert choice.choose("cuda", 1 << 20, 1284, 12, 8) == "torch"
    assert choice.choose("cpu", 99, 10, 12, 8) == "torch"


def test_auto_on_this_machine() -> None:
    assert build_index(unit(20, 30, 4)).backend == "torch"  # the quickest at every size measured
