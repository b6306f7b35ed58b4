"""Training on mixtures: what a step's loss is, on any ranks and micro-batches; exact resume; the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.classes import ClassTable
from shards.errors import FormatError, UserError
from tests.train.conftest import Call, recipe
from tests.train.shardset import scene, write
from tests.train.test_distributed import ROOT, free_port
from tests.train.test_loop import equal, losses, stop_at, weights
from tests.train.test_mixed_stream import make_sets as make_sets  # the fixture "sets"
from tests.train.test_mixed_stream import mixed
from train.batch import Batch, collate
from train.config import Recipe, from_dict
from train.distributed import World
from train.label_space import LabelSpace
from train.loop import Trainer
from train.mixed_stream import make_stream
from train.run import NAME, Run, check_same, create, open_run
from train.runlog import read_log
from train.sources import open_all

CPU = torch.device("cpu")
Sets = dict[str, Path]
# Nothing that depends on who shares a batch: fixed statistics, no dropout.
STEADY: dict[str, Any] = {
    "data": {"scales": ["1"], "workers": 0, "target_stride": 8},
    "model": {"head": "cosine", "dropout": 0.0, "freeze_norm": True},
    "loss": {"memory_size": 1, "memory_top": 4, "attention_weight": 0.5, "image_weight": 0.7},
}


def words(given: Sets) -> list[str]:
    return [f"{name}={path}" for name, path in given.items()]


def trainer(given: Sets, folder: Path, config: Recipe, resume: bool = False) -> Trainer:
    """A trainer as seg-train makes it."""
    sources = open_all(words(given), config)
    run = Run(folder, config, sources.classes, sources.describe(), None, sources.space)
    made = Trainer(run, make_stream(sources, config), World(CPU), quiet=True)
    if resume:
        check_same(open_run(folder), run)
        made.load()
    else:
        create(run)
    return made


def steady(steps: int, batch: int, parts: int, accumulate: int, **loss: Any) -> Recipe:
    sections = {**STEADY, "loss": {**STEADY["loss"], **loss}}
    return mixed(steps, batch, parts, **sections, loop={"accumulate": accumulate})


# --- the loss of a step ------------------------------------------------------------------------------------------


def test_a_step_is_the_sum_of_the_means_of_each_kind(sets: Sets, tmp_path: Path) -> None:
    """Against one batch of all pixel samples and one of all images, each divided by what it holds."""
    made = trainer(sets, tmp_path / "run", steady(1, 12, 3, 6))
    assert made.mixed is not None
    items = [made.stream.item(position) for position in range(12)]
    assert {item.source for item in items} == {0, 1}
    wholes = [collate([item for item in items if item.source == source]) for source in (0, 1)]
    made.model.train()
    want: dict[str, float] = {}
    total = torch.zeros(())
    for whole in wholes:
        kind, mass = made.mixed.objective.mass(whole)
        loss, parts = made.mixed.objective(made.model(whole.images), whole)
        made.mixed.objective.observed(0)
        want |= {name: float(value) / float(mass) for name, value in parts.items()}
        total = total + loss / mass
        assert kind == ("image" if whole.tags is not None else "pixel")
    total.backward()
    gradients = [p.grad.clone() for p in made.model.parameters() if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
    made.run()
    line = read_log(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
    assert {name: line[name] for name in want} == pytest.approx(want, rel=1e-4)
    assert line["loss"] == pytest.approx(line["seg"] + 0.7 * line["cls"] + 0.5 * line["aux"], rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_ranks_and_micro_batches_change_nothing(sets: Sets, tmp_path: Path) -> None:
    """Parts of 6 samples on one rank in 2 or 6 micro-batches, on two ranks in 1 or 2: one loss, one network, one
    memory. Without memory_sync each rank remembers what it saw."""
    alone = {count: trainer(sets, tmp_path / f"one{count}", steady(3, 12, 2, count)) for count in (2, 6)}
    for made in alone.values():
        made.run()
    jobs = {f"two{count}": steady(3, 12, 2, count) for count in (1, 2)}
    jobs["apart"] = steady(3, 12, 2, 1, memory_sync=False)
    run_ranks([(tmp_path / name, config) for name, config in jobs.items()], sets)
    for name in ("one6", "two1", "two2"):
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one2"), rtol=1e-5)
        torch.testing.assert_close(weights(tmp_path / name), weights(tmp_path / "one2"), rtol=1e-4, atol=1e-5)
    count = alone[2].model.bank.count.tolist()  # type: ignore[union-attr]
    assert sum(count) > 3
    kept = {name: [json.loads(Path(f"{tmp_path / name}.bank{rank}").read_text()) for rank in range(2)] for name in jobs}
    assert kept["two1"] == kept["two2"] == [count, count]
    assert kept["apart"][0] != kept["apart"][1]
    assert np.sum(kept["apart"], 0).tolist() == count
    assert any("aux" in line and line["aux"] > 0 for line in read_log(tmp_path / "two1"))


def run_ranks(jobs: list[tuple[Path, Recipe]], given: Sets) -> None:
    """Train in two processes, as torchrun starts them."""
    listed = [{"folder": str(f), "words": words(given), "sections": sections(config)} for f, config in jobs]
    port, processes = str(free_port()), []
    for rank in range(2):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.train.mixed_ranks", json.dumps(listed)]
        processes.append(subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()  # nothing where it has ended
            process.communicate()
    for process, err in zip(processes, errors, strict=True):
        assert process.returncode == 0, err[-2000:]


def sections(config: Recipe) -> dict[str, Any]:
    """A recipe as `tests.train.conftest.recipe` takes it."""
    values = config.to_dict()
    return {key: value for key, value in values.items() if isinstance(value, dict)}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_steps_of_one_source_are_the_same_in_any_micro_batches(
    sets: Sets,
    tmp_path: Path,
    accumulate: int,
) -> None:
    """With one part a step, steps alternate between sources."""
    for name, count in (("one", 1), ("more", accumulate)):
        trainer(sets, tmp_path / name, steady(3, 4, 1, count)).run()
    np.testing.assert_allclose(losses(tmp_path / "more"), losses(tmp_path / "one"), rtol=1e-5)
    torch.testing.assert_close(weights(tmp_path / "more"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-5)
    kinds = [{"seg", "cls"} & line.keys() for line in read_log(tmp_path / "more") if "loss" in line]
    assert kinds == [{"seg"}, {"cls"}, {"seg"}]


def test_a_kind_without_mass_is_left_out(sets: Sets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images without tags: the step is that of its pixels; it is said once, and counted in each step."""
    made = trainer(sets, tmp_path / "run", steady(6, 2, 2, 2))
    made.quiet = False
    made.run()
    lines = [line for line in read_log(tmp_path / "run") if "loss" in line]
    untagged = [line for line in lines if line.get("untagged")]
    assert untagged
    assert all("cls" not in line and line["loss"] == pytest.approx(line["seg"]) for line in untagged)
    assert any("cls" in line for line in lines)
    assert capsys.readouterr().out.count("1 of 1 images of a batch of 'tags' have no tag") == 1


