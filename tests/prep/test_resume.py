"""A build that is interrupted anywhere ends in the same bytes; a folder of another build is left alone."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prep.build import outdir, publish, worker
from prep.build.journal import Journal, read_journal
from shards.errors import SettingsError
from shards.shardfile import ShardRecord, ShardStream
from tests.fakes import fake_camvid
from tests.prep.builds import SegPrep, run_build, tree

OPTIONS = {"scales": "1,1/2", "shard_size": 22_000}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fake_camvid(tmp_path_factory.mktemp("raw") / "cv", {"train": 13, "val": 9})
    next((root / "train").iterdir()).write_bytes(b"")  # quarantine entries must survive too
    (root / "valannot").joinpath(sorted(p.name for p in (root / "valannot").iterdir())[5]).unlink()
    return root


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a build that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_build("camvid", root, out, **OPTIONS)
    return tree(out)


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, after: bool) -> None:
    """Make the call-th call of owner.name the last thing that the process does."""
    original = getattr(owner, name)
    left = call

    def wrapped(*args: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 and not after:
            raise Killed
        result = original(*args, **options)
        if left == 0:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_kill_at_each_journal_line(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, after: bool
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, Journal, "append", call, after)
        with pytest.raises(Killed):
            run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "manifest.json").exists()
    outcome = run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert outcome.resumed == max(call - 2 + after, 0)  # the first line is the head
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("call", [1, 3, 7, 12, 20, 33, 40])
def test_a_kill_between_samples(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, ShardStream, "add", call, after=True)
        with pytest.raises(Killed):
            run_build("camvid", root, tmp_path / "out", **OPTIONS)
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


STEPS = ("_publish_split", "sync_folder", "publish_bytes", "publish_file", "publish")
KILLS = [("webdataset", name, call) for name in STEPS for call in range(1, 5)]
KILLS += [("zarr", "sync_folder", call) for call in range(1, 5)]  # the formats differ in what is moved into place


@pytest.mark.parametrize(("format", "name", "call"), KILLS)
def test_a_kill_while_publishing(
    root: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
    format: str,
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, publish, name, call, after=True)
        try:
            run_build("camvid", root, tmp_path / "out", format=format, **OPTIONS)
        except Killed:
            run_build("camvid", root, tmp_path / "out", format=format, **OPTIONS)
    assert not (tmp_path / "out" / ".build").exists()
    if format == "webdataset":
        assert tree(tmp_path / "out") == whole
    else:
        run_build("camvid", root, tmp_path / "other", format=format, **OPTIONS)
        assert tree(tmp_path / "out") == tree(tmp_path / "other")


def interrupted(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, lines: int = 5) -> Path:
    """A build that stopped after `lines` journal lines; returns its build folder."""
    with monkeypatch.context() as patch:
        kill_at(patch, Journal, "append", lines, after=True)
        with pytest.raises(Killed):
            run_build("camvid", root, out, **OPTIONS)
    return out / ".build"


@pytest.mark.parametrize(
    "damage", ["torn line", "garbage", "empty journal", "torn head", "odd line", "number out of turn"]
)
def test_a_damaged_journal_costs_work_but_no_bytes(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    journal = interrupted(root, tmp_path / "out", monkeypatch) / "journal.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(
        {
            "torn line": data[:-40],
            "garbage": data + b"\x00\xff\n" + data.splitlines(keepends=True)[-1],
            "empty journal": b"",
            "torn head": data[:30],
            "odd line": data + b'{"chunk":4}\n',
            "number out of turn": data + data.splitlines(keepends=True)[1],
        }[damage]
    )
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("damage", ["shorter", "longer", "other bytes", "gone"])
@pytest.mark.parametrize("suffix", [".tar", ".index.jsonl"])
def test_partial_files_that_do_not_fit_the_journal_are_cut_back(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, suffix: str
) -> None:
    folder = interrupted(root, tmp_path / "out", monkeypatch, lines=4)
    last, _ = read_journal(folder / "journal.jsonl")[-1]
    record = ShardRecord.from_dict(last["open"][-1])
    path = folder / (record.name if suffix == ".tar" else record.index_name)
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes(
            {"shorter": data[: len(data) // 2], "longer": data + b"x" * 999, "other bytes": flipped}[damage]
        )
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("damage", ["shorter", "longer", "other bytes", "gone", "empty"])
def test_a_list_of_sources_that_does_not_fit_the_journal_is_cut_back(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    spoil(interrupted(root, tmp_path / "out", monkeypatch, lines=4) / "train-sources.jsonl", damage)
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


def spoil(path: Path, damage: str) -> None:
    """What a power cut may leave of a file that was not yet on disk."""
    data = path.read_bytes()
    flipped = bytes([data[0] ^ 1]) + data[1:]
    path.unlink()
    contents = {"shorter": data[: len(data) // 2], "longer": data + b"x" * 999, "other bytes": flipped, "empty": b""}
    if damage in contents:
        path.write_bytes(contents[damage])


def test_random_kills_again_and_again(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(5)
    for _ in range(12):
        with monkeypatch.context() as patch:
            owner, name = draw.choice([(Journal, "append"), (ShardStream, "add"), (ShardStream, "finish")])
            kill_at(patch, owner, name, draw.randint(1, 4), after=draw.random() < 0.5)
            try:
                run_build("camvid", root, tmp_path / "out", **OPTIONS)
                break
            except Killed:
                continue
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


def command(root: Path, out: Path, *more: str) -> list[str]:
    arguments = ["camvid", "--root", str(root), "--out", str(out), "--scales", "1,1/2", "--shard-size", "0.022", *more]
    return [
        sys.executable,
        "-c",
        "from prep import cli; from prep.build import worker;"
        "worker.WORTH_SECONDS = 0; worker.any_ready = bool; cli.main()",
        *arguments,
        "--max-bad",
        "9",
        "--workers",
        "2",
    ]


def wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sigkill_takes_the_workers_along_and_the_build_goes_on(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 120}, size=(160, 240))
    process = subprocess.Popen(command(root, tmp_path / "out"), start_new_session=True, stderr=subprocess.DEVNULL)
    journal = tmp_path / "out" / ".build" / "journal.jsonl"
    wait_for(lambda: len(read_journal(journal)) >= 5)
    workers = children(process.pid)
    process.kill()  # the parent alone
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in workers), 20)
    assert len(workers) >= 2
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    run_build("camvid", root, tmp_path / "whole", **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def hear_ctrl_c() -> None:
    """A child of a job that a shell runs in the background would ignore SIGINT, as the job does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_stops_with_one_line_and_the_build_goes_on(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 120}, size=(160, 240))
    process = subprocess.Popen(
        command(root, tmp_path / "out"),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    journal = tmp_path / "out" / ".build" / "journal.jsonl"
    wait_for(lambda: len(read_journal(journal)) >= 5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers as well
    try:
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()  # nothing where it has ended
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "same command again" in err.splitlines()[-1]
    assert run_build("camvid", root, tmp_path / "out", **OPTIONS).resumed >= 1


def test_a_finished_build_is_left_as_it_is(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    arguments = command(root, tmp_path / "out")[3:]
    assert seg_prep(*arguments)[0] == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    code, _, err = seg_prep(*arguments)
    assert code == 0
    assert "complete" in err  # and the samples that are bad
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_other_settings_are_named_and_nothing_is_touched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_build("camvid", root, tmp_path / "done", **OPTIONS)
    interrupted(root, tmp_path / "half", monkeypatch)
    for name, what in (("done", "a complete build"), ("half", "an unfinished build")):
        before = tree(tmp_path / name)
        with pytest.raises(
            SettingsError, match=rf"{what} that differs in filter box -> triangle, limit none -> 2, splits"
        ):
            run_build("camvid", root, tmp_path / name, filter="triangle", limit=2, splits=("val",), **OPTIONS)
        assert tree(tmp_path / name) == before


def test_other_library_versions_are_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(root, tmp_path / "out", monkeypatch)
    monkeypatch.setattr("prep.pipeline.library_versions", lambda: {"numpy": "0.0.1"})
    with pytest.raises(SettingsError, match=r"other library versions that differs in .*numpy .* -> 0\.0\.1"):
        run_build("camvid", root, tmp_path / "out", **OPTIONS)


def test_a_changed_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = fake_camvid(tmp_path / "cv", {"val": 9})
    interrupted(raw, tmp_path / "out", monkeypatch, lines=3)
    image = min((raw / "val").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(SettingsError, match="differs in the source's files"):
        run_build("camvid", raw, tmp_path / "out", **OPTIONS)
    run_build("camvid", raw, tmp_path / "out", fresh=True, **OPTIONS)


@pytest.mark.parametrize("state", ["done", "half"])
def test_fresh_starts_over(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    if state == "half":
        interrupted(root, tmp_path / "out", monkeypatch)
    else:
        run_build("camvid", root, tmp_path / "out", scales="1,1/4,1/8", format="zarr")
    outcome = run_build("camvid", root, tmp_path / "out", fresh=True, **OPTIONS)
    assert outcome.resumed == 0
    assert tree(tmp_path / "out") == whole


def test_fresh_refuses_a_folder_with_foreign_files(root: Path, tmp_path: Path) -> None:
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    (tmp_path / "out" / "val" / "notes.txt").write_text("mine")
    before = tree(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"not part of a build \(1, such as val/notes.txt\)"):
        run_build("camvid", root, tmp_path / "out", fresh=True, **OPTIONS)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("fresh", [False, True])
def test_a_foreign_folder_is_refused(root: Path, tmp_path: Path, fresh: bool) -> None:
    for name, text in (("photo.jpg", "x"), ("manifest.json", '{"name": "a web app"}')):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text(text)
        with pytest.raises(SettingsError, match=rf"not part of a build \(1, such as {name}\)"):
            run_build("camvid", root, out, fresh=fresh, **OPTIONS)
        assert [path.name for path in out.iterdir()] == [name]


def test_places_that_would_mix_things_are_refused(root: Path, tmp_path: Path) -> None:
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    with pytest.raises(SettingsError, match="lies inside the shard set"):
        run_build("camvid", root, tmp_path / "out" / "more", **OPTIONS)
    for out in (root, root.parent):
        with pytest.raises(SettingsError, match="holds the raw dataset"):
            run_build("camvid", root, out, **OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        run_build("camvid", root, tmp_path / "file", **OPTIONS)


def test_two_builds_into_one_folder_are_refused(root: Path, tmp_path: Path) -> None:
    with outdir.locked(tmp_path / "out"), pytest.raises(SettingsError, match="another seg-prep is building into"):
        run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()  # and nothing is left of a build that never began


@pytest.mark.parametrize("call", [2, 9, 15])
def test_a_full_disk_is_one_line_and_the_build_goes_on(
    root: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_prep: SegPrep, call: int
) -> None:
    from shards import shardfile

    original, left = shardfile.write_all, call

    def full(file: object, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            original(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, data)

    arguments = command(root, tmp_path / "out")[3:-2]
    with monkeypatch.context() as patch:
        patch.setattr(shardfile, "write_all", full)
        assert "disk full" in seg_prep.refused(*arguments, "--workers", "1", "--quiet")
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert tree(tmp_path / "out") == whole


def test_journal_lines_come_back_and_torn_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.create(path, {"settings": {}})
    for chunk in range(3):
        journal.append({"chunk": chunk})
    journal.close()
    data = path.read_bytes()
    assert [line.get("chunk") for line, _ in read_journal(path)] == [None, 0, 1, 2]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        lines = read_journal(path)
        assert len(lines) == data[:length].count(b"\n")
        assert not lines or lines[-1][1] <= length
    path.write_bytes(json.dumps({"version": 99}).encode() + b"\n")
    assert read_journal(path) == []


def test_a_source_mended_after_a_build_needs_fresh(tmp_path: Path) -> None:
    raw = fake_camvid(tmp_path / "cv", {"val": 5})
    image = min((raw / "val").iterdir())
    good = image.read_bytes()
    image.write_bytes(b"")
    run_build("camvid", raw, tmp_path / "out")
    image.write_bytes(good)
    with pytest.raises(SettingsError, match="the source's files"):
        run_build("camvid", raw, tmp_path / "out")


def test_ctrl_c_while_workers_start_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine starting them takes a while; the build must not go on as if nothing had been pressed."""

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, *_: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            started.append(1)

        def shutdown(self, **_: object) -> None: ...

    started: list[int] = []
    root = fake_camvid(tmp_path / "cv", {"val": 40})
    monkeypatch.setattr(worker, "ProcessPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        run_build("camvid", root, tmp_path / "out", workers=2)
    assert len(started) == 2
    assert (tmp_path / "out" / ".build" / "journal.jsonl").exists()
