"""What a mixture's step minimises, by scores of every pixel; and a memory that no number of ranks changes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.classes import ClassTable
from tests.train.test_image_level import oracle, scores_of
from train.batch import Batch
from train.config import Loss, from_dict
from train.label_space import LabelSpace
from train.losses import build_loss
from train.losses.attention import Background, Memory, attended_loss_sum, attention_maps
from train.losses.auxiliary import LadderLoss
from train.losses.cosine import CosineLoss
from train.losses.image_level import pairs_of
from train.models.cosine import Cosined, gains
from train.models.ladder import Laddered
from train.models.memory_bank import MemoryBank
from train.objective_mixed import MixedObjective, build_mixed_objective, gathered, narrowed

CLASSES, DIM, STRIDE = 7, 5, 8
PIXELS, IMAGES, ANYTHING = 0, 1, 2  # sources


def space() -> LabelSpace:
    """Base classes 0 to 3; source 0 knows them, source 1 classes 2 to 6, source 2 all."""
    nothing = (None,) * CLASSES
    names, colours = tuple(f"c{i}" for i in range(CLASSES)), tuple((i, i, i) for i in range(CLASSES))
    classes = ClassTable(names, colours, nothing, nothing, nothing)
    every = np.arange(CLASSES)
    return LabelSpace(classes, every < 4, (every < 4, every >= 2, every >= 0))


def objective(bank: MemoryBank | None = None, **settings: Any) -> MixedObjective:
    loss = Loss.model_validate({"memory_size": 2, "memory_top": 3, **settings})
    return MixedObjective(CosineLoss(loss), loss, space(), bank)


def memory(size: int = 2, classes: list[int] | None = None) -> MemoryBank:
    return MemoryBank([4, 5, 6] if classes is None else classes, CLASSES, DIM, size)


def said(seed: int, images: int = 2, size: tuple[int, int] = (24, 30), standardised: bool = True) -> Cosined:
    """Output for images of `size`, padded to 32 x 32: 4 x 4 cells of stride 8, of which 3 x 4 are the image's."""
    g = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(images, DIM, 4, 4, generator=g), dim=1).requires_grad_()
    table = F.normalize(torch.randn(CLASSES, DIM, generator=g), dim=1).requires_grad_()
    return Cosined(features, table, torch.tensor(1.5, requires_grad=True), standardised, size, STRIDE)


def tagged(tags: list[list[int]], images: int = 2, source: int = IMAGES) -> Batch:
    rows = torch.tensor(tags, dtype=torch.int64).view(-1, 2)
    nothing = torch.zeros(images, 1, 0, 0)
    keys = tuple(map(str, range(images)))
    return Batch(torch.zeros(images, 3, 24, 30), nothing.int(), nothing, keys, source=source, tags=rows)


def labelled(seed: int, source: int = PIXELS, classes: int = 4, void: bool = True) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(classes, (2, 2, 3, 4), generator=g, dtype=torch.int32)
    weights = torch.rand(2, 2, 3, 4, generator=g)
    weights[:, 1] *= torch.rand(2, 3, 4, generator=g) < 0.5
    if void:
        weights[0, :, :2] = 0
        ids[weights == 0] = 65535
    return Batch(torch.zeros(2, 3, 24, 30), ids, weights, ("a", "b"), source=source)


TAGS = [[0, 2], [0, 5], [0, 6], [1, 5]]


def full_bank(seed: int = 9, classes: list[int] | None = None) -> MemoryBank:
    bank = memory(2, classes)
    ids = torch.tensor([4, 5, 6] if classes is None else classes).repeat(2)
    g = torch.Generator().manual_seed(seed)
    bank.add(ids, F.normalize(torch.randn(len(ids), DIM, generator=g), dim=1))
    return bank


def cells_of(output: Cosined) -> Tensor:
    return output.features[:, :, :3, :4].flatten(2).transpose(1, 2)  # [B, 12, d]


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("source", [IMAGES, ANYTHING])
def test_image_labels_cost_what_pooled_scores_over_the_sources_classes_do(source: int, standardised: bool) -> None:
    output, candidates = said(1, standardised=standardised), torch.arange(2 if source == IMAGES else 0, CLASSES)
    loss, logged = objective(image_weight=0.3)(output, tagged(TAGS, source=source))
    scores = scores_of(cells_of(output), output.table[candidates], output.gamma, standardised)
    want = oracle(scores, candidates, torch.tensor(TAGS))
    torch.testing.assert_close(loss, 0.3 * want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logged["cls"], want.detach(), atol=1e-3, rtol=1e-4)
    assert float(logged["aux"]) == 0.0
    assert not logged["cls"].requires_grad


