"""The memory of what classes look like, against rings that keep every vector."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shards.errors import SettingsError
from train.models.memory_bank import MemoryBank, occurrence

HELD = [1, 2, 5]
CLASSES = 6


def images(seed: int, count: int, top: int = 3, dim: int = 4) -> tuple[list[int], Tensor]:
    """Classes of `count` images, some without a place, and K unit vectors of each: float64 [U, K, d]."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=generator).tolist()
    return classes, F.normalize(torch.randn(count, top, dim, generator=generator, dtype=torch.float64), dim=2)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 30), st.lists(st.integers(0, 30), max_size=4))
def test_scores_are_mean_cosines_to_all_vectors_of_the_last_images(
    seed: int, size: int, count: int, cuts: list[int]
) -> None:
    classes, vectors = images(seed, count)
    rings: dict[int, deque[Tensor]] = {c: deque(maxlen=size) for c in HELD}
    for c, best in zip(classes, vectors, strict=True):
        if c in rings:
            rings[c].append(best)
    bank, means = MemoryBank(HELD, CLASSES, 4, size), vectors.mean(1)
    for part in torch.tensor_split(torch.arange(count), sorted(min(cut, count) for cut in cuts)):
        bank.add(torch.tensor(classes, dtype=torch.int64)[part], means[part])
    asked = torch.arange(CLASSES)
    assert bank.usable(asked).tolist() == [c in rings and len(rings[c]) == size for c in range(CLASSES)]
    cells = F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1)
    for c in asked[bank.usable(asked)].tolist():
        everything = torch.cat(list(rings[c]))  # [M K, d]
        want = torch.stack([F.cosine_similarity(cell[None], everything).mean() for cell in cells])
        got = cells @ bank.means(torch.tensor([c]))[0].double()
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 30))
def test_a_running_mean_is_the_plain_one_until_there_are_m_images(seed: int, size: int, count: int) -> None:
    classes, vectors = images(seed, count)
    seen: dict[int, list[Tensor]] = {c: [] for c in HELD}
    for c, best in zip(classes, vectors, strict=True):
        if c in seen:
            seen[c].append(best.mean(0))
    bank = MemoryBank(HELD, CLASSES, 4, size, form="running")
    bank.add(torch.tensor(classes, dtype=torch.int64), vectors.mean(1))
    for c, history in seen.items():
        assert bool(bank.usable(torch.tensor([c]))) is (len(history) >= size)
        if len(history) >= size:
            want = torch.stack(history[:size]).mean(0)
            for mean in history[size:]:
                want = (1 - 1 / size) * want + mean / size
            torch.testing.assert_close(bank.means(torch.tensor([c]))[0].double(), want, atol=1e-6, rtol=0)
    assert bank.slots.shape == (3, 1, 4)


