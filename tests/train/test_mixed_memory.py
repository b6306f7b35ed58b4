"""The memory of a mixture's run: what it is told and when, on any number of ranks; networks with and without one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.conftest import recipe
from tests.train.test_objective_mixed import CLASSES, DIM, TAGS, cells_of, memory, objective, said, space, tagged
from train.checkpoint import Checkpoint
from train.config import Loss, Model, Recipe
from train.losses.cosine import CosineLoss
from train.models import build_model
from train.models.memory_bank import MemoryBank
from train.objective_mixed import Updates, build_mixed_objective, gathered, remembered
from train.start import Start, begin, check


def test_the_memory_learns_after_the_step_and_of_its_own_classes_alone() -> None:
    bank, output = memory(), said(9)
    mixed = objective(bank)
    first = mixed(output, tagged(TAGS))[0]
    torch.testing.assert_close(mixed(output, tagged(TAGS))[0], first, atol=0, rtol=0)
    updates = mixed.observed(3)
    assert updates.classes.tolist() == [5, 6, 5] * 2
    assert updates.places.tolist() == [3] * 6
    assert int(bank.count.sum()) == 0
    cells = cells_of(output)[0]
    best = (cells @ output.table[6]).topk(3).indices
    torch.testing.assert_close(updates.vectors[1], cells[best].mean(0).detach())
    mixed.apply_updates(updates)
    assert bank.count.tolist() == [0, 4, 2]
    assert len(mixed.observed(0).classes) == 0
    assert float(mixed(output, tagged(TAGS))[1]["aux"]) > 0
    assert objective().observed(0).classes.shape == (0,)


def test_micro_batches_in_any_order_of_arrival_are_remembered_by_their_places() -> None:
    outputs, batches = [said(seed) for seed in range(4)], [tagged(TAGS), tagged([[1, 4]]), tagged([]), tagged(TAGS)]
    whole, banks = [], []
    for order in ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)):
        bank = memory()
        mixed, updates = objective(bank), []
        for place in order:
            loss, _ = mixed(outputs[place], batches[place])
            updates.append((mixed.observed(place), float(loss.detach())))
        mixed.apply_updates(gathered([seen for seen, _ in updates], 1))
        banks.append(bank)
        whole.append(sum(loss for _, loss in updates))
    for bank in banks[1:]:
        torch.testing.assert_close(bank.slots, banks[0].slots, atol=0, rtol=0)
        assert bank.count.tolist() == banks[0].count.tolist()
    assert whole[1:] == pytest.approx([whole[0]] * 2)


class Ranks:
    """`torch.distributed.all_gather` between threads that stand for processes."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.sent, self.own = (
            size,
            threading.Barrier(size),
            [Tensor()] * size,
            threading.local(),
        )

    def all_gather(self, found: list[Tensor], tensor: Tensor) -> None:
        self.sent[self.own.rank] = tensor.clone()
        self.barrier.wait(20)
        for place, sent in zip(found, self.sent, strict=True):
            assert place.shape == sent.shape
            place.copy_(sent)
        self.barrier.wait(20)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def start(rank: int) -> Any:
            self.own.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(start, range(self.size)))


def trained(rank: int, size: int, sync: bool) -> MemoryBank:
    """Three steps of four micro-batches, which the ranks share out; in the second nobody sees a label."""
    bank = memory()
    mixed = objective(bank)
    for step in range(3):
        updates = []
        for place in range(rank, 4, size):
            if step != 1:
                mixed(said(4 * step + place), tagged([[1, 4]] if place == 2 else TAGS))
            updates.append(mixed.observed(place))
        mixed.apply_updates(gathered(updates, size if sync else 1))
    return bank


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_one_memory_or_have_their_own(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    alone = trained(0, 1, True)
    monkeypatch.setattr("torch.distributed.all_gather", (ranks := Ranks(size)).all_gather)
    for bank in ranks.run(lambda rank: trained(rank, size, True)):
        torch.testing.assert_close(bank.state_dict(), alone.state_dict(), atol=0, rtol=0)
    own = ranks.run(lambda rank: trained(rank, size, False))
    assert sum(bank.count for bank in own).tolist() == alone.count.tolist()
    assert not any(torch.equal(bank.slots, alone.slots) for bank in own)


def test_a_memory_goes_on_alike_on_another_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_gather", (ranks := Ranks(2)).all_gather)
    stored = ranks.run(lambda rank: trained(rank, 2, True))[0].state_dict()
    saved = {name: value.clone() for name, value in stored.items()}

    def on(size: int, rank: int = 0) -> MemoryBank:
        bank = memory()
        bank.load_state_dict(saved)
        mixed, updates = objective(bank), []
        for place in range(rank, 4, size):
            mixed(said(place + 50), tagged(TAGS))
            updates.append(mixed.observed(place))
        mixed.apply_updates(gathered(updates, size))
        return bank

    one, two = on(1), ranks.run(lambda rank: on(2, rank))
    for bank in two:
        torch.testing.assert_close(bank.state_dict(), one.state_dict(), atol=0, rtol=0)


def test_updates_of_several_micro_batches_are_joined() -> None:
    one = Updates(torch.tensor([4]), torch.ones(1, 2), torch.tensor([1]))
    two = Updates(torch.tensor([5, 6]), torch.zeros(2, 2), torch.tensor([0, 0]))
    both = gathered([one, two], 1)
    assert (both.classes.tolist(), both.places.tolist(), both.vectors[:, 0].tolist()) == (
        [4, 5, 6],
        [1, 0, 0],
        [1, 0, 0],
    )


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (1, 3)])
def test_ranks_gather_as_many_updates_as_there_are(monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]) -> None:
    monkeypatch.setattr("torch.distributed.all_gather", (ranks := Ranks(2)).all_gather)

    def work(rank: int) -> Updates:
        ids = torch.arange(counts[rank]) + 10 * rank
        return gathered([Updates(ids, ids[:, None].float().expand(-1, DIM), ids + 1)], 2)

    want = [*range(counts[0]), *range(10, 10 + counts[1])]
    for found in ranks.run(work):
        assert found.classes.tolist() == found.vectors[:, 0].tolist() == want
        assert found.places.tolist() == [n + 1 for n in want]
        assert found.vectors.shape == (len(want), DIM)


