"""Runs that are stopped at bad moments, begun twice, or gone on with elsewhere: what is kept, and what is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.errors import FormatError, UserError
from tests.train.conftest import Call, recipe
from tests.train.test_cli import RECIPE
from tests.train.test_loop import losses, stop_at, trainer
from tests.train.test_mixed_loop import STEADY
from tests.train.test_mixed_loop import trainer as mixed_trainer
from tests.train.test_mixed_stream import make_sets as make_sets  # the fixture "sets"
from tests.train.test_mixed_stream import mixed
from train import checkpoint, loop
from train.loop import Trainer
from train.run import alone

ROOT = Path(__file__).resolve().parents[2]


def words(shard_set: Path, folder: Path) -> list[object]:
    """A run of three steps, by its command."""
    (folder / "tiny.toml").write_text(RECIPE)
    return ["seg-train", "--shards", shard_set, "--recipe", folder / "tiny.toml", "--out", folder / "run", "--quiet"]


def test_what_was_trained_is_saved_before_it_is_scored(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring fails (or is killed) after the third step and after the last: neither costs a step."""
    for steps, at in ((5, 3), (3, 3)):
        made = trainer(shard_set, tmp_path / f"{steps}", recipe(loop={"steps": steps, "eval_every": 3}))

        def broken(*args: Any) -> Any:
            raise FormatError("val-00000.tar", "damaged")

        monkeypatch.setattr(loop, "evaluate", broken)
        with pytest.raises(FormatError, match="damaged"):
            made.run()
        assert checkpoint.load(tmp_path / f"{steps}" / checkpoint.NAME).step == at


def test_too_little_memory_to_score_is_one_line(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr(loop, "evaluate", full)
    code, _, err = call(*words(shard_set, tmp_path), "--set", "loop.eval_every=2")
    assert (code, err.count("\n")) == (2, 1), err
    assert "out of memory: use a smaller model or batch, or score later" in err
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == 2


def test_a_second_ctrl_c_says_how_to_go_on(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        code, _, err = call(*words(shard_set, tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    said = "stopped; run the same command again, with --resume if it has begun to train, to go on"
    assert (code, err.strip()) == (1, said)


STALLED = """
import sys, threading
from pathlib import Path
from tests.train.conftest import recipe
from tests.train.toy_stream import CPU, toy
from train.feed import batches
def stalls(position):
    if position == 6:
        print("stalled", flush=True)
        threading.Event().wait(1000)
try:
    with batches(toy(work=stalls), CPU) as source:
        list(source)
except KeyboardInterrupt:
    print("out", flush=True)
    import os
    os._exit(3)
"""


def test_ctrl_c_waits_for_no_thread() -> None:
    """One that waits for a server that does not answer, say."""
    process = subprocess.Popen([sys.executable, "-c", STALLED], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stalled\n"
        time.sleep(0.2)  # until the loop waits for that batch
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120)[0] == "out\n"
        assert process.returncode == 3
    finally:
        process.kill()  # nothing where it has ended


# --- two at once -------------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from train.run import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_a_second_process_in_one_folder_is_refused(call: Call, shard_set: Path, tmp_path: Path) -> None:
    """Until the first has ended, however it does."""
    given = words(shard_set, tmp_path)
    assert call(*given, "--set", "loop.steps=1")[0] == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path / "run"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        code, _, err = call(*given, "--set", "loop.steps=1", "--resume")
        assert (code, err.count("\n")) == (2, 1), err
        assert f"another process trains in {tmp_path / 'run'}: wait until it ends, or stop it" in err
        assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()) == before
    finally:
        process.kill()
        process.communicate()
    assert call(*given, "--set", "loop.steps=1", "--resume")[0] == 0


def test_a_run_holds_its_folder_while_it_trains(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one and a resumed one."""
    run, found = Trainer.run, []

    def watched(self: Trainer) -> Any:
        child = subprocess.run(
            [sys.executable, "-c", HOLDS, tmp_path / "run"], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        found.append("another process trains in" in child.stderr)
        return run(self)

    monkeypatch.setattr(Trainer, "run", watched)
    stop = ["--set", "loop.steps=2"]
    assert call(*words(shard_set, tmp_path), *stop)[0] == 0
    (tmp_path / "run" / checkpoint.NAME).unlink()
    assert call(*words(shard_set, tmp_path), *stop, "--resume")[0] == 0
    assert found == [True, True]


def test_a_file_system_without_locks_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def none(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "run.json").touch()
    monkeypatch.setattr(fcntl, "lockf", none)
    with alone(tmp_path):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(fcntl, "lockf", lambda *args: (_ for _ in ()).throw(PermissionError(errno.EACCES, "held")))
    with pytest.raises(UserError, match="another process trains"), alone(tmp_path):
        pass


# --- on another machine ------------------------------------------------------------------------------------------


def test_a_mixture_goes_on_with_more_parts_on_fewer_ranks(sets: dict[str, Path], tmp_path: Path) -> None:
    """One part a process takes as many micro-batches as there were ranks: loop.accumulate may change on resume."""
    mixed_trainer(sets, tmp_path / "straight", mixed(4, 4, 2, **STEADY)).run()
    first = mixed_trainer(sets, tmp_path / "run", mixed(4, 4, 2, **STEADY))
    stop_at(first, 2)
    assert first.run().step == 2
    more = mixed(4, 4, 2, **STEADY, loop={"accumulate": 4})
    assert mixed_trainer(sets, tmp_path / "run", more, resume=True).run().step == 4
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "straight"), rtol=1e-4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
