"""Training with an embedding head: one step by hand, micro-batches, ranks, resuming, LVIS's candidates, bad input."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shards.classes import ClassTable
from shards.errors import SettingsError
from tests.train.conftest import recipe
from tests.train.shardset import CLASSES, Raw, scene, write
from tests.train.test_distributed import run_ranks
from tests.train.test_loop import equal, losses, stop_at, trainer, void_set, weights
from tests.train.test_stream import planes
from train import lvis, objective
from train.distributed import World
from train.inference import Views, predict
from train.loop import DivergedError
from train.models import Embedded, EmbeddingModel
from train.objective import EmbeddingLoss, margin_gradients
from train.runlog import read_log
from train.sources import open_sources
from train.stream import Stream

HEAD: dict[str, Any] = {"head": "embedding", "embedding_dim": 3, "freeze_norm": True, "dropout": 0.0}


def embedding(**sections: Any) -> Any:
    """A recipe with an embedding head; a wide margin, so that the regulariser always pulls."""
    model = {**HEAD, **sections.pop("model", {})}
    loss = {"k": 2, "margin": 2.0, **sections.pop("loss", {})}
    return recipe(model=model, loss=loss, **sections)


def dense_cost(pixels: Tensor, table: Tensor, shares: Tensor, tau: float, k: int | None, power: int) -> Tensor:
    """Mean cost a labelled pixel in float64, written out: pixels [N, d], table [C, d], shares [N, C]."""
    logits = -(torch.cdist(pixels, table, compute_mode="donot_use_mm_for_euclid_dist") ** power) / tau
    if k is not None:
        near = logits.detach().topk(k, dim=1).indices
        candidates = (shares > 0).scatter(1, near, True)
        logits = logits.masked_fill(~candidates, -1e30)
    return -(shares * logits.log_softmax(1)).sum() / shares.sum()


@pytest.mark.parametrize(
    ("mode", "k", "distance"), [("nearest", 2, "squared"), ("nearest", 2, "plain"), ("exact", None, "plain")]
)
def test_a_step_is_plain_sgd_on_the_mean_cost_and_the_margin(
    shard_set: Path, tmp_path: Path, mode: str, k: int | None, distance: str
) -> None:
    plain = {"lr": 0.05, "momentum": 0.0, "embedding_momentum": 0.0, "weight_decay": 0.0, "embedding_lr_scale": 3.0}
    config = embedding(
        loss={"mode": mode, "tau": 0.5, "margin_weight": 0.7, "distance": distance},
        optim=plain,
        loop={"steps": 1, "accumulate": 2},
    )
    made = trainer(shard_set, tmp_path / "run", config)
    model = made.model
    assert isinstance(model, EmbeddingModel)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    items = [made.stream.item(p) for p in range(4)]
    model.train()
    out = model(torch.stack([torch.from_numpy(item.image) for item in items]))
    shares = torch.zeros(len(items), 4, *out.pixels.shape[2:], dtype=torch.float64)
    for index, item in enumerate(items):
        ids, share = map(torch.from_numpy, planes(item.targets))
        shares[index].scatter_add_(0, ids.long(), share.double())
    x = out.pixels.double().permute(0, 2, 3, 1).reshape(-1, 3)
    table = out.table.double()
    cost = dense_cost(x, table, shares.permute(0, 2, 3, 1).reshape(-1, 4), 0.5, k, 2 if distance == "squared" else 1)
    apart = torch.cdist(table, table) + 9 * torch.eye(4)
    margin = (2.0 - apart.min(1).values).clamp(min=0).mean()
    wanted = torch.autograd.grad(cost + 0.7 * margin, list(model.parameters()))
    made.run()
    line = read_log(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(float(cost.detach()), rel=1e-5)
    assert line["margin"] == pytest.approx(float(margin.detach()), rel=1e-4)
    assert "tau" not in line
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        rate = 0.05 * (3.0 if name == "classes.weight" else 1.0)
        moved = (before[name] - parameter.detach()) / rate
        torch.testing.assert_close(moved, gradient, rtol=2e-3, atol=2e-4 * float(gradient.abs().max()) + 1e-6)


@pytest.mark.parametrize("mode", ["nearest", "exact"])
def test_accumulation_is_one_large_batch(shard_set: Path, tmp_path: Path, mode: str) -> None:
    for parts in (1, 4):
        config = embedding(loss={"mode": mode, "tau": 0.5, "learn_tau": True}, loop={"accumulate": parts})
        trainer(shard_set, tmp_path / str(parts), config).run()
    np.testing.assert_allclose(losses(tmp_path / "4"), losses(tmp_path / "1"), rtol=1e-4)
    torch.testing.assert_close(weights(tmp_path / "4"), weights(tmp_path / "1"), rtol=1e-3, atol=3e-5)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The class table and the temperature get their gradients from both ranks, the regulariser counts once; one of four
    samples is void, so that now and then a rank has nothing to learn from."""
    raws = [scene(i) for i in range(4)]
    raws[0] = Raw(raws[0].key, raws[0].image, np.full_like(raws[0].hard, 65535))
    path = write(tmp_path / "s", {"train": raws})
    sections: dict[str, Any] = {
        "model": HEAD,
        "loss": {"k": 2, "tau": 0.5, "margin": 2.0, "learn_tau": True, "search_every": 2},
        "loop": {"steps": 4, "batch": 2},
    }
    run_ranks(path, tmp_path / "two", sections, 2)
    trainer(path, tmp_path / "one", recipe(**sections)).run()
    for name in ("loss", "margin", "tau", "grad_norm"):
        two, one = ([line[name] for line in read_log(tmp_path / run) if "loss" in line] for run in ("two", "one"))
        np.testing.assert_allclose(two, one, rtol=1e-4)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize(
    "loss", [{"mode": "exact"}, {"search_every": 3, "learn_tau": True}], ids=["exact", "searched in an older table"]
)
def test_resume_is_exact(shard_set: Path, tmp_path: Path, loss: dict[str, Any]) -> None:
    config = embedding(loss=loss, loop={"steps": 8})
    trainer(shard_set, tmp_path / "straight", config).run()
    made = trainer(shard_set, tmp_path / "run", config)
    stop_at(made, 4)
    assert not made.run().finished
    trainer(shard_set, tmp_path / "run", config, resume=True).run()
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))


