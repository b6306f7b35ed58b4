"""The loop: exact resume, accumulation, what a step does to the weights, how it stops."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.errors import FormatError, UserError
from tests.train.conftest import recipe
from tests.train.shardset import Raw, scene, write
from tests.train.test_stream import planes
from train import checkpoint
from train.config import Recipe
from train.distributed import World
from train.loop import DivergedError, Trainer, mean_colour, seed_of
from train.optim import learning_rate
from train.run import Run, check_same, create, open_run
from train.runlog import RunLog, read_log
from train.sources import open_sources
from train.stream import Stream

WORLD = World(torch.device("cpu"))


def trainer(shard_set: Path, folder: Path, config: Recipe, resume: bool = False) -> Trainer:
    """A trainer as seg-train makes it."""
    sources = open_sources([shard_set], config)
    run = Run(folder, config, sources.classes, sources.describe())
    made = Trainer(run, Stream(sources, config), WORLD, quiet=True)
    if resume:
        check_same(open_run(folder), run)
        made.load()
    else:
        create(run)
    return made


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder) if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / checkpoint.NAME).model


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


LONG: dict[str, Any] = {
    "data": {"scales": ["1/2", "1/4"], "workers": 0},
    "augment": {"crop": [32, 48], "jitter": {"contrast": 0.2}},
    "optim": {"name": "adamw", "lr": 0.003, "clip": 1.0},
    "schedule": {"warmup_steps": 3},
}


@pytest.fixture(scope="module")
def straight(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps in one go."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    summary = trainer(shard_set, folder, recipe(**LONG, loop={"steps": 20})).run()
    assert summary.finished
    return folder


@pytest.mark.parametrize("stops", [(10,), (1, 2, 19), (7,)])
def test_resume_is_exact(shard_set: Path, straight: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """Stopped after any steps and resumed: the same losses and the same weights, to the last bit."""
    config = recipe(**LONG, loop={"steps": 20})
    for number, stop in enumerate([*stops, None]):
        now = trainer(shard_set, tmp_path / "run", config, resume=number > 0)
        assert now.step == ([0, *stops][number])
        if stop is not None:
            stop_at(now, stop)
        summary = now.run()
        assert summary.finished == (stop is None)
        assert summary.step == (stop or 20)
    assert losses(tmp_path / "run") == losses(straight)
    assert equal(weights(tmp_path / "run"), weights(straight))
    assert [line["step"] for line in read_log(tmp_path / "run") if "loss" in line] == list(range(1, 21))


def stop_at(made: Trainer, step: int) -> None:
    """A signal that arrives while step `step` is computed."""
    original = made._step

    def watched(*args: Any) -> Any:
        if made.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    made._step = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_data_workers_change_nothing(shard_set: Path, straight: Path, tmp_path: Path, loader: str) -> None:
    sections = {**LONG, "data": {**LONG["data"], "workers": 2, "loader": loader}}
    trainer(shard_set, tmp_path / "run", recipe(**sections, loop={"steps": 20})).run()
    assert losses(tmp_path / "run") == losses(straight)
    assert equal(weights(tmp_path / "run"), weights(straight))


def test_killed_runs_repeat_their_unsaved_steps(shard_set: Path, straight: Path, tmp_path: Path) -> None:
    """After SIGKILL the log is ahead of the checkpoint: those steps are run, and logged, again and alike."""
    config = recipe(**LONG, loop={"steps": 20, "checkpoint_every": 4})
    made = trainer(shard_set, tmp_path / "run", config)
    original = made._step

    def dies(*args: Any) -> Any:
        if made.step == 10:
            raise KeyboardInterrupt  # nothing is saved on the way out, as after SIGKILL
        return original(*args)

    made._step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        made.run()
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 11, "lo')  # a line cut short
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == 8
    again = trainer(shard_set, tmp_path / "run", config, resume=True)
    assert again.step == 8
    again.run()
    assert losses(tmp_path / "run") == losses(straight)
    assert equal(weights(tmp_path / "run"), weights(straight))


def test_stopped_before_the_first_checkpoint(shard_set: Path, tmp_path: Path) -> None:
    config = recipe()
    trainer(shard_set, tmp_path / "run", config)
    again = trainer(shard_set, tmp_path / "run", config, resume=True)
    assert again.step == 0
    assert again.run().finished


FROZEN: dict[str, Any] = {"model": {"freeze_norm": True, "dropout": 0.0}}


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_one_large_batch(shard_set: Path, tmp_path: Path, parts: int) -> None:
    """Parts with different numbers of labelled cells still weigh every cell of the batch alike."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    trainer(shard_set, whole, recipe(**FROZEN, loop={"batch": 4})).run()
    trainer(shard_set, split, recipe(**FROZEN, loop={"batch": 4, "accumulate": parts})).run()
    np.testing.assert_allclose(losses(split), losses(whole), rtol=1e-5)
    torch.testing.assert_close(weights(split), weights(whole), rtol=1e-4, atol=1e-6)


