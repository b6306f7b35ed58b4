"""Attention maps and the loss under them, against a slow text of the paper with a bank of [C, M, K, d] vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.losses import attention
from train.losses.attention import Background, Memory, OneImage, attended_loss_sum, attention_maps, best_means
from train.losses.image_level import Pairs, pairs_of
from train.models.memory_bank import MemoryBank

CLASSES, DIM, SIZE, TOP = 6, 4, 2, 3
Found = dict[tuple[int, int], Tensor]


@dataclass
class Case:
    """Random cells, a table, labels, and a memory in which some classes are full."""

    cells: Tensor  # [B, N, d]
    table: Tensor  # [C, d]
    candidates: Tensor
    tags: Tensor
    memory: Tensor  # [C, M, K, d]
    full: Tensor  # bool [C]
    asked: Tensor  # bool [C]

    @property
    def pairs(self) -> Pairs:
        return pairs_of(self.tags, self.candidates, len(self.cells))

    @property
    def source(self) -> Memory:
        """The memory as the mean of each image's vectors."""
        bank = MemoryBank(list(range(CLASSES)), CLASSES, DIM, SIZE)
        bank.slots = bank.slots.double()
        for c in self.full.nonzero()[:, 0].tolist():
            bank.add(torch.full((SIZE,), c), self.memory[c].mean(1))
        bank.slots[self.full] = self.memory[self.full].mean(2)
        return Memory(bank.usable, lambda ids: bank.slots[ids].mean(1))


def case(seed: int, images: int = 3, cells: int = 8, labels: float = 0.3, full: float = 0.7, near: float = 0.0) -> Case:
    """`near`: how much the cells of all classes look alike, and like what the table and the memory say of them."""
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64) + near, dim=-1)

    def chosen(*shape: int, share: float) -> Tensor:
        return torch.rand(*shape, generator=g) < share

    tags = chosen(images, CLASSES, share=labels)
    candidates = (tags.any(0) | chosen(CLASSES, share=0.8)).nonzero()[:, 0]
    return Case(
        unit(images, cells, DIM),
        unit(CLASSES, DIM),
        candidates,
        tags.nonzero(),
        unit(CLASSES, SIZE, TOP, DIM),
        chosen(CLASSES, share=full),
        chosen(CLASSES, share=0.8),
    )


def cosine_map(cells: Tensor, vectors: Tensor) -> Tensor:
    """The mean cosine of each cell [N, d] to all of the vectors [n, d]: [N]."""
    return torch.stack([torch.stack([F.cosine_similarity(f, v, dim=0) for v in vectors]).mean() for f in cells])


def standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()


class Slow:
    """Equations 3 to 5 with the release's rules, a cell, a class and an image at a time."""

    def __init__(self, given: Case, background: Background | None, single: bool) -> None:
        self.given, self.background, self.single = given, background, single
        self.used: set[str] = set()

    def known(self, c: int) -> bool:
        return self.single or bool(self.given.full[c])

    def score(self, image: int, c: int) -> Tensor:
        """S of a class, [N]."""
        cells = self.given.cells[image]
        if not self.single:
            return cosine_map(cells, self.given.memory[c].flatten(0, 1))
        order = sorted(range(len(cells)), key=lambda n: -float(cells[n] @ self.given.table[c]))
        return cosine_map(cells, cells[order[:TOP]])

    def unnamed(self, image: int, labels: list[int], foreground: Tensor) -> list[Tensor]:
        """Scores of the classes that the classifier sees, and whose map is another one."""
        assert self.background is not None
        found = []
        for c in self.given.candidates.tolist():
            cosines = sorted((float(f @ self.given.table[c]) for f in self.given.cells[image]), reverse=True)
            best = cosines[: self.background.top]
            if c in labels or not self.known(c) or sum(best) / len(best) <= self.background.threshold:
                continue
            score = self.score(image, c)
            if float((standard(score) - standard(foreground)).square().mean()) > self.background.distance:
                found.append(score)
        return found

    def map(self, image: int, c: int, labels: list[int]) -> Tensor:
        foreground = self.score(image, c)
        difference = foreground
        if self.background is not None:
            others = [self.score(image, o) for o in labels if o != c and self.known(o)]
            kind = "named" if others else "unnamed"
            others = others or self.unnamed(image, labels, foreground)
            self.used.add(kind if others else "none")
            difference = foreground - (torch.stack(others).mean(0) if others else 1 - foreground)
        normed = (difference - difference.mean()) / (difference.var(unbiased=False) + 1e-5).sqrt()
        return torch.sigmoid(normed)

    def maps(self) -> Found:
        """A of the pairs that have one, by (image, class)."""
        tags = self.given.tags.tolist()
        return {
            (i, c): self.map(i, c, [o for j, o in tags if j == i])
            for i, c in tags
            if bool(self.given.asked[c]) and self.known(c)
        }

    def loss(self, cells: Tensor, table: Tensor, gains: Tensor, maps: Found, tau: float) -> Tensor:
        """Equation 5: scores of every cell and candidate times A / tau, averaged, and one softmax a pair."""
        total, candidates = cells.sum() * 0, self.given.candidates.tolist()
        for (i, c), weights in maps.items():
            others = {o for j, o in self.given.tags.tolist() if j == i} - {c}
            kept = [o for o in candidates if o not in others]
            scores = gains[i][:, None] * (cells[i] @ table[kept].t())  # [N, kept]
            scores = scores - 0.1 * scores.detach().mean(1, keepdim=True)  # what the standardised ones differ by
            pooled = (scores * weights[:, None] / tau).mean(0)
            total = total - pooled.log_softmax(0)[kept.index(c)]
        return total