def mixture(labels: str = "image", **loss: Any) -> Recipe:
    sources = [{"name": "pixels"}, {"name": "tags", "labels": labels}]
    return recipe(model={"head": "cosine"}, loss={"memory_size": 2, **loss}, mixture={"sources": sources})


@pytest.mark.parametrize(
    ("found", "want"),
    [
        (mixture(), [4, 5, 6]),
        (mixture(foreground="present"), list(range(CLASSES))),
        (mixture(attention="image"), []),
        (mixture(attention_weight=0), []),
        (mixture(labels="pixel"), []),
        (recipe(), []),
    ],
)
def test_what_a_recipe_keeps_a_memory_of(found: Recipe, want: list[int]) -> None:
    assert remembered(found, space()) == want
    assert remembered(found, None) == []


def test_a_network_has_its_memory_and_one_without_reads_its_weights() -> None:
    config = Model.model_validate(
        {"arch": "linear", "encoder": "mobilenetv3_small_050", "output_stride": 8, "head": "cosine", "cosine_dim": 6}
    )
    loss = Loss.model_validate({"memory_size": 3, "memory_dtype": "float16", "memory_form": "running"})
    model = build_model(config, CLASSES, loss, [4, 5, 6])
    bank = model.bank
    assert isinstance(bank, MemoryBank)
    assert (bank.slots.shape, bank.slots.dtype, bank.size) == ((3, 1, 6), torch.float16, 3)
    mixed = build_mixed_objective(mixture(), space(), bank)
    assert mixed.bank[0] is bank
    assert isinstance(mixed.pixel, CosineLoss)
    slots = build_model(config, CLASSES, Loss(memory_size=3), [4]).bank
    assert isinstance(slots, MemoryBank)
    assert slots.slots.shape == (1, 3, 6)
    state = model.state_dict()
    without = build_model(config, CLASSES, loss)
    without.load_state_dict(state)
    assert without.bank is None
    assert not any(name.startswith("bank") for name in without.state_dict())
    assert "bank.slots" in state  # what the reader forgets is not taken from the state it was given


@pytest.mark.parametrize(("before", "after"), [([], [4, 5]), ([4, 5], []), ([4, 5], [4, 5]), ([4], [5, 6])])
def test_a_run_that_starts_from_another_begins_with_an_empty_memory(
    tmp_path: Path, before: list[int], after: list[int]
) -> None:
    config, classes = recipe(model={"head": "cosine", "cosine_dim": DIM}, loss={"memory_size": 1}), space().classes
    old, new = (build_model(config.model, CLASSES, config.loss, kept) for kept in (before, after))
    if before:
        assert isinstance(old.bank, MemoryBank)
        old.bank.add(torch.tensor(before), torch.ones(len(before), DIM))
    saved = Checkpoint(old.state_dict(), {}, 5, config.to_dict(), classes.to_dict(), classes.digest, [], {})
    start = Start(tmp_path, saved, "")
    check(start, config, classes)
    begin(new, start, config, classes)
    assert torch.equal(new.get_parameter("vectors.weight"), old.get_parameter("vectors.weight"))
    if after:
        assert isinstance(new.bank, MemoryBank)
        assert int(new.bank.count.sum()) == 0