def test_a_step_is_plain_sgd_on_the_mean_cost(shard_set: Path, tmp_path: Path) -> None:
    """One step against the same step written out by hand: log-softmax over dense targets, mean over labelled mass."""
    config = recipe(**FROZEN, optim={"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}, loop={"steps": 1})
    made = trainer(shard_set, tmp_path / "run", config)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    items = [made.stream.item(p) for p in range(4)]
    made.model.train()
    logp = made.model(torch.stack([torch.from_numpy(i.image) for i in items])).log_softmax(1)
    target = torch.zeros_like(logp)
    for index, item in enumerate(items):
        ids, shares = map(torch.from_numpy, planes(item.targets))
        target[index].scatter_add_(0, ids.long(), shares)
    loss = -(target * logp).sum() / target.sum()
    wanted = torch.autograd.grad(loss, list(made.model.parameters()))
    made.run()
    assert losses(tmp_path / "run")[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    lr = learning_rate(0, 1, config.optim, config.schedule)
    for (name, parameter), gradient in zip(made.model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), before[name] - lr * gradient, rtol=1e-4, atol=1e-5)


def test_every_step_runs_at_the_scheduled_rate(shard_set: Path, tmp_path: Path) -> None:
    """In the log, and in each group of the optimiser by its own factor."""
    config = recipe(optim={"encoder_lr_scale": 0.1}, schedule={"warmup_steps": 2}, loop={"steps": 4})
    made = trainer(shard_set, tmp_path / "run", config)
    made.run()
    rates = [learning_rate(step, 4, config.optim, config.schedule) for step in range(4)]
    assert [line["lr"] for line in read_log(tmp_path / "run") if "lr" in line] == rates
    assert [group["lr"] for group in made.optimiser.param_groups] == pytest.approx([0.1 * rates[3], rates[3]])


def test_training_learns(shard_set: Path, tmp_path: Path) -> None:
    config = recipe(model={"dropout": 0.0}, optim={"name": "adamw", "lr": 0.01}, loop={"steps": 30, "batch": 4})
    summary = trainer(shard_set, tmp_path / "run", config).run()
    first = losses(tmp_path / "run")[0]
    assert summary.loss is not None
    assert summary.loss < 0.7 * first


def test_kl_is_cross_entropy_less_the_entropy(shard_set: Path, tmp_path: Path) -> None:
    """Reaches the loss of the recipe: KL lies below cross-entropy on mixed cells, and trains to the same weights."""
    for kind in ("cross-entropy", "kl"):
        trainer(shard_set, tmp_path / kind, recipe(**FROZEN, loss={"kind": kind})).run()
    assert all(k < c for k, c in zip(losses(tmp_path / "kl"), losses(tmp_path / "cross-entropy"), strict=True))
    torch.testing.assert_close(weights(tmp_path / "kl"), weights(tmp_path / "cross-entropy"), rtol=1e-3, atol=1e-5)


def void_set(folder: Path) -> Path:
    """A shard set whose labels are void everywhere."""
    raws = [scene(i) for i in range(4)]
    return write(folder, {"train": [Raw(r.key, r.image, np.full_like(r.hard, 65535)) for r in raws]})


def test_a_batch_of_void_teaches_nothing(tmp_path: Path) -> None:
    config = recipe(**FROZEN, optim={"weight_decay": 0.0}, loop={"steps": 2})
    made = trainer(void_set(tmp_path / "s"), tmp_path / "run", config)
    before = {name: t.clone() for name, t in made.model.named_parameters()}
    summary = made.run()
    assert summary.loss is None
    assert losses(tmp_path / "run") == [None, None]
    assert all(torch.equal(before[name], t) for name, t in made.model.named_parameters())


def test_a_loss_that_is_not_finite_stops_and_saves(shard_set: Path, tmp_path: Path) -> None:
    """The line names step and keys; the saved state is the one before the bad step, statistics included."""
    config = recipe(loop={"steps": 9})
    made = trainer(shard_set, tmp_path / "run", config)
    original = made._step

    def poisoned(*args: Any) -> Any:
        if made.step == 3:
            kept.update({name: t.clone() for name, t in made.model.state_dict().items()})
            made.stream.fill = (0, 0, 0)
            made.loss = Poison(made.loss)
        return original(*args)

    kept: dict[str, torch.Tensor] = {}
    made._step = poisoned  # type: ignore[method-assign]
    with pytest.raises(
        DivergedError, match=r"loss of step 4 is not a finite number \(batch of scene_\d+, scene_"
    ) as caught:
        made.run()
    assert "\n" not in str(caught.value)
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == 3
    assert equal(weights(tmp_path / "run"), kept)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def test_too_little_memory_is_said_and_saved(shard_set: Path, tmp_path: Path) -> None:
    made = trainer(shard_set, tmp_path / "run", recipe(loop={"steps": 3}))

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    made._step = full  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"out of memory: lower loop\.batch"):
        made.run()
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == 0


def test_what_will_be_evaluated_is_there_before_the_first_step(shard_set: Path, tmp_path: Path) -> None:
    alone = write(tmp_path / "alone", {"train": [scene(i) for i in range(4)]})
    with pytest.raises(UserError, match=r"eval_every is set: .* no split 'val'.*; or give --set loop\.eval_every=0"):
        trainer(alone, tmp_path / "run", recipe(loop={"eval_every": 9}))
    assert not (tmp_path / "run").exists()


class Poison(torch.nn.Module):
    """A loss that overflows."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, mass = self.loss(*args)
        return loss * float("inf"), mass


def test_the_log_has_a_line_a_step(shard_set: Path, tmp_path: Path) -> None:
    config = recipe(loop={"steps": 3, "image_every": 2, "log_every": 1, "eval_every": 3})
    trainer(shard_set, tmp_path / "run", config).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[0].keys() == {
        "step", "epoch", "loss", "lr", "grad_norm", "seconds", "samples_per_second", "data_wait",
    }  # fmt: skip
    assert steps[1]["epoch"] == pytest.approx(8 / 11)
    assert 0 <= steps[0]["data_wait"] <= 1
    assert 0 <= lines[-2]["eval"]["miou"] <= 1
    assert lines[-1]["summary"]["finished"] is True
    events = b"".join(p.read_bytes() for p in (tmp_path / "run" / "tensorboard").iterdir())
    assert b"train/loss" in events
    assert b"val/miou" in events
    assert b"image-label-prediction" in events


def test_evaluating_in_between_changes_nothing(shard_set: Path, tmp_path: Path) -> None:
    for every in (0, 2):
        loop = {"steps": 5, "eval_every": every, "image_every": every}
        trainer(shard_set, tmp_path / str(every), recipe(loop=loop)).run()
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
    assert equal(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_cells_with_too_many_classes_are_said_once(
    shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(data={"max_classes_per_cell": 1, "scales": ["1/4"]}, loop={"steps": 3})
    made = trainer(shard_set, tmp_path / "run", config)
    made.quiet = False
    made.run()
    assert capsys.readouterr().out.count("more than 1 classes") == 1


def test_bf16_and_channels_last_and_deterministic(shard_set: Path, tmp_path: Path) -> None:
    plain = trainer(shard_set, tmp_path / "plain", recipe(**FROZEN)).run()
    options = {"amp": "bf16", "channels_last": True, "deterministic": True}
    try:
        other = trainer(shard_set, tmp_path / "other", recipe(**FROZEN, loop=options)).run()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert plain.loss is not None
    assert other.loss == pytest.approx(plain.loss, rel=0.03)
    assert other.loss != plain.loss


def test_seeds_are_distinct_and_padding_is_the_models_mean(shard_set: Path, tmp_path: Path) -> None:
    seeds = {seed_of(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(4)}
    assert len(seeds) == 3 * 20 * 4
    made = trainer(shard_set, tmp_path / "run", recipe(model={"mean": [0.1, 0.5, 1.0]}))
    assert made.stream.fill == mean_colour(made.model) == (26, 128, 255)


def test_other_settings_do_not_resume(shard_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer(shard_set, folder, recipe())
    with pytest.raises(UserError, match=r"optim.lr was 0.02, is 0.5; resume with the same"):
        trainer(shard_set, folder, recipe(optim={"lr": 0.5}), resume=True)
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        trainer(shard_set, folder, recipe())
    trainer(shard_set, folder, recipe(data={"workers": 1}, loop={"log_every": 3}), resume=True)
    other = write(tmp_path / "other", {"train": [scene(i) for i in range(3)]})
    with pytest.raises(UserError, match="shard sets are not the same"):
        trainer(other, folder, recipe(), resume=True)


def test_run_folder_is_checked(tmp_path: Path, shard_set: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .* \(no run.json\)"):
        open_run(tmp_path)
    trainer(shard_set, tmp_path / "run", recipe())
    path = tmp_path / "run" / "run.json"
    good = json.loads(path.read_text())
    assert {"recipe", "sources", "classes", "classes_digest", "seed", "versions"} <= good.keys()
    spoilt = [json.dumps({**good, **bad}) for bad in ({"format_version": 9}, {"sources": 3}, {"classes": {}})]
    for bad in ("{", "[]", *spoilt):
        path.write_text(bad)
        with pytest.raises(FormatError, match=r"run\.json"):
            open_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    sources = open_sources([shard_set], recipe())
    with pytest.raises(UserError, match="is a file"):
        create(Run(tmp_path / "file", recipe(), sources.classes, sources.describe()))


def test_log_reader_names_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(FormatError, match="line 2 is not a log line"):
        read_log(tmp_path)
    assert read_log(tmp_path / "nowhere") == []
    with RunLog(tmp_path, active=False) as log:
        log.write({"step": 1})


KILLED = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.train.conftest import recipe
from tests.train.test_loop import trainer
made = trainer(Path(sys.argv[1]), Path(sys.argv[2]), recipe(data={"workers": 1}, loop={"steps": 100000}))
log = made._report
def report(*args):
    log(*args)
    print(made.step, flush=True)
made._report = report
summary = made.run()
print("ended", summary.step, summary.finished, flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves(shard_set: Path, tmp_path: Path, sent: signal.Signals) -> None:
    """As Ctrl-C in a terminal or a batch system's stop: data workers get the signal too, and nothing is lost."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, shard_set, tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "3":
            break
    os.killpg(process.pid, sent)
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()  # nothing where it has ended
    last = out.strip().splitlines()[-1].split()
    assert last[0] == "ended", err
    assert last[2] == "False"
    assert "Traceback" not in err
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == int(last[1])