def test_the_search_looks_at_the_table_every_so_many_steps(shard_set: Path, tmp_path: Path) -> None:
    made = trainer(shard_set, tmp_path / "run", embedding(loss={"search_every": 3}, loop={"steps": 5}))
    seen: list[Tensor] = []
    step = made._step

    def watched(*args: Any) -> Any:
        now = made.model.classes().detach().clone()  # type: ignore[operator,union-attr]
        out = step(*args)
        seen.append(made.model.classes.searched.clone())  # type: ignore[operator,union-attr]
        if made.step in (1, 4):
            assert torch.equal(seen[-1], now)
        return out

    made._step = watched  # type: ignore[method-assign]
    made.run()
    assert [torch.equal(a, b) for a, b in pairwise(seen)] == [True, True, False, True]


def test_the_search_in_an_older_table_decides_the_candidates() -> None:
    """The pixel lies on class 2; the older table says that class 3 is nearest."""
    table = torch.eye(4)
    older = table[[0, 1, 3, 2]]
    out = Embedded(table[2].view(1, 4, 1, 1), table, 1.0, older)
    loss = EmbeddingLoss(embedding(loss={"k": 1}).loss)
    cost, _ = loss(out, torch.zeros(1, 1, 1, 1, dtype=torch.int32), torch.ones(1, 1, 1, 1))
    assert float(cost) == pytest.approx(math.log(2))  # classes 0 and 3 are equally far
    cost, _ = loss(out._replace(searched=None), torch.zeros(1, 1, 1, 1, dtype=torch.int32), torch.ones(1, 1, 1, 1))
    assert float(cost) == pytest.approx(math.log(1 + math.exp(2)))  # class 0 at 2, class 2 at 0


