"""Exact BatchNorm statistics: against sums by hand in float64, resumed, and taken by seg-eval."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import distributed as process_group
from torch import nn

from shards.errors import UserError
from tests.train.conftest import Call, recipe
from tests.train.test_distributed import free_port
from tests.train.test_loop import WORLD, trainer
from train import checkpoint, cli_norms, norm_statistics
from train.config import Recipe
from train.distributed import World
from train.inference import load_model
from train.models import build_model
from train.norm_statistics import PARTIAL, epoch_parts, exact_norms
from train.run import Run, open_run
from train.sources import open_sources
from train.stream import Stream

SECTIONS: dict[str, Any] = {
    "augment": {"crop": [40, 32]},  # higher than the images of 32 x 48: padded
    "model": {"dropout": 0.0, "norm_momentum": 0.01, "mean": [0.4, 0.2, 0.6]},
    "loop": {"steps": 4, "batch": 4, "accumulate": 1},
}


@pytest.fixture(scope="module")
def trained(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of four out of eleven samples: into the second epoch."""
    folder = tmp_path_factory.mktemp("norms") / "run"
    assert trainer(shard_set, folder, recipe(**SECTIONS)).run().finished
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def stream_of(run: Run) -> Stream:
    return Stream(open_sources([Path(s["path"]) for s in run.sources], run.recipe), run.recipe)


class Oracle:
    """Averages over batches of mean and unbiased variance, each times the batch's values; NumPy, float64."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[str, list[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]]] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def note(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            values = inputs[0].detach().double().numpy().transpose(1, 0, 2, 3)
            values = values.reshape(len(values), -1)
            self.seen.setdefault(name, []).append((values.shape[1], values.mean(1), values.var(1, ddof=1)))

        return note

    def statistics(self, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        counts = np.array([n for n, _, _ in self.seen[name]], np.float64)
        means, variances = (np.stack([entry[i] for entry in self.seen[name]]) for i in (1, 2))
        return np.average(means, 0, counts), np.average(variances, 0, counts)


def test_statistics_are_the_averages_over_one_epoch(folder: Path) -> None:
    run = open_run(folder)
    before = checkpoint.load(folder / checkpoint.NAME)
    told: list[tuple[int, int]] = []
    path, samples = exact_norms(run, stream_of(run), WORLD, lambda *now: told.append(now))
    assert (path.name, samples, told) == ("checkpoint-norms.pt", 11, [(1, 3), (2, 3), (3, 3)])
    model = build_model(run.recipe.model, 4)
    model.load_state_dict(before.model)
    oracle, stream = Oracle(model.train()), stream_of(run)
    stream.fill = (102, 51, 153)  # the network's mean colour
    with torch.no_grad():
        for places in ((22, 23, 24), (25, 26, 27, 28), (29, 30, 31, 32)):  # the third epoch: 11 samples in 3 parts
            model(torch.from_numpy(np.stack([stream.item(place).image for place in places])))
    after = checkpoint.load(path)
    moved = 0
    for name in oracle.seen:
        mean, variance = oracle.statistics(name)
        np.testing.assert_allclose(
            after.model[f"{name}.running_mean"].numpy(), mean.astype(np.float32), rtol=1e-6, atol=1e-7
        )
        np.testing.assert_allclose(after.model[f"{name}.running_var"].numpy(), variance.astype(np.float32), rtol=1e-6)
        moved += not torch.equal(after.model[f"{name}.running_var"], before.model[f"{name}.running_var"])
    assert moved == len(oracle.seen) > 20
    others = [name for name in before.model if "running" not in name]
    assert all(torch.equal(after.model[name], before.model[name]) for name in others)  # batches tracked among them
    assert (after.step, after.recipe) == (before.step, before.recipe)


def test_stopped_and_called_again_it_is_the_same_bits(folder: Path) -> None:
    run = open_run(folder)
    straight = checkpoint.load(exact_norms(run, stream_of(run), WORLD)[0]).model
    (folder / checkpoint.NORMS).unlink()
    _partial(run, folder)
    assert not (folder / checkpoint.NORMS).exists()
    told: list[int] = []
    again = checkpoint.load(exact_norms(run, stream_of(run), WORLD, lambda done, of: told.append(done))[0]).model
    assert told == [3]
    assert all(torch.equal(again[name], straight[name]) for name in straight)
    assert not (folder / PARTIAL).exists()


def test_dropout_is_drawn_alike_each_time(shard_set: Path, tmp_path: Path) -> None:
    """With dropout between layers, from whatever state torch's generator is in."""
    model = {"arch": "deeplabv3plus", "output_stride": 16, "decoder_channels": 8, "dropout": 0.5}
    config = recipe(**{**SECTIONS, "model": {**SECTIONS["model"], **model}, "loop": {"steps": 1, "batch": 4}})
    trainer(shard_set, tmp_path / "run", config).run()
    run, found = open_run(tmp_path / "run"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(checkpoint.load(exact_norms(run, stream_of(run), WORLD)[0]).model)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def _partial(run: Run, folder: Path) -> None:
    """Leave a partial file after two of three batches."""

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_statistics, "SAVE_EVERY", 2)
        with pytest.raises(KeyboardInterrupt):
            exact_norms(run, stream_of(run), WORLD, stop)
    assert (folder / PARTIAL).is_file()


