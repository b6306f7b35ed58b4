"""The feed's faults: decoders that raise, workers that are killed or leave; what is said, saved and gone on from."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import FormatError, SettingsError
from tests.train.conftest import Call, recipe
from tests.train.test_loop import LONG, equal, losses, trainer, weights
from tests.train.toy_stream import CPU, data_threads, numbers, toy
from train import checkpoint, feed
from train.batch import Batch, Item
from train.distributed import World
from train.feed import DataWorkerError, batches
from train.loop import Trainer
from train.run import Run
from train.runlog import read_log
from train.sources import open_sources
from train.stream import Stream

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoder_that_raises_in_a_thread(
    shard_set: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its place in the order: the steps before it are done, the state after them is saved, the rest goes on."""
    straight = trainer(shard_set, tmp_path / "straight", recipe(loop={"steps": 5}))
    straight.run()
    config = recipe(data={"workers": workers, "loader": "threads"}, loop={"steps": 5})
    made = trainer(shard_set, tmp_path / "run", config)
    item = Stream.item

    def broken(self: Stream, position: int) -> Item:
        if position == 14:
            raise FormatError("shard-00001.tar", "damaged", "a.png")
        return item(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "item", broken)
        with pytest.raises(FormatError, match=r"shard-00001.tar \[a.png\]: damaged"):
            made.run()
    assert data_threads() == []
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == 3
    trainer(shard_set, tmp_path / "run", config, resume=True).run()
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_batch_that_ranks_do_not_divide_is_refused_before_anything_is_written(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(loop={"batch": 4})
    opened = open_sources([shard_set], config)
    run = Run(tmp_path / "run", config, opened.classes, opened.describe())
    with pytest.raises(SettingsError, match=r"loop.batch = 4: expected a multiple of 3 processes x 1"):
        Trainer(run, Stream(opened, config), World(torch.device("cpu"), 0, 3), quiet=True)


# --- workers that end too early ----------------------------------------------------------------------------------


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children()]


def test_a_worker_killed_within_a_step_lets_it_end(shard_set: Path, tmp_path: Path) -> None:
    """Half way through the optimiser's step nothing may interrupt: what is saved is a whole step, the data's last."""
    straight = trainer(shard_set, tmp_path / "straight", recipe(**LONG, loop={"steps": 8}))
    straight.run()
    config = recipe(**{**LONG, "data": {**LONG["data"], "workers": 1, "loader": "processes"}}, loop={"steps": 8})
    made = trainer(shard_set, tmp_path / "run", config)
    step = made.optimiser.step

    def killing(*args: Any) -> Any:
        if made.step == 2:
            for pid in children():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)  # the signal of its end comes here
        return step(*args)

    made.optimiser.step = killing  # type: ignore[method-assign]
    with pytest.raises(DataWorkerError, match=r"was killed, as a rule by the system for lack of memory.*--resume"):
        made.run()
    saved = checkpoint.load(tmp_path / "run" / checkpoint.NAME).step
    assert 3 <= saved < 8
    assert children() == []
    trainer(shard_set, tmp_path / "run", config, resume=True).run()
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))


@pytest.mark.parametrize("waiting", [False, True])
def test_a_worker_that_leaves_by_itself(waiting: bool) -> None:
    """Found at once by a loop that comes for its next batch, after some seconds by one that waits already."""

    go = multiprocessing.get_context("fork").Event()

    def leaves(position: int) -> None:
        if position >= 8 and multiprocessing.parent_process() is not None:
            go.wait(60)  # until the batches before are taken
            os._exit(7)

    with batches(toy(1, "processes", leaves), CPU) as source:
        assert numbers([next(source), next(source)]) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        if waiting:
            threading.Timer(0.3, go.set).start()
        else:
            (worker,) = children()
            go.set()
            os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # it has ended, and others may still learn so
        began = time.monotonic()
        with pytest.raises(DataWorkerError, match=r"ended with exit code 7; look above .* data.loader = \"threads\""):
            next(source)
        assert waiting or time.monotonic() - began < 4  # torch itself looks every five seconds
    assert children() == []


