"""Several processes: the same samples, the same losses and the same weights as one with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.errors import SettingsError, UserError
from tests.train.conftest import recipe
from tests.train.test_loop import FROZEN, losses, trainer, weights
from train.distributed import World, choose_device, enough_memory, join
from train.runlog import read_log

ROOT = Path(__file__).resolve().parents[2]

RANK = """
import json, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.train.conftest import recipe
from train.distributed import join
from train.loop import Trainer
from train.run import Run, create
from train.sources import open_sources
from train.stream import Stream
shard_set, folder, sections = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
config = recipe(**sections)
with join("cpu") as world:
    sources = open_sources([shard_set], config)
    run = Run(folder, config, sources.classes, sources.describe())
    if world.first:
        create(run)
    world.wait()
    made = Trainer(run, Stream(sources, config), world, quiet=True)
    seen, accumulate = [], made._accumulate
    def watched(*args):
        out = accumulate(*args)
        seen.append(out[2])
        return out
    made._accumulate = watched
    made.run()
    Path(f"{folder}.keys{world.rank}").write_text(json.dumps(seen))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_ranks(shard_set: Path, folder: Path, sections: dict[str, object], size: int) -> None:
    """Train in `size` processes, as torchrun starts them."""
    port = str(free_port())
    processes = []
    for rank in range(size):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RANK, str(shard_set), str(folder), json.dumps(sections)]
        processes.append(subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]


def test_two_processes_equal_one(shard_set: Path, tmp_path: Path) -> None:
    sections = {
        **FROZEN,
        "data": {"scales": ["1/2", "1/4"], "workers": 0},
        "augment": {"crop": [32, 48]},
        "loop": {"steps": 5, "batch": 4, "accumulate": 2, "eval_every": 5},
    }
    run_ranks(shard_set, tmp_path / "two", sections, 2)
    one = trainer(shard_set, tmp_path / "one", recipe(**sections))
    one.run()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    keys = [json.loads(Path(f"{tmp_path / 'two'}.keys{rank}").read_text()) for rank in range(2)]
    order = [one.stream.item(position).key for position in range(20)]
    assert [key for step in range(5) for rank in keys for key in rank[step]] == order
    first, second = ([x["eval"] for x in read_log(tmp_path / name) if "eval" in x] for name in ("one", "two"))
    assert first[0]["pixel_accuracy"] == pytest.approx(second[0]["pixel_accuracy"], abs=0.01)


def test_ranks_evaluate_the_same_network(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm's statistics follow each rank's own samples: all ranks score with those that rank 0 saves."""
    sent: list[tuple[torch.Tensor, int]] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, source: sent.append((tensor, source)))
    norm = torch.nn.BatchNorm2d(2)
    World(torch.device("cpu"), 1, 2).share_buffers(norm)
    assert [(id(tensor), source) for tensor, source in sent] == [(id(buffer), 0) for buffer in norm.buffers()]
    shared: list[torch.nn.Module] = []
    monkeypatch.setattr(World, "share_buffers", lambda self, model: shared.append(model))
    made = trainer(shard_set, tmp_path / "run", recipe(loop={"steps": 2, "eval_every": 2}))
    made.run()
    assert shared == [made.model]


def test_a_world_without_its_variables_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingsError, match="WORLD_SIZE is 2, RANK is not set: start with torchrun"), join("cpu"):
        pass


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"),
        MemoryError("Unable to allocate"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    with pytest.raises(UserError, match=r"memory.*: less of it$"), enough_memory("less of it"):
        raise error
    with pytest.raises(RuntimeError, match="a fault"), enough_memory("less of it"):
        raise RuntimeError("a fault")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(SettingsError, match="no CUDA device was found; use --device cpu"):
        choose_device("cuda")
    with pytest.raises(SettingsError, match="expected auto, cpu or cuda"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"


def test_alone_there_is_nothing_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        assert world.sum([torch.tensor(2.5), 1]) == [2.5, 1.0]
        model = torch.nn.Linear(1, 1)
        assert world.wrap(model) is model
    assert not World(torch.device("cpu"), 1, 2).first