@pytest.mark.parametrize("what", ["torn", "of another checkpoint"])
def test_a_partial_file_that_does_not_belong_is_passed_over(folder: Path, what: str) -> None:
    run = open_run(folder)
    if what == "torn":
        (folder / PARTIAL).write_bytes(b"PK\x03\x04torn")
    else:
        _partial(run, folder)
        kept = torch.load(folder / PARTIAL, weights_only=True)
        torch.save({**kept, "of": "0" * 64}, folder / PARTIAL)
    told: list[int] = []
    exact_norms(run, stream_of(run), WORLD, lambda done, of: told.append(done))
    assert told == [1, 2, 3]


def test_parts_are_equal_and_of_an_epoch_not_begun() -> None:
    parts = epoch_parts(step=4, batch=4, accumulate=2, samples=11)
    assert [len(part) for part in parts] == [1, 2, 2, 2, 2, 2]
    assert [place for part in parts for place in part] == list(range(22, 33))
    assert epoch_parts(0, 4, 1, 8) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(len(part) for part in epoch_parts(300, 16, 1, 367)) == [15, *[16] * 22]
    assert [len(p) for p in epoch_parts(1, 64, 1, 9)] == [9]


def test_evaluation_takes_them_and_says_so(call: Call, folder: Path, shard_set: Path, tmp_path: Path) -> None:
    def scored(*more: object) -> tuple[str, dict[str, Any]]:
        out = tmp_path / "s.json"
        words = ("seg-eval", "--run", folder, "--shards", shard_set, "--json", out, "--report", tmp_path / "r")
        code, text, err = call(*words, *more)
        assert (code, err.count("error")) == (0, 0)
        return text, json.loads(out.read_text())

    text, before = scored()
    assert "BatchNorm statistics: moving averages\n" in text
    code, out, _ = call("seg-norms", "--run", folder)
    assert code == 0
    assert "exact averages over 11 training samples" in out
    text, after = scored()
    assert "BatchNorm statistics: exact averages over 11 training samples" in text
    assert after["norms"] == "exact averages over 11 training samples"
    assert after["per_class"] != before["per_class"]
    text, moving = scored("--moving-norms")
    assert (moving["per_class"], moving["norms"]) == (before["per_class"], "moving averages")


def test_statistics_of_an_earlier_step_are_not_taken(folder: Path) -> None:
    run = open_run(folder)
    exact_norms(run, stream_of(run), WORLD)
    exact = load_model(run, WORLD.device)[0].state_dict()
    saved = checkpoint.load(folder / checkpoint.NAME)
    checkpoint.save(folder / checkpoint.NAME, checkpoint.Checkpoint(**{**vars(saved), "step": 5}))
    now = load_model(run, WORLD.device)[0].state_dict()
    assert any(not torch.equal(now[name], exact[name]) for name in now)
    assert all(torch.equal(now[name], saved.model[name]) for name in saved.model)
    assert "of another step: run seg-norms again" in checkpoint.norms_of(folder)


def test_shards_that_moved_and_shards_of_others(call: Call, folder: Path, shard_set: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(shard_set, tmp_path / "elsewhere"))
    code, _, err = call("seg-norms", "--run", folder, "--shards", moved, "--quiet")
    assert (code, err) == (0, "")
    assert (folder / checkpoint.NORMS).is_file()
    code, _, err = call("seg-norms", "--run", folder, "--shards", moved, "--shards", shard_set)
    assert code == 2
    assert "trained on other shard sets" in err
    code, _, err = call("seg-norms", "--run", tmp_path)
    assert code == 2
    assert "no run in" in err


