"""An update that is killed at any moment: no manifest names what is not there, and the same command ends it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.build import publish, update
from prep.build.journal import Journal
from prep.build.reuse import ReusingStream
from shards import manifest, published
from shards.errors import FormatError, SettingsError
from shards.manifest import load_manifest
from shards.verify import check_file
from tests.prep.builds import SegPrep, run_build, tree
from tests.prep.raw_edits import Raw
from tests.prep.test_resume import spoil

OPTIONS: dict[str, Any] = {"scales": "1/2", "shard_size": 8_000}
STRIDES = {"webdataset": 9, "zarr": 45}  # a third of the steps, and a fifteenth; all were tried once


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Steps:
    """Counts what a build does to the disk, and kills at one of these steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> None:
        self.names: list[str] = []
        self._kill_at = kill_at
        for owner, name in (
            (Journal, "append"),
            (ReusingStream, "keep"),
            (ReusingStream, "add"),
            (ReusingStream, "finish"),
            (Path, "replace"),
            (Path, "unlink"),
            (shutil, "rmtree"),
            (publish, "pack_store"),
            (update, "pack_store"),
            (update, "sync_folder"),
            (publish, "publish_bytes"),
            (update, "publish_bytes"),
            (manifest, "publish_bytes"),
            (published, "publish_bytes"),
        ):
            monkeypatch.setattr(owner, name, self._step(name, getattr(owner, name)))

    def _step(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.names.append(name)
            if len(self.names) == self._kill_at and self._kill_at % 2:
                raise Killed
            result = original(*args, **options)
            if self._kill_at is not None and len(self.names) >= self._kill_at:
                raise Killed
            return result

        return wrapped


class Case:
    """A set, its source after some changes, and what a build from scratch makes of that."""

    def __init__(self, folder: Path, format: str) -> None:
        self.options = {**OPTIONS, "format": format}
        self.raw = Raw(folder / "raw").fill({"train": 10, "val": 2})
        self.before = folder / "before"
        self.build(self.before)
        train = self.raw.splits["train"]
        self.raw.splits["train"] = {"first": self.raw.new(), **train, "f0060": self.raw.new(), "f0080": (b"", b"")}
        if format == "webdataset":
            self.raw.splits["val"]["g"] = self.raw.new()
        self.raw.write()
        self.build(folder / "scratch")
        self.after = tree(folder / "scratch")
        before = tree(self.before)
        tars = [name for name in self.after if name.endswith(".tar")]
        renamed = [
            name for name in tars if self.after[name] in before.values() and before.get(name) != self.after[name]
        ]
        assert renamed or format == "zarr"

    def build(self, out: Path, **options: Any) -> Any:
        return run_build("camvid", self.raw.root, out, **self.options, **options)

    def copy(self, out: Path) -> Path:
        shutil.copytree(self.before, out)
        return out


@pytest.fixture(scope="module", params=["webdataset", "zarr"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), request.param)


def check_what_readers_see(case: Case, out: Path) -> bool:
    """Whether a manifest is there; each of its files must be as it says, and be the old set's or the new one's."""
    if not (out / "manifest.json").exists():
        return False
    found = load_manifest(out)
    assert not [problem for file in found.all_files() if (problem := check_file(out, file))]
    now = {file.path: (out / file.path).read_bytes() for file in found.all_files()}
    assert any(now.items() <= whole.items() for whole in (tree(case.before), case.after))
    return True


@pytest.mark.parametrize("part", range(3))
def test_a_kill_at_each_step(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        case.build(case.copy(tmp_path / "counted"), update=True)
    assert tree(tmp_path / "counted") == case.after
    count = len(steps.names)
    assert count > 40
    for number in range(1 + part, count + 1, STRIDES[case.options["format"]]):
        out = case.copy(tmp_path / f"out{number}")
        with monkeypatch.context() as patch:
            Steps(patch, number)
            with pytest.raises(Killed):
                case.build(out, update=True)
        readable = check_what_readers_see(case, out)
        try:
            case.build(out, update=readable)  # where the old set has gone, --update is no longer needed
        except Exception as error:
            raise AssertionError(f"killed at step {number}, {steps.names[number - 1]}: {error!r}") from error
        assert tree(out) == case.after, f"killed at step {number}, {steps.names[number - 1]}"
        assert not (out / ".build").exists()
        shutil.rmtree(out)


def test_kills_again_and_again(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, out, kills = random.Random(11), case.copy(tmp_path / "out"), 0
    for _ in range(8):
        with monkeypatch.context() as patch:
            Steps(patch, draw.randint(5, 25))
            with contextlib.suppress(Killed):
                case.build(out, update=True)
                break
            kills += 1
            check_what_readers_see(case, out)
    assert kills > 2
    case.build(out, update=True)
    assert tree(out) == case.after


def test_an_update_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 20})
    run_build("camvid", raw.root, tmp_path / "out", **OPTIONS)
    raw.splits["train"] = {"first": raw.new(), **raw.splits["train"]}
    raw.write()
    with monkeypatch.context() as patch:
        kept = iter(range(9))
        original = Journal.append

        def append(self: Journal, line: Any) -> None:
            original(self, line)
            if next(kept) == 3:
                raise Killed

        patch.setattr(Journal, "append", append)
        with pytest.raises(Killed):
            run_build("camvid", raw.root, tmp_path / "out", update=True, **OPTIONS)
    assert load_manifest(tmp_path / "out").splits["train"].samples == 20
    with pytest.raises(SettingsError, match="--update"):
        run_build("camvid", raw.root, tmp_path / "out", **OPTIONS)
    outcome = run_build("camvid", raw.root, tmp_path / "out", update=True, **OPTIONS)
    assert outcome.resumed == 3
    assert outcome.changes["train"].added == 1
    run_build("camvid", raw.root, tmp_path / "scratch", **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


LOST = [("train-sources.jsonl", damage) for damage in ("shorter", "longer", "other bytes", "gone", "empty")]


@pytest.mark.parametrize(("name", "damage"), [*LOST, ("train-1-2-00000.tar", "gone")])
def test_the_old_set_is_no_proof_of_what_an_update_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    """Up to the kill the old list of sources is the new one, byte for byte, and yet it is not the update's own."""
    raw = Raw(tmp_path / "raw").fill({"train": 26})
    options = {**OPTIONS, "shard_size": 4_000}
    run_build("camvid", raw.root, tmp_path / "out", **options)
    if name.endswith(".tar"):  # a first shard that is as long as the old one, and is not it
        raw.splits["train"] = {f"g{stem}": pair for stem, pair in raw.splits["train"].items()}
    else:
        raw.splits["train"]["f0999"] = raw.new()
    raw.write()
    with monkeypatch.context() as patch:
        append, kept = Journal.append, iter(range(99))
        patch.setattr(Journal, "append", lambda self, line: killed_after(append(self, line), next(kept) == 2))
        with pytest.raises(Killed):
            run_build("camvid", raw.root, tmp_path / "out", update=True, **options)
    assert (tmp_path / "out" / "train" / "sources.jsonl").exists()
    spoil(tmp_path / "out" / ".build" / name, damage)
    outcome = run_build("camvid", raw.root, tmp_path / "out", update=True, **options)
    assert (outcome.resumed == 2) == (damage == "longer")
    run_build("camvid", raw.root, tmp_path / "scratch", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


def killed_after(_: None, now: bool) -> None:
    """The end of the process."""
    if now:
        raise Killed


def test_an_update_that_finds_another_source_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 8})
    run_build("camvid", raw.root, tmp_path / "out", **OPTIONS)
    for _ in range(2):
        raw.splits["train"] = {f"g{raw.drawn}": raw.new(), **raw.splits["train"]}
        raw.write()
        with monkeypatch.context() as patch:
            Steps(patch, 12)
            with pytest.raises(Killed):
                run_build("camvid", raw.root, tmp_path / "out", update=True, **OPTIONS)
    outcome = run_build("camvid", raw.root, tmp_path / "out", update=True, **OPTIONS)
    assert outcome.changes["train"].added == 2
    run_build("camvid", raw.root, tmp_path / "scratch", **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


def stopped_half_way(case: Case, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An update that was killed when the old manifest had gone and nothing was moved."""
    case.copy(out)
    with monkeypatch.context() as patch:
        patch.setattr(update, "_moves", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            case.build(out, update=True)
    assert not (out / "manifest.json").exists()
    return out


def test_a_kept_file_that_is_lost_half_way_is_an_error(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped_half_way(case, tmp_path / "out", monkeypatch)
    if case.options["format"] == "zarr":
        shutil.rmtree(out / "val" / "1-2" / "val-1-2.zarr")
    else:
        (out / "train" / "1-2" / "train-1-2-00001.tar").unlink()
    with pytest.raises(FormatError, match="start over with --fresh"):
        case.build(out, update=True)
    case.build(out, fresh=True)
    assert tree(out) == case.after


def test_a_strangers_file_half_way_stays(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped_half_way(case, tmp_path / "out", monkeypatch)
    (out / "train" / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"train/notes\.txt"):
        case.build(out, update=True)
    (out / "train" / "notes.txt").unlink()
    case.build(out, update=True)
    assert tree(out) == case.after


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_sigkill_at_random_moments(case: Case, tmp_path: Path) -> None:
    """Real kills, of forked processes that have everything imported."""
    draw, killed, began = random.Random(9), 0, time.monotonic()
    case.build(case.copy(tmp_path / "whole"), update=True)
    took = time.monotonic() - began
    for number, delay in enumerate(draw.uniform(0.0, 0.8 * took) for _ in range(3)):
        out = case.copy(tmp_path / f"out{number}")
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                case.build(out, update=True)
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        check_what_readers_see(case, out)
        case.build(out, update=True)
        assert tree(out) == case.after
    assert killed


def test_two_updates_at_a_time_are_refused(case: Case, tmp_path: Path) -> None:
    from prep.build import outdir

    out = case.copy(tmp_path / "out")
    with outdir.locked(out), pytest.raises(SettingsError, match="another seg-prep is building into"):
        case.build(out, update=True)
    assert check_what_readers_see(case, out)


def test_the_command_says_what_it_did(tmp_path: Path, seg_prep: SegPrep) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 6})
    command = ["camvid", "--root", raw.root, "--out", tmp_path / "out", "--scales", "1"]
    assert seg_prep(*command)[0] == 0
    raw.splits["train"]["g"] = raw.new()
    raw.write()
    assert "bring it up to date with --update" in seg_prep.refused(*command)
    _, text, _ = seg_prep(*command, "--update")
    assert "train: 6 samples unchanged, 1 added, 0 changed, 0 removed; 0 shards kept, 1 rewritten" in text
    _, text, _ = seg_prep(*command, "--update")
    assert "is up to date with its source (train 7 samples); nothing to do" in text