def full(form: str = "slots", dtype: torch.dtype = torch.float32) -> MemoryBank:
    bank = MemoryBank(HELD, CLASSES, 4, 2, dtype, "running" if form == "running" else "slots")
    classes, vectors = images(3, 40)
    bank.add(torch.tensor(classes), vectors.mean(1))
    return bank


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_kept(broken: float) -> None:
    bank, before = full(), full()
    bank.add(torch.tensor([5, 1]), torch.tensor([[0.1, broken, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]))
    asked = torch.tensor([2, 5])
    torch.testing.assert_close(bank.means(asked), before.means(asked), atol=0, rtol=0)
    assert int(bank.count.sum()) == int(before.count.sum()) + 1


def test_a_class_without_a_place_is_never_usable_and_cannot_be_asked_for() -> None:
    bank = full()
    assert not bool(bank.usable(torch.tensor([0, 3, 4])).any())
    with pytest.raises(ValueError, match="without a place"):
        bank.means(torch.tensor([1, 3]))
    assert not bool(MemoryBank([], CLASSES, 4, 2).usable(torch.arange(CLASSES)).any())


@pytest.mark.parametrize("classes", [[2, 1], [1, 1], [1, 6], [-1, 2]])
def test_classes_that_are_not_ascending_or_not_there_are_refused(classes: list[int]) -> None:
    with pytest.raises(SettingsError, match="ascending, below 6"):
        MemoryBank(classes, CLASSES, 4, 2)


@pytest.mark.parametrize("form", ["slots", "running"])
def test_half_precision_is_stored_so_and_summed_in_single(form: str) -> None:
    half, single = full(form, torch.float16), full(form)
    asked = torch.tensor(HELD)
    assert (half.slots.dtype, half.means(asked).dtype) == (torch.float16, torch.float32)
    assert half.slots.nbytes * 2 == single.slots.nbytes
    torch.testing.assert_close(half.means(asked), single.means(asked), atol=1e-3, rtol=0)
    assert not torch.equal(half.means(asked), single.means(asked))


class Network(nn.Module):
    def __init__(self, bank: MemoryBank) -> None:
        super().__init__()
        self.layer, self.bank = nn.Linear(2, 2), bank


def test_contents_are_state_of_the_network_and_no_buffers(tmp_path: Path) -> None:
    """Buffers are copied each step by the loop, and broadcast before each forward pass over several processes."""
    network = Network(full())
    assert list(network.buffers()) == []
    torch.save(network.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {"bank.slots", "bank.count"} < set(state)
    again = Network(MemoryBank(HELD, CLASSES, 4, 2))
    again.load_state_dict(state)
    asked = torch.tensor(HELD)
    torch.testing.assert_close(again.bank.means(asked), network.bank.means(asked), atol=0, rtol=0)
    for bank in (again.bank, network.bank):  # the ring goes on where it stood
        bank.add(torch.tensor([2]), torch.ones(1, 4) / 2)
    torch.testing.assert_close(again.bank.slots, network.bank.slots, atol=0, rtol=0)


@pytest.mark.parametrize("other", [MemoryBank(HELD, CLASSES, 4, 3), MemoryBank(HELD, CLASSES, 4, 2, torch.float16)])
def test_a_memory_of_another_form_is_not_restored(other: MemoryBank) -> None:
    with pytest.raises(RuntimeError, match=r"bank\.slots: a memory of .* expected \[3, 2, 4\] torch.float32"):
        Network(full()).load_state_dict(Network(other).state_dict())
    state = Network(other).state_dict()
    del state["bank.count"]
    with pytest.raises(RuntimeError, match=r"bank\.count"):
        Network(MemoryBank(HELD, CLASSES, 4, 3)).load_state_dict(state)


def test_a_network_that_changes_its_type_or_device_keeps_the_memorys_type() -> None:
    network = Network(full()).half()
    assert (network.layer.weight.dtype, network.bank.slots.dtype) == (torch.float16, torch.float32)
    assert network.bank.count.dtype == torch.int64
    moved = network.to("meta")
    assert {moved.bank.slots.device.type, moved.bank.count.device.type, moved.bank.place.device.type} == {"meta"}


def test_21841_classes_take_what_the_module_says_and_nothing_until_they_are_seen() -> None:
    before = resident()
    bank = MemoryBank(range(21_841), 21_841, 768, 20)
    assert bank.bytes == pytest.approx(1.34e9, rel=0.01)
    assert MemoryBank(range(21_841), 21_841, 768, 20, torch.float16).bytes == pytest.approx(0.67e9, rel=0.01)
    assert MemoryBank(range(21_841), 21_841, 768, 20, form="running").bytes == pytest.approx(0.067e9, rel=0.01)
    bank.add(torch.tensor([7, 20_000]), torch.ones(2, 768))
    assert resident() - before < 50e6


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@given(st.lists(st.integers(0, 3), max_size=12))
def test_occurrence_counts_equal_values_before(values: list[int]) -> None:
    want = [values[:i].count(v) for i, v in enumerate(values)]
    assert occurrence(torch.tensor(values, dtype=torch.int64)).tolist() == want


def test_a_memory_prints_its_form() -> None:
    assert "classes=3, slots=2, dim=4" in str(full())