@pytest.mark.parametrize(
    ("model", "message"),
    [({"norm": "group", "norm_momentum": "none"}, "it has none"), ({"freeze_norm": True}, "all are frozen")],
)
def test_networks_without_moving_statistics_are_refused(
    shard_set: Path, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    config: Recipe = recipe(**{**SECTIONS, "model": {**SECTIONS["model"], **model}, "loop": {"steps": 1, "batch": 2}})
    trainer(shard_set, tmp_path / "run", config).run()
    run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        exact_norms(run, stream_of(run), WORLD)


def test_sums_of_one_batch_by_hand() -> None:
    own = norm_statistics.Sums()
    own.add(torch.arange(24.0).view(2, 3, 2, 2))
    assert own.values == 8
    assert own.mean.tolist() == [8 * 7.5, 8 * 11.5, 8 * 15.5]
    spread = [0, 1, 2, 3, 12, 13, 14, 15]
    expected = sum((x - 7.5) ** 2 for x in spread) / 7
    assert all(math.isclose(float(v), 8 * expected) for v in own.variance)


def rank_of(rank: int, port: int, folder: Path, results: Any) -> None:
    """What one of several processes does."""
    torch.set_num_threads(1)
    run, size = open_run(folder), 2
    process_group.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_statistics, "SAVE_EVERY", 1)
        patch.setattr(norm_statistics, "_with_statistics", lambda saved, sums, of, samples: results.put(sums) or saved)
        samples = exact_norms(run, stream_of(run), World(torch.device("cpu"), rank, size), lambda *n: told.append(n))[1]
    results.put((rank, told, samples))
    process_group.destroy_process_group()


def on_two_ranks(folder: Path) -> tuple[dict[str, Any], list[tuple[int, list[tuple[int, int]], int]]]:
    """The sums that rank 0 would write, and what each rank was told."""
    context, port = multiprocessing.get_context("fork"), free_port()
    results = context.Queue()
    processes = [context.Process(target=rank_of, args=(rank, port, folder, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    sums = [entry for entry in found if isinstance(entry, dict)]
    assert len(sums) == 1
    return sums[0], sorted(entry for entry in found if isinstance(entry, tuple))


def alone(run: Run) -> dict[str, Any]:
    """The sums of one process."""
    kept: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_statistics, "_with_statistics", lambda saved, sums, of, samples: kept.append(sums) or saved)
        exact_norms(run, stream_of(run), WORLD)
    return kept[0]


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
def test_two_ranks_share_the_batches_and_find_the_same(folder: Path) -> None:
    """Stopped and called again, each rank goes on from its own sums; those of another number of ranks are no use."""
    run = open_run(folder)
    expected = alone(run)
    found, told = on_two_ranks(folder)
    assert told == [(0, [(1, 2), (2, 2)], 11), (1, [(1, 1)], 11)]
    assert found.keys() == expected.keys()
    for name, own in expected.items():
        assert found[name].values == own.values > 0
        torch.testing.assert_close(found[name].mean, own.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[name].variance, own.variance, rtol=1e-12, atol=1e-12)
    assert (folder / checkpoint.NORMS).is_file()
    assert not list(folder.glob("*.partial.pt"))
    again = _stopped_as_rank_0(run, folder)
    found, told = on_two_ranks(folder)
    assert told == [(0, [(2, 2)], 11), (1, [(1, 1)], 11)]
    assert all(torch.equal(found[name].mean, again[name]) for name in again)


def _stopped_as_rank_0(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    """Leave the file of rank 0 of 2 after one of its two batches; the means that two ranks find in one go."""
    means = {name: own.mean for name, own in on_two_ranks(folder)[0].items()}

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_statistics, "SAVE_EVERY", 1)
        with pytest.raises(KeyboardInterrupt):
            exact_norms(run, stream_of(run), World(torch.device("cpu"), 0, 2), stop)
    assert (folder / "norms.rank-0-of-2.partial.pt").stat().st_size < 200_000
    return means


def command_of(rank: int, port: str, folder: Path) -> None:
    """The command as torchrun starts it; what it says goes to a file."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.argv = ["seg-norms", "--run", str(folder), "--device", "cpu"]
    with Path(f"{folder}.said{rank}").open("w") as sys.stdout:
        cli_norms.main()


def test_the_command_under_torchrun(folder: Path) -> None:
    context, port = multiprocessing.get_context("fork"), str(free_port())
    processes = [context.Process(target=command_of, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    said = [Path(f"{folder}.said{rank}").read_text() for rank in range(2)]
    assert "exact averages over 11 training samples" in said[0]
    assert said[1] == ""
    norms, run = checkpoint.load(folder / checkpoint.NORMS).model, open_run(folder)
    expected = checkpoint.load(exact_norms(run, stream_of(run), WORLD)[0]).model
    for name, value in expected.items():
        torch.testing.assert_close(norms[name], value, rtol=1e-6, atol=1e-7)


def test_runs_of_mixtures_are_refused(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(folder)
    mixed = run.recipe.model_copy(update={"mixture": object()})
    monkeypatch.setattr("train.run.open_run", lambda folder: replace(run, recipe=mixed))
    code, _, err = call("seg-norms", "--run", folder)
    assert code == 2
    assert "has a mixture of sources: seg-norms takes runs of one source" in err