@pytest.mark.parametrize("mode", ["nearest", "exact"])
def test_cells_of_several_classes_may_be_left_out(mode: str) -> None:
    """multi_class_cells = false: the second of two cells holds two classes and counts nothing."""
    out = Embedded(torch.eye(4)[:, :2].view(1, 4, 1, 2), torch.eye(4), 1.0)
    ids = torch.tensor([[[[3, 3]], [[0, 1]]]], dtype=torch.int32)
    shares = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]])
    both, one = (
        EmbeddingLoss(embedding(loss={"mode": mode, "multi_class_cells": kept}).loss)(out, ids, shares)
        for kept in (True, False)
    )
    first = EmbeddingLoss(embedding(loss={"mode": mode}).loss)(
        out._replace(pixels=out.pixels[..., :1]), ids[..., :1], shares[..., :1]
    )
    assert float(both[1]) == 2
    assert [float(x) for x in one] == pytest.approx([float(x) for x in first])


@pytest.mark.parametrize("lvis_negatives", [False, True])
def test_the_recipes_search_is_the_one_that_searches(lvis_negatives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("nearest", "build_index"):
        own = getattr(objective, name)
        monkeypatch.setattr(
            objective, name, lambda *a, own=own, **k: asked.append(k.get("backend") or a[1]) or own(*a, **k)
        )
    loss = EmbeddingLoss(embedding(loss={"search": "faiss"}).loss)
    out = Embedded(torch.eye(4)[:, :1].view(1, 4, 1, 1), torch.eye(4), 1.0)
    allowed = torch.ones(1, 4, dtype=torch.bool) if lvis_negatives else None
    pytest.importorskip("faiss")
    loss(out, torch.zeros(1, 1, 1, 1, dtype=torch.int32), torch.ones(1, 1, 1, 1), allowed)
    assert set(asked) == {"faiss"}


def test_bf16_is_close_to_float32(shard_set: Path, tmp_path: Path) -> None:
    plain = trainer(shard_set, tmp_path / "plain", embedding(loss={"tau": 0.5})).run()
    other = trainer(shard_set, tmp_path / "other", embedding(loss={"tau": 0.5}, loop={"amp": "bf16"})).run()
    assert plain.loss is not None
    assert other.loss == pytest.approx(plain.loss, rel=0.05)
    assert other.loss != plain.loss


def test_a_margin_of_weight_zero_is_logged_and_moves_nothing(shard_set: Path, tmp_path: Path) -> None:
    made = trainer(shard_set, tmp_path / "run", embedding(loss={"margin_weight": 0.0}))
    assert isinstance(made.model, EmbeddingModel)
    cost, gradient = margin_gradients(made.model, made.setup.recipe.loss)
    assert float(cost) > 0
    assert not gradient.any()
    made.run()
    assert read_log(tmp_path / "run")[0]["margin"] == pytest.approx(float(cost))


def test_the_margins_gradient_is_clipped_with_the_rest(shard_set: Path, tmp_path: Path) -> None:
    config = embedding(loss={"margin_weight": 1e7}, optim={"clip": 1.0}, loop={"steps": 1})
    made = trainer(shard_set, tmp_path / "run", config)
    assert isinstance(made.model, EmbeddingModel)
    alone = float(margin_gradients(made.model, config.loss)[1].norm())
    made.run()
    assert read_log(tmp_path / "run")[0]["grad_norm"] == pytest.approx(alone, rel=0.01)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("mode", ["nearest", "exact"])
def test_a_batch_of_void_teaches_nothing(tmp_path: Path, mode: str, amp: str) -> None:
    """Not even the regulariser: a step without a labelled cell leaves the class table alone."""
    config = embedding(loss={"mode": mode}, optim={"weight_decay": 0.0}, loop={"steps": 2, "amp": amp})
    made = trainer(void_set(tmp_path / "s"), tmp_path / "run", config)
    before = {name: t.clone() for name, t in made.model.named_parameters()}
    assert made.run().loss is None
    assert all(torch.equal(before[name], t) for name, t in made.model.named_parameters())


@pytest.mark.parametrize("mode", ["nearest", "exact"])
def test_one_class_costs_nothing_and_is_the_answer(tmp_path: Path, mode: str) -> None:
    raws = [scene(i, classes=1) for i in range(4)]
    raws = [Raw(r.key, r.image, np.where(r.hard == 65535, 65535, 0).astype(np.uint16)) for r in raws]
    one = write(tmp_path / "s", {"train": raws}, classes=ClassTable.make(("all",)))
    made = trainer(one, tmp_path / "run", embedding(loss={"mode": mode}))
    made.run()
    assert losses(tmp_path / "run") == pytest.approx([0.0] * 4, abs=1e-6)
    label = predict(made.model.eval(), raws[0].image, (64, 96), Views(), torch.device("cpu"))
    assert not label.any()


@pytest.mark.parametrize("k", [4, 60000])
def test_k_of_all_classes_and_more_is_the_exact_softmax(shard_set: Path, tmp_path: Path, k: int) -> None:
    trainer(shard_set, tmp_path / "k", embedding(loss={"k": k})).run()
    trainer(shard_set, tmp_path / "exact", embedding(loss={"mode": "exact"})).run()
    assert losses(tmp_path / "k") == losses(tmp_path / "exact")


def test_a_class_that_never_occurs_stays_finite_and_is_kept_apart(tmp_path: Path) -> None:
    more = ClassTable.make((*CLASSES.names, "unicorn"))
    path = write(tmp_path / "s", {"train": [scene(i) for i in range(6)]}, classes=more)
    made = trainer(path, tmp_path / "run", embedding(loss={"k": 4, "margin": 0.2}, loop={"steps": 10}))
    made.run()
    assert isinstance(made.model, EmbeddingModel)
    table = made.model.classes().detach()
    assert table.isfinite().all()
    assert float((table[4] - table[:4]).norm(dim=1).min()) > 0.05
    label = predict(made.model.eval(), scene(0).image, (64, 96), Views(), torch.device("cpu"))
    assert float((label == 4).float().mean()) < 0.5


@pytest.mark.parametrize("mode", ["nearest", "exact"])
def test_features_that_are_no_numbers_stop_and_save(shard_set: Path, tmp_path: Path, mode: str) -> None:
    made = trainer(shard_set, tmp_path / "run", embedding(loss={"mode": mode}, loop={"steps": 5}))
    original = made._step

    def poisoned(*args: Any) -> Any:
        if made.step == 2:
            next(made.model.decoder_parameters()).data.fill_(math.nan)  # type: ignore[operator]
        return original(*args)

    made._step = poisoned  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="loss of step 3 is not a finite number"):
        made.run()


