"""One rank of the runs of test_mixed_loop.py: python -m tests.train.mixed_ranks JOBS, under torchrun's variables.

JOBS is JSON: a list of {"folder", "words" (of --shards), "sections" (of the recipe)}; they run one after the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from tests.train.conftest import recipe
from train.distributed import World, join
from train.loop import Trainer
from train.mixed_stream import make_stream
from train.run import Run, create
from train.sources import open_all


def main() -> None:
    torch.set_num_threads(1)
    with join("cpu") as world:
        check_gradients(world)
        for job in json.loads(sys.argv[1]):
            run_one(job, world)


def run_one(job: dict, world: World) -> None:
    """Train, and write what this rank remembers."""
    config, folder = recipe(**job["sections"]), Path(job["folder"])
    sources = open_all(job["words"], config)
    run = Run(folder, config, sources.classes, sources.describe(), None, sources.space)
    if world.first:
        create(run)
    world.wait()
    made = Trainer(run, make_stream(sources, config), world, quiet=True)
    made.run()
    bank = made.model.bank
    Path(f"{folder}.bank{world.rank}").write_text(json.dumps(bank.count.tolist()))


def check_gradients(world: World) -> None:
    """Parameters that one rank uses, that both use, that none uses."""
    ours, shared, unused = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    theirs = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    (ours if world.first else theirs).grad = torch.ones_like(ours if world.first else theirs)
    shared.grad = torch.full((3,), float(world.rank + 1))
    world.sum_gradients([ours, theirs, shared, unused])
    assert ours.grad.tolist() == [1.0] * 3
    assert theirs.grad.tolist() == [[1.0, 1.0]] * 2
    assert shared.grad.tolist() == [3.0] * 3
    assert unused.grad is None
    own = [torch.full((2, 2), float(world.rank + 1)), torch.full((3,), float(world.rank + 1), dtype=torch.float64)]
    world.share_all(own)
    assert [tensor.tolist() for tensor in own] == [[[1.0, 1.0]] * 2, [1.0] * 3]


if __name__ == "__main__":
    main()