def test_nothing_at_all_is_a_step_without_a_loss(tmp_path: Path) -> None:
    raws = [replace(scene(i), hard=np.full((64, 96), 65535, np.uint16)) for i in range(3)]
    given = {"pixels": write(tmp_path / "void", {"train": raws})}
    made = trainer({**given, "tags": given["pixels"]}, tmp_path / "run", steady(2, 2, 2, 2))
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.run()
    assert [line["loss"] for line in read_log(tmp_path / "run") if "loss" in line][:2] == [None, None]
    assert all(bool(tensor.isfinite().all()) for tensor in made.model.state_dict().values())
    assert before.keys() == made.model.state_dict().keys()


# --- going on ----------------------------------------------------------------------------------------------------


def test_resume_after_every_step_is_exact(sets: Sets, tmp_path: Path) -> None:
    """Weights, memory and log of a run that was stopped after each of its steps are those of one in one go."""
    config = mixed(5, 4, 2, **{**STEADY, "model": {"head": "cosine", "dropout": 0.2}})
    trainer(sets, tmp_path / "whole", config).run()
    for stop in range(1, 6):
        now = trainer(sets, tmp_path / "run", config, resume=stop > 1)
        assert now.step == stop - 1
        if stop < 5:
            stop_at(now, stop)
        now.run()
    kept = ("loss", "seg", "cls", "aux", "epochs")
    first, second = (
        [{key: line.get(key) for key in kept} for line in read_log(tmp_path / name) if "loss" in line]
        for name in ("whole", "run")
    )
    assert first == second
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert weights(tmp_path / "run")["bank.count"].sum() > 0


def test_run_json_keeps_the_label_space(sets: Sets, tmp_path: Path) -> None:
    made = trainer(sets, tmp_path / "run", mixed())
    found = open_run(tmp_path / "run")
    assert found.space is not None
    assert found.space.base.tolist() == [True] * 4 + [False] * 2
    assert [mask.tolist() for mask in found.space.known] == [
        [True] * 4 + [False] * 2, [True, False, False, True, True, True]
    ]  # fmt: skip
    assert [source["source"] for source in found.sources] == ["pixels", "tags"]
    assert found.classes.digest == made.setup.classes.digest
    other = replace(found, space=LabelSpace(found.classes, found.space.base, (found.space.known[0],) * 2))
    with pytest.raises(UserError, match="the label space is not the same"):
        check_same(found, other)


@pytest.mark.parametrize("broken", [{"base": 9, "known": []}, {"base": 1, "known": ["all"]}, 7, None])
def test_a_broken_label_space_is_one_line(sets: Sets, tmp_path: Path, broken: Any) -> None:
    trainer(sets, tmp_path / "run", mixed())
    path = tmp_path / "run" / NAME
    values = json.loads(path.read_text())
    values["space"] = broken
    if broken is None:
        del values["space"]
    path.write_text(json.dumps(values))
    with pytest.raises(FormatError, match="restore it"):
        open_run(tmp_path / "run")