@pytest.mark.parametrize("foreground", ["novel", "present"])
def test_attention_adds_its_loss_of_foreground_labels_whose_ring_is_full(foreground: str) -> None:
    output, bank = said(2), full_bank(classes=[2, 5, 6])
    bank.count[0 if foreground == "novel" else 1] -= 1  # class 2, or 5: one image short
    config = {"foreground": foreground, "attention_weight": 0.2, "image_weight": 0.5, "attention_tau": 0.8}
    loss, logged = objective(bank, **config)(output, tagged(TAGS))
    candidates, cells = torch.arange(2, CLASSES), cells_of(output)
    pairs, table = pairs_of(torch.tensor(TAGS), candidates, 2), output.table[candidates]
    asked = torch.tensor([False, True, True, True] if foreground == "novel" else [True, False, True, False])
    source = Memory(bank.usable, bank.means)
    maps, which = attention_maps(cells, table, candidates, pairs, asked, source, Background())
    assert which.tolist() == asked.tolist()
    steep = gains(cells.flatten(0, 1), table, output.gamma, True).view(2, 12)
    want = attended_loss_sum(cells, table, steep, pairs.only(which), maps, 0.8)
    torch.testing.assert_close(logged["aux"], want.detach())
    torch.testing.assert_close(loss, 0.5 * logged["cls"] + 0.2 * want)
    assert float(want.detach()) > 0


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"background": False}, {}),
        ({"background_threshold": -1.0, "background_distance": 0.1}, {}),
        ({"background_threshold": -1.0, "background_top": 1}, {"background_threshold": 0.99, "background_top": 1}),
    ],
)
def test_the_recipes_background_is_the_one_used(settings: dict[str, Any], other: dict[str, Any]) -> None:
    tags = [[0, 5], [1, 6]]
    one, two = (objective(full_bank(), **s)(said(3), tagged(tags))[1]["aux"] for s in (settings, other))
    assert float(one) != pytest.approx(float(two), abs=1e-6)


def test_one_image_needs_no_memory() -> None:
    aux = objective(attention="image")(said(1), tagged(TAGS))[1]["aux"]
    assert float(aux) > 0
    assert float(objective(attention="image", attention_weight=0)(said(1), tagged(TAGS))[1]["aux"]) == 0
    assert float(objective(attention="image", memory_top=1)(said(1), tagged(TAGS))[1]["aux"]) != float(aux)


def test_what_lies_in_the_padding_counts_nowhere() -> None:
    output, bank = said(4), full_bank()
    changed = output.features.detach().clone()
    changed[:, :, 3] = F.normalize(torch.ones(DIM), dim=0)[:, None]
    mixed = objective(bank)
    for batch in (tagged(TAGS),):
        before, seen = mixed(output, batch)[0], mixed.observed(0)
        after, again = mixed(output._replace(features=changed), batch)[0], mixed.observed(0)
        torch.testing.assert_close(before, after)
        torch.testing.assert_close(seen.vectors, again.vectors)


def test_masses_are_known_beforehand() -> None:
    batch = labelled(0)
    kind, mass = objective().mass(batch)
    assert (kind, mass.dtype) == ("pixel", torch.float64)
    assert float(mass) == pytest.approx(float(batch.weights.double().sum()))
    alone = batch.weights * ((batch.weights > 0).sum(1, keepdim=True) == 1)
    assert float(objective(multi_class_cells=False).mass(batch)[1]) == pytest.approx(float(alone.double().sum()))
    kind, mass = objective().mass(tagged(TAGS))
    assert (kind, mass.dtype, float(mass)) == ("image", torch.float64, 4.0)


def test_pixel_labels_cost_the_cosine_loss_over_the_sources_classes() -> None:
    batch, output = labelled(1), said(5)
    loss, logged = objective()(output, batch)
    scores = scores_of(cells_of(output), output.table[:4], output.gamma, True).log_softmax(2)  # [B, 12, 4]
    ids = torch.where(batch.weights > 0, batch.ids, 0).long().flatten(2)  # [B, K, 12]
    want = -(batch.weights.flatten(2) * scores.transpose(1, 2).gather(1, ids)).sum()
    torch.testing.assert_close(loss, want, atol=1e-4, rtol=1e-4)
    assert logged == {"seg": loss.detach()}
    everything = objective()(output, labelled(1, ANYTHING))[0]
    assert float(everything.detach()) > float(loss.detach()) + 0.1
    (gradient,) = torch.autograd.grad(loss, output.table)
    assert float(gradient[4:].abs().max()) == 0.0


def masked_oracle(logits: Tensor, batch: Batch, known: Tensor) -> Tensor:
    """Cross-entropy of dense logits with -inf for what is not known, a cell and slot at a time."""
    scores = logits.masked_fill(~known[:, None, None], -torch.inf).log_softmax(1)
    total = logits.sum() * 0
    for b, k, y, x in itertools.product(*map(range, batch.ids.shape)):
        weight = batch.weights[b, k, y, x]
        total = total - weight * scores[b, batch.ids[b, k, y, x], y, x] if weight > 0 else total
    return total