# --- what LVIS checked -------------------------------------------------------------------------------------------


def test_candidates_are_what_lvis_checked_and_all_that_is_not_lviss() -> None:
    allowed = lvis.candidates({"lvis": True, "pos_classes": [3, 1200], "neg_classes": [7]}, 1284)
    assert allowed.nonzero()[0].tolist() == [3, 7, 1200, *range(1203, 1284)]
    assert lvis.candidates({"lvis": False}, 1284).nonzero()[0].tolist() == list(range(1203, 1284))


@pytest.mark.parametrize(
    "meta",
    [{}, {"lvis": True}, {"pos_classes": [1]}, {"pos_classes": [1], "neg_classes": "x"},
     {"pos_classes": [1284], "neg_classes": []}, {"pos_classes": [True], "neg_classes": []}],
)  # fmt: skip
def test_meta_that_does_not_say_so_is_one_line(meta: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"sample s1 has .* expected a list") as caught:
        lvis.candidates({"key": "s1", **meta}, 1284)
    assert "\n" not in str(caught.value)


def test_a_table_of_lvis_alone_will_do() -> None:
    lvis.check_table(1203)
    with pytest.raises(SettingsError, match="found 1202 classes"):
        lvis.check_table(1202)


def big_set(folder: Path, meta: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four scenes of 1,284 classes, with what LVIS would say of each."""
    names = ClassTable.make([f"c{index}" for index in range(1284)])
    if meta is not None:
        monkeypatch.setattr("tests.train.shardset.encode_meta", lambda own: json.dumps({**own, **meta}).encode())
    return write(folder, {"train": [scene(i) for i in range(4)]}, classes=names)


def test_the_batch_carries_the_candidates_to_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = {"lvis": True, "pos_classes": [1, 2, 3], "neg_classes": [5]}
    path = big_set(tmp_path / "s", meta, monkeypatch)
    seen: list[Tensor] = []
    config = embedding(loss={"lvis_negatives": True, "k": 8, "margin": 0.1}, loop={"steps": 2})
    made = trainer(path, tmp_path / "run", config)
    loss = made.loss
    made.loss = torch.nn.Identity()
    made.loss.forward = lambda *args: seen.append(args[3]) or loss(*args)  # type: ignore[func-returns-value]
    made.run()
    wanted = lvis.candidates(meta, 1284)
    assert len(seen) == 2
    assert all(mask.shape == (4, 1284) and (mask.numpy() == wanted).all() for mask in seen)
    assert all(math.isfinite(x) for x in losses(tmp_path / "run"))


def test_each_sample_has_its_own_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own_meta(own: Any) -> bytes:
        return json.dumps({**own, "pos_classes": [int(own["key"][-1])], "neg_classes": [9]}).encode()

    monkeypatch.setattr("tests.train.shardset.encode_meta", own_meta)
    path = big_set(tmp_path / "s", None, monkeypatch)
    config = embedding(loss={"lvis_negatives": True})
    stream = Stream(open_sources([path], config), config)
    for item in map(stream.item, range(4)):
        assert item.allowed is not None
        assert item.allowed[:10].nonzero()[0].tolist() == [int(item.key[-1]), 9]


def test_classes_that_lvis_did_not_check_are_pushed_nowhere() -> None:
    """Class 4 is unknown on image 0 and known on image 1: its only gradient is from there."""
    torch.manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(6, 3), dim=1).requires_grad_()
    pixels = torch.nn.functional.normalize(torch.randn(2, 3, 4, 4), dim=1)
    ids, shares = torch.zeros(2, 1, 4, 4, dtype=torch.int32), torch.ones(2, 1, 4, 4)
    allowed = torch.ones(2, 6, dtype=torch.bool)
    allowed[0, 4] = allowed[0, 0] = False  # class 0 is the target: always a candidate
    for mode in ("nearest", "exact"):
        loss = EmbeddingLoss(embedding(loss={"mode": mode, "k": 5}).loss)
        both, first, second = (
            torch.autograd.grad(
                loss(Embedded(pixels[a:b], table, 0.5), ids[a:b], shares[a:b], allowed[a:b])[0], [table]
            )[0]
            for a, b in ((0, 2), (0, 1), (1, 2))
        )
        assert not first[4].any()
        assert first[0].any()
        assert second[4].any()
        torch.testing.assert_close(both, first + second)


def test_other_shard_sets_are_refused(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = embedding(loss={"lvis_negatives": True})
    with pytest.raises(SettingsError, match=r"found 4 classes, expected the 1,203 of LVIS v1") as caught:
        Stream(open_sources([shard_set], config), config)
    assert "\n" not in str(caught.value)
    bare = big_set(tmp_path / "bare", None, monkeypatch)
    with pytest.raises(SettingsError, match="has no pos_classes in its meta"):
        trainer(bare, tmp_path / "run", config).run()


def test_a_world_that_is_not_alone_needs_cuda_to_synchronise_its_norms() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    World(torch.device("cpu")).synchronise(net)
    assert isinstance(net[0], torch.nn.BatchNorm2d)
    with pytest.raises(SettingsError, match=r"model.sync_norm = true on cpu: expected CUDA"):
        World(torch.device("cpu"), 0, 2).synchronise(net)
    World(torch.device("cuda"), 0, 2).synchronise(net)
    assert isinstance(net[0], torch.nn.SyncBatchNorm)