def ours(given: Case, background: Background | None, single: bool) -> tuple[Tensor, Tensor]:
    source = OneImage(TOP) if single else given.source
    pairs = given.pairs
    asked = given.asked[pairs.classes]
    return attention_maps(
        given.cells, given.table[given.candidates], given.candidates, pairs, asked, source, background
    )


SETTINGS = st.one_of(
    st.none(),
    st.builds(Background, st.integers(1, 6), st.sampled_from([-1.0, 0.0, 0.35, 0.6]), st.sampled_from([0.5, 1.5, 2.0])),
)


@given(
    st.integers(0, 100_000), st.integers(1, 4), st.integers(3, 9), st.floats(0.1, 0.6), SETTINGS, st.booleans(),
    st.floats(0.2, 1), st.sampled_from([0.0, 0.4]),
)  # fmt: skip
def test_maps_loss_and_gradients_are_the_papers(
    seed: int,
    images: int,
    cells: int,
    labels: float,
    background: Background | None,
    single: bool,
    full: float,
    near: float,
) -> None:
    given = case(seed, images, cells, labels, full, near)
    slow = Slow(given, background, single)
    want = slow.maps()
    maps, which = ours(given, background, single)
    rows = [tuple(row) for row, kept in zip(given.tags.tolist(), which.tolist(), strict=True) if kept]
    assert rows == list(want)
    for row, found in zip(rows, maps, strict=True):
        torch.testing.assert_close(found, want[row], atol=1e-7, rtol=0)
    gains = torch.rand(images, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5
    inputs = [(v.clone().requires_grad_()) for v in (given.cells, given.table, gains)]
    naive = [(v.clone().requires_grad_()) for v in (given.cells, given.table, gains)]
    table = inputs[1][given.candidates]
    loss = attended_loss_sum(inputs[0], table, inputs[2], given.pairs.only(which), maps, 0.7)
    expected = slow.loss(naive[0], naive[1], naive[2], want, 0.7)
    torch.testing.assert_close(loss, expected, atol=1e-7, rtol=1e-7)
    loss.backward()
    expected.backward()
    for mine, theirs in zip(inputs, naive, strict=True):
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("single", [False, True])
def test_every_rule_for_the_background_is_met_and_followed(single: bool) -> None:
    used: set[str] = set()
    background = Background(3, 0.35, 2.0)
    for seed in range(40):
        given = case(seed, labels=0.25, full=0.8)
        slow = Slow(given, background, single)
        want = list(slow.maps().values())
        if want:
            torch.testing.assert_close(ours(given, background, single)[0], torch.stack(want), atol=1e-9, rtol=0)
        used |= slow.used
    assert used == {"named", "unnamed", "none"}


def test_a_first_look_in_bfloat16_misses_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds just below what a class scores, where rounding would lose it."""
    g = torch.Generator().manual_seed(0)
    cells, table = (F.normalize(torch.randn(n, 64, generator=g), dim=1) for n in (50, 400))
    source = OneImage(TOP)
    best = (table @ cells.t()).topk(5).values.mean(1)
    rounded = (table.bfloat16() @ cells.bfloat16().t()).float().topk(5).values.mean(1)
    lost = (best - rounded).argsort(descending=True)[:20].tolist()  # scores that rounding lowers most
    assert float((best - rounded)[lost[-1]]) > 1e-4
    for c in lost:
        found = []
        for quick in (False, True):
            monkeypatch.setattr(attention, "quick_bfloat16", lambda device, quick=quick: quick)
            settings = Background(5, float(best[c]) - 1e-6)
            look = attention._Look(cells[None], table, torch.arange(400), source, settings)
            assert look.sought.dtype == (torch.bfloat16 if quick else torch.float32)
            found.append(look._seen(cells).tolist())
        assert found[0] == found[1]
        assert c in found[0]
    monkeypatch.setattr(attention, "quick_bfloat16", lambda device: True)
    one = attention._Look(
        cells[None], table, torch.arange(400), source, Background(1, float((table @ cells.t()).max()) - 1e-6)
    )
    assert len(one._seen(cells)) == 1


@pytest.mark.parametrize("limits", [(1 << 22, 256), (8, 1), (16, 2)])
@pytest.mark.parametrize("single", [False, True])
def test_looking_in_chunks_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], single: bool
) -> None:
    given, background = case(11, images=6, labels=0.2, full=1.0), Background(3, 0.0, 1.0)
    whole = ours(given, background, single)
    monkeypatch.setattr(attention, "COSINES", limits[0])
    monkeypatch.setattr(attention, "MEANS", limits[1])
    torch.testing.assert_close(ours(given, background, single), whole)


def test_no_gradient_goes_through_the_maps() -> None:
    given = case(2)
    given.cells.requires_grad_()
    given.table.requires_grad_()
    maps, _ = ours(given, Background(), False)
    assert len(maps)
    assert not maps.requires_grad
    assert not best_means(given.cells, given.table[given.candidates], given.pairs, TOP).requires_grad


def two_halves(kind: Literal["named", "alone"]) -> tuple[Tensor, Tensor]:
    """An image whose first four cells are class 0 and last four class 1; A of class 0."""
    table = torch.eye(3)
    cells = torch.cat([table[:1].expand(4, 3), table[1:2].expand(4, 3)])[None]
    tags = torch.tensor([[0, 0], [0, 1]] if kind == "named" else [[0, 0]])
    pairs = pairs_of(tags, torch.arange(3), 1)
    source = Memory(lambda ids: torch.ones_like(ids, dtype=torch.bool), lambda ids: table[ids])
    asked = pairs.classes == 0
    return attention_maps(cells, table, torch.arange(3), pairs, asked, source, Background(distance=1.5))


@pytest.mark.parametrize("kind", ["named", "alone"])
def test_a_class_has_attention_where_it_is(kind: Literal["named", "alone"]) -> None:
    maps, which = two_halves(kind)
    assert which.tolist() == ([True, False] if kind == "named" else [True])
    high = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(maps, torch.tensor([[high] * 4 + [1 - high] * 4]), atol=1e-4, rtol=0)


@given(st.integers(0, 100_000), st.integers(1, 7), st.integers(1, 6))
def test_the_best_cells_of_a_pair_are_those_of_the_highest_cosine(seed: int, cells: int, top: int) -> None:
    given = case(seed, cells=cells)
    found = best_means(given.cells, given.table[given.candidates], given.pairs, top)
    assert len(found) == len(given.tags)
    for (image, c), mean in zip(given.tags.tolist(), found, strict=True):
        ordered = sorted(given.cells[image], key=lambda f: -float(f @ given.table[c]))
        torch.testing.assert_close(mean, torch.stack(ordered[:top]).mean(0))  # all cells, where there are fewer


def test_no_pair_at_all_is_fine() -> None:
    given = case(0, labels=0.0)
    maps, which = ours(given, Background(), False)
    assert (maps.shape, which.shape) == ((0, 8), (0,))
    cells = given.cells.clone().requires_grad_()
    gains = torch.ones(3, 8, dtype=torch.float64)
    loss = attended_loss_sum(cells, given.table[given.candidates], gains, given.pairs, maps)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert cells.grad is not None
    assert best_means(cells, given.table[given.candidates], given.pairs, 3).shape == (0, DIM)


def test_flat_maps_and_a_single_cell_are_finite() -> None:
    given = case(4, cells=1, full=1.0)
    for single in (False, True):
        maps, which = ours(given, Background(threshold=-1.0, distance=0.0), single)
        assert bool(which.any())
        torch.testing.assert_close(maps, torch.full_like(maps, 0.5))
    given.cells[:] = given.cells[:, :1]
    maps, _ = ours(given, Background(threshold=-1.0, distance=0.0), False)
    assert bool(maps.isfinite().all())


@pytest.mark.parametrize("form", ["slots", "running"])
def test_one_image_is_a_memory_of_one_that_is_filled_before_it_is_asked(form: Literal["slots", "running"]) -> None:
    """Where all labels are named, the paper's Table 5 by way of the memory itself."""
    given = case(8, images=1, labels=0.6)
    pairs, table = given.pairs, given.table[given.candidates]
    assert len(pairs.image) >= 2
    bank = MemoryBank(list(range(CLASSES)), CLASSES, DIM, 1, form=form)
    bank.add(pairs.classes, best_means(given.cells, table, pairs, TOP))
    every = torch.ones(len(pairs.image), dtype=torch.bool)
    arguments = (given.cells, table, given.candidates, pairs, every)
    through, _ = attention_maps(*arguments, Memory(bank.usable, bank.means), Background())
    alone, _ = attention_maps(*arguments, OneImage(TOP), Background())
    torch.testing.assert_close(through, alone, atol=1e-5, rtol=0)