def test_dense_logits_of_unknown_classes_are_left_out_of_the_softmax() -> None:
    logits = torch.randn(2, CLASSES, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = Loss()
    mixed = MixedObjective(build_loss(loss), loss, space(), None)
    for source, known in enumerate(space().known):
        batch = labelled(2, source)
        batch.ids[batch.weights > 0] = batch.ids[batch.weights > 0] % 2 + 2  # classes 2 and 3: known to all
        got, want = mixed(logits, batch)[0], masked_oracle(logits, batch, torch.from_numpy(known))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(cost, logits)[0] for cost in (got, want)))


def test_a_ladders_auxiliary_logits_are_narrowed_too() -> None:
    g = torch.Generator().manual_seed(3)
    shapes = [(4, 8), (2, 4), (1, 2)]
    logits, step, pool = (torch.randn(2, CLASSES, *shape, generator=g) for shape in shapes)
    ids = torch.randint(4, (2, 1, 4, 8), generator=g)
    batch = Batch(torch.zeros(2, 3, 4, 8), ids, torch.ones(2, 1, 4, 8), ("a", "b"))
    loss = Loss()
    ladder = LadderLoss(build_loss(loss), [2], 2, 0.4)
    got = MixedObjective(ladder, loss, space(), None)(Laddered(logits, (step,), (pool,)), batch)[0]
    want = ladder(Laddered(logits[:, :4], (step[:, :4],), (pool[:, :4],)), ids, batch.weights)[0]
    torch.testing.assert_close(got, want)
    whole = Laddered(logits, (step,), (pool,))
    assert narrowed(whole, ids, batch.weights, torch.ones(CLASSES, dtype=torch.bool))[0] is whole


def test_sampled_candidates_are_the_labels_and_so_many_others_of_the_source() -> None:
    output, seen = said(6), set()
    mixed = objective(sampled_classes=1)
    for seed in range(12):
        torch.manual_seed(seed)
        (gradient,) = torch.autograd.grad(mixed(output, tagged([[0, 5], [1, 5]]))[0], output.table)
        used = tuple(gradient.abs().sum(1).nonzero()[:, 0].tolist())
        assert len(used) == 2
        assert 5 in used
        seen.add(used)
    assert seen == {(2, 5), (3, 5), (4, 5), (5, 6)}


@pytest.mark.parametrize("tags", [[], [[0, 4]], [[1, c] for c in range(2, CLASSES)]])
def test_images_without_labels_or_with_all_of_them_are_finite(tags: list[list[int]]) -> None:
    for bank in (None, memory(), full_bank()):
        output, mixed = said(7), objective(bank)
        loss, logged = mixed(output, tagged(tags))
        loss.backward()
        for value in (output.features, output.table, output.gamma):
            assert value.grad is not None
            assert bool(value.grad.isfinite().all())
        if len(tags) != 1:
            assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
        assert bool(torch.stack(list(logged.values())).isfinite().all())
        mixed.apply_updates(gathered([mixed.observed(0)], 1))


def test_half_precision_features_neither_overflow_nor_differ() -> None:
    output = said(8)
    half = output._replace(features=output.features.detach().half())
    one, two = (objective(full_bank())(value, tagged(TAGS))[0] for value in (output, half))
    with torch.autocast("cpu", torch.bfloat16):
        three = objective(full_bank())(output, tagged(TAGS))[0]
    torch.testing.assert_close(two, one, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(three, one, atol=0, rtol=0)


def test_a_batch_costs_what_its_images_cost_one_by_one() -> None:
    output, bank = said(11), full_bank()
    mixed = objective(bank)
    together = mixed(output, tagged(TAGS, source=ANYTHING))[0]
    parts = []
    for image in range(2):
        alone = output._replace(features=output.features[image : image + 1])
        tags = [[0, c] for i, c in TAGS if i == image]
        parts.append(mixed(alone, tagged(tags, images=1, source=ANYTHING))[0])
    torch.testing.assert_close(sum(parts), together)


def test_a_source_without_attention_has_none_and_leaves_nothing_behind() -> None:
    """Table 4: attention on one source of image labels and not on the other, by the recipe."""
    source = {"labels": "image", "name": "a"}
    mixture = {"sources": [{"name": "p"}, {**source, "attention": False}, {**source, "name": "b"}]}
    model, loss = {"arch": "linear", "encoder": "resnet18", "head": "cosine"}, {"memory_size": 2, "memory_top": 3}
    recipe = from_dict({"name": "x", "description": "x", "model": model, "loss": loss, "mixture": mixture})
    found = build_mixed_objective(recipe, space(), full_bank())
    for number, attentive in ((1, False), (2, True)):
        _, parts = found(said(3), tagged(TAGS, source=number))
        assert (float(parts["aux"]) > 0) == attentive
        assert (len(found.observed(0).classes) > 0) == attentive
        assert float(parts["cls"]) > 0