# --- classes that a source does not know -------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["own", "all"])
def test_pixels_do_not_punish_classes_that_their_source_does_not_know(
    sets: Sets,
    tmp_path: Path,
    known: str,
) -> None:
    """Two pixel sources with different class tables under a dense head: gradients of the classifier by class."""
    table = ClassTable.make(["sky", "person", "car", "sea"])
    other = write(tmp_path / "other", {"train": [scene(i) for i in range(3)]}, classes=table)
    config = recipe(
        data={"scales": ["1/2"], "workers": 0},
        model={"dropout": 0.0},
        mixture={"sources": [{"name": "pixels", "known": known}, {"name": "other", "known": known}]},
        loop={"steps": 2, "batch": 3},
    )
    made = trainer({"pixels": sets["pixels"], "other": other}, tmp_path / "run", config)
    assert made.setup.classes.names == ("road", "wall", "car", "person", "sky", "sea")
    assert made.mixed is not None
    head = [p for p in made.model.parameters() if p.shape[0] == 6 and p.ndim == 1][-1]  # the classifier's bias
    for source, own in ((0, [0, 1, 2, 3]), (1, [4, 3, 2, 5])):
        batch: Batch = collate([made.stream.item(3 * source + place) for place in range(3)])
        assert batch.source == source
        made.model.zero_grad()
        made.mixed.backward([batch], lambda one: made.model(one.images), False)
        assert head.grad is not None
        moved = set(torch.nonzero(head.grad)[:, 0].tolist())
        assert moved == (set(own) if known == "own" else set(range(6)))
    made.run()
    assert all(np.isfinite(losses(tmp_path / "run")))


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "pair.toml"
    path.write_text("""
description = "for tests"
[data]
scales = ["1"]
workers = 0
target_stride = 8
[augment]
crop = [32, 48]
[model]
arch = "linear"
head = "cosine"
encoder = "mobilenetv3_small_050"
output_stride = 8
[loss]
memory_size = 3
[loop]
steps = 3
batch = 4
accumulate = 2
image_every = 2
[mixture]
parts = 2
[[mixture.sources]]
name = "pixels"
share = 3
[[mixture.sources]]
name = "tags"
labels = "image"
crop = [40, 64]
""")
    return path


def test_seg_train_on_a_mixture(call: Call, sets: Sets, recipe_file: Path, tmp_path: Path) -> None:
    given = [word for text in words(sets) for word in ("--shards", text)]
    common = ("seg-train", *given, "--recipe", recipe_file, "--device", "cpu", "--out", tmp_path / "run")
    code, out, err = call(*common, "--dry-run")
    assert code == 0, err
    assert "3 of 4 images in 2 part(s) of 2 x 2 by source" in out
    assert "source      pixels: pixel labels, 5 samples, 3 of every 4 parts, 2.0 epochs" in out
    assert "source      tags: image labels, 5 samples, 1 of every 4 parts, 0.4 epochs" in out
    assert "for 2 x 40 x 64 in float32" in out
    assert "memory of classes" in out
    assert not (tmp_path / "run").exists()
    code, out, err = call(*common)
    assert code == 0, err
    assert "done: step 3" in out
    code, out, err = call("seg-train", *given, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert code == 0, err
    assert "nothing left to do" in out
    assert from_dict(json.loads((tmp_path / "run" / NAME).read_text())["recipe"]).mixture is not None
    code, _, err = call("seg-norms", "--run", tmp_path / "run")
    assert code == 2
    assert "has a mixture of sources" in err


def test_wrong_shard_sets_are_one_line(call: Call, sets: Sets, recipe_file: Path, tmp_path: Path) -> None:
    def refused(*given: str, recipe_name: Any = recipe_file) -> str:
        listed = [word for text in given for word in ("--shards", text)]
        code, _, err = call("seg-train", *listed, "--recipe", recipe_name, "--out", tmp_path / "run", "--dry-run")
        assert code == 2
        assert err.count("\n") == 1
        return err

    pixels, tags = words(sets)
    assert "source 'tags' of recipe pair has no shard set" in refused(pixels)
    assert "has no source 'tag'; did you mean 'tags'?" in refused(pixels, tags.replace("tags=", "tag=", 1))
    assert "expected NAME=DIR" in refused(pixels, tags, str(sets["pixels"]))
    assert "has no [mixture]" in refused(pixels, recipe_name="demo")
    odd = tmp_path / "a=b"
    odd.symlink_to(sets["pixels"])
    code, _, err = call(
        "seg-train", "--shards", odd, "--recipe", "demo", "--out", tmp_path / "run", "--dry-run", "--set",
        "data.scales=1/2",
    )  # fmt: skip
    assert code == 0, err