def test_a_connection_that_breaks_is_a_worker_that_ends() -> None:
    """A killed process lets go of its sockets a moment before it counts as ended."""

    class Broken:
        def __next__(self) -> Batch:
            worker.kill()
            raise ConnectionResetError("Connection reset by peer")

    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    source = feed._Processes.__new__(feed._Processes)
    source._source, source._workers = Broken(), [worker]
    with pytest.raises(DataWorkerError, match="was killed"):
        source.next()


def test_a_process_tries_nothing_more_of_a_batch_after_an_error() -> None:
    """Each sample may take minutes to fail, where a server does not answer."""
    tried = multiprocessing.get_context("fork").Array("b", 64)

    def fails(position: int) -> None:
        tried[position] += 1
        if position == 5:
            raise FormatError("shard-00001.tar", "damaged")

    with batches(toy(1, "processes", fails), CPU) as source:
        assert numbers([next(source)]) == [[0, 1, 2, 3]]
        with pytest.raises(FormatError, match="damaged"):
            next(source)
    assert list(tried[:8]) == [1] * 6 + [0, 0]


def test_what_is_said_of_signals_and_shared_memory() -> None:
    assert "was ended by signal 11" in str(feed._died(5, -11, 2, ""))
    assert "/dev/shm larger" in str(
        feed._died(5, -7, 2, "It is possible that dataloader's workers are out of shared memory")
    )
    killed = str(feed._died(5, -9, 3, ""))
    assert "lower data.workers (now 3)" in killed
    assert "\n" not in killed


def test_other_errors_of_a_worker_stay_what_they_are() -> None:
    def fault(position: int) -> None:
        raise ZeroDivisionError("a fault")

    with batches(toy(1, "processes", fault), CPU) as source, pytest.raises(ZeroDivisionError, match="a fault"):
        next(source)


def test_seg_train_with_a_killed_worker(shard_set: Path, tmp_path: Path) -> None:
    """Real processes: one line, exit code 2, within seconds; resumed, the losses are those of a run without it."""
    folder, file = tmp_path / "run", tmp_path / "tiny.toml"
    config = recipe(data={"workers": 2, "loader": "processes"}, loop={"steps": 100000, "log_every": 1})
    text = [f"{name} = {json.dumps(getattr(config, name))}" for name in ("name", "description")]
    for section in ("data", "model", "optim", "loop", "eval"):
        given = getattr(config, section).model_dump(mode="json", exclude_unset=True)
        text += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in given.items())]
    file.write_text("\n".join(text) + "\n")
    words = ["--shards", shard_set, "--out", folder, "--recipe", file, "--device", "cpu", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train.cli", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        pid = _a_worker_of(process.pid, folder)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()  # nothing where it has ended
    assert process.returncode == 2, said
    assert time.monotonic() - began < 60  # 5 s where the machine has nothing else to do
    assert len(said.strip().splitlines()) == 1
    assert f"data worker process {pid} was killed" in said
    steps = [line for line in read_log(folder) if "loss" in line]
    saved = checkpoint.load(folder / checkpoint.NAME).step
    assert saved == len(steps) >= 3
    straight = trainer(shard_set, tmp_path / "straight", recipe(loop={"steps": 100000}))
    short = straight._step

    def ends(timed: Any, *args: Any) -> Any:
        if straight.step == saved:
            raise KeyboardInterrupt
        return short(timed, *args)

    straight._step = ends  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        straight.run()
    assert losses(tmp_path / "straight")[:saved] == [line["loss"] for line in steps]


def _a_worker_of(parent: int, folder: Path) -> int:
    """A data worker of a run, once that has logged three steps."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if sum("loss" in line for line in read_log(folder)) >= 3:
            return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])
        time.sleep(0.02)
    raise AssertionError("no step within two minutes")
