"""Full and failing disks, odd clocks, things in the way: one line, nothing published, and the same command goes on."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.build.journal import Journal
from prep.places import read_place
from shards.errors import SampleError
from shards.verify import verify
from tests.fakes import fake_camvid, fake_cityscapes
from tests.prep.builds import SegPrep, quarantine, run_build, tree
from tests.prep.faults import failing_at, small_disk
from tests.prep.raw_edits import Raw

CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)
SCALES, MEGABYTES = "1,1/2", "0.012"
OPTIONS = {"scales": SCALES, "shard_size": 12_000}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_camvid(tmp_path_factory.mktemp("raw") / "cv", {"val": 3}, size=(32, 48))


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """{format: the bytes of a build that nothing disturbed}."""
    trees = {}
    for format in ("webdataset", "zarr"):
        out = tmp_path_factory.mktemp("whole") / format
        run_build("camvid", root, out, format=format, **OPTIONS)
        trees[format] = tree(out)
    return trees


def arguments(root: Path, out: Path, format: str = "webdataset") -> list[object]:
    run = ["--scales", SCALES, "--shard-size", MEGABYTES, "--format", format, "--workers", 1, "--quiet"]
    return ["camvid", "--root", root, "--out", out, *run]


def check_unpublished(out: Path, sound: dict[str, bytes]) -> None:
    """There is no manifest; or, where the fault came after it, what it vouches for is there to the last byte."""
    if (out / "manifest.json").exists():
        assert {name: data for name, data in tree(out).items() if not name.startswith(".build/")} == sound


def count(root: Path, out: Path, format: str) -> int:
    """How many calls of an undisturbed build write."""
    with failing_at(0) as counter:
        run_build("camvid", root, out, format=format, **OPTIONS)
    return counter.calls


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_a_fault_at_every_call_that_writes(
    root: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, seg_prep: SegPrep, format: str
) -> None:
    calls = count(root, tmp_path / "counted", format)
    assert calls > 40  # the injection reaches the build
    refused = 0
    step = 1 if format == "webdataset" else calls // 12  # most calls of a Zarr build are Zarr's own, and alike
    for at in range(1, calls + 1, step):
        out, code = tmp_path / f"{at}", CODES[at % len(CODES)]
        with failing_at(at, code) as counter:
            ended, _, err = seg_prep(*arguments(root, out, format))
        if counter.calls < at:  # Zarr's threads race to make folders: now and then one call fewer
            assert (format, ended) == ("zarr", 0)
            assert at > 0.9 * calls
        if ended:  # else a folder could not be made that was there already
            refused += 1
            assert (ended, len(err.splitlines())) == (2, 1), err
            assert any(text in err for text in ("disk full", os.strerror(code))), err
            check_unpublished(out, whole[format])
            assert seg_prep(*arguments(root, out, format))[0] == 0
        assert tree(out) == whole[format], at
    assert refused > 0.7 * calls / step


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Raw, Path, dict[str, bytes]]:
    """A source that has changed since a set was built of it; the set; and what an update must make of it."""
    folder = tmp_path_factory.mktemp("changed")
    raw, options = Raw(folder / "raw").fill({"train": 9, "val": 2}), {"scales": "1/2", "shard_size": 8_000}
    run_build("camvid", raw.root, folder / "before", **options)
    raw.splits["train"] = {"first": raw.new(), **raw.splits["train"], "f0099": (b"", b"")}
    raw.write()
    run_build("camvid", raw.root, folder / "after", **options)
    return raw, folder / "before", tree(folder / "after")


def test_a_fault_in_an_update(changed: tuple[Raw, Path, dict[str, bytes]], tmp_path: Path, seg_prep: SegPrep) -> None:
    """At every 13th call that writes: the old set, the new one or none is there, and the same command ends it."""
    raw, before, after = changed
    command = ["camvid", "--root", raw.root, "--out", tmp_path / "out", "--scales", "1/2", "--shard-size", "0.008"]
    command += ["--workers", 1, "--quiet", "--max-bad", 9, "--update"]
    shutil.copytree(before, tmp_path / "out")
    with failing_at(0) as counter:
        assert seg_prep(*command)[0] == 0
    assert tree(tmp_path / "out") == after
    refused = 0
    for at in range(1, counter.calls + 1, 13):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(before, tmp_path / "out")
        with failing_at(at, CODES[at % len(CODES)]):
            ended, _, err = seg_prep(*command)
        if ended:
            refused += 1
            assert (ended, len(err.splitlines())) == (2, 1), err
            found = {name: data for name, data in tree(tmp_path / "out").items() if not name.startswith(".build/")}
            assert "manifest.json" not in found or found in (tree(before), after)
            assert seg_prep(*command)[0] == 0, at
        assert tree(tmp_path / "out") == after, at
    assert refused > 0.7 * counter.calls / 13


def test_a_real_full_disk_at_any_size(
    root: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, seg_prep: SegPrep
) -> None:
    """From room for nothing to nearly enough; then the disk grows, and the same command goes on."""
    needed = sum(map(len, whole["webdataset"].values())) // 1024
    refused = 0
    with small_disk(tmp_path / "disk", "16k") as again:
        for size in range(16, needed + 120, 12):
            again(f"size={size}k")
            out = tmp_path / "disk" / f"{size}"
            code, _, err = seg_prep(*arguments(root, out))
            if code:
                refused += 1
                assert (code, len(err.splitlines())) == (2, 1), err
                assert "disk full" in err
                check_unpublished(out, whole["webdataset"])
                again("size=4m")
                assert seg_prep(*arguments(root, out))[0] == 0
            assert tree(out) == whole["webdataset"]
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()
    assert refused > 3


def test_a_limit_on_the_size_of_files(
    root: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, seg_prep: SegPrep
) -> None:
    """The kernel itself cuts a write short (ulimit -f)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 700, 3_000, 9_000):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            line = seg_prep.refused(*arguments(root, tmp_path / f"{most}"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "too large" in line
        check_unpublished(tmp_path / f"{most}", whole["webdataset"])
        assert seg_prep(*arguments(root, tmp_path / f"{most}"))[0] == 0
        assert tree(tmp_path / f"{most}") == whole["webdataset"]


def test_a_read_only_file_system(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    with small_disk(tmp_path / "disk", "1m") as again:
        again("ro")
        assert "Read-only file system" in seg_prep.refused(*arguments(root, tmp_path / "disk" / "out"))
        assert "Read-only file system" in seg_prep.refused(*arguments(root, tmp_path / "disk"))
        assert not any((tmp_path / "disk").iterdir())


def test_a_complete_set_on_a_read_only_file_system_is_still_complete(
    root: Path, tmp_path: Path, seg_prep: SegPrep
) -> None:
    with small_disk(tmp_path / "disk", "1m") as again:
        assert seg_prep(*arguments(root, tmp_path / "disk" / "out"))[0] == 0
        again("ro")
        assert seg_prep(*arguments(root, tmp_path / "disk" / "out"))[0] == 0
        assert list(verify(tmp_path / "disk" / "out")) == []


def test_a_folder_on_another_disk_within_the_output(
    root: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, seg_prep: SegPrep
) -> None:
    """Renames do not cross file systems."""
    out = tmp_path / "out"
    out.mkdir()
    with small_disk(out / "val", "1m"):
        line = seg_prep.refused(*arguments(root, out))
        assert "cross-device" in line
        assert not (out / "manifest.json").exists()
    (out / "val").rmdir() if not any((out / "val").iterdir()) else None
    assert seg_prep(*arguments(root, out))[0] == 0
    assert tree(out) == whole["webdataset"]


def test_a_source_that_cannot_be_read_is_quarantined_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_prep: SegPrep
) -> None:
    raw = fake_camvid(tmp_path / "cv", {"val": 4}, size=(32, 48))
    bad = sorted((raw / "val").iterdir())[1]
    original = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    code, _, err = seg_prep(*arguments(raw, tmp_path / "out"))
    assert (code, "Traceback" in err) == (1, False)
    (row,) = quarantine(tmp_path / "out")
    assert row["reason"].endswith("unreadable file: Input/output error")
    assert list(verify(tmp_path / "out")) == []
    with pytest.raises(SampleError, match="Input/output error"):
        read_place(bad, "here")


def test_a_source_folder_that_cannot_be_listed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg_prep: SegPrep
) -> None:
    root = fake_cityscapes(tmp_path / "cs", {"val": 1}, size=(32, 48))
    for name in ("scandir", "listdir"):
        original = getattr(os, name)

        def broken(path: object = ".", original: Callable[..., object] = original) -> object:
            if str(path).startswith(str(root / "leftImg8bit/val")):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return original(path)

        monkeypatch.setattr(os, name, broken)
    line = seg_prep.refused("cityscapes", *arguments(root, tmp_path / "out")[1:])
    assert "Input/output error" in line
    assert "leftImg8bit/val" in line
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()


IN_THE_WAY = {
    "a file where the build folder goes": (".build", "file"),
    "a folder where the journal goes": (".build/journal.jsonl", "folder"),
    "a folder where the lock goes": (".build/lock", "folder"),
    "a folder where the manifest goes": ("manifest.json", "folder"),
    "a folder where the card goes": ("README.md", "folder"),
    "a folder where the card is first written": (".README.md.tmp", "folder"),
    "a file where a split goes": ("val", "file"),
    "a file where a scale goes": ("val/1", "file"),
    "a folder where a shard goes": ("val/1/val-1-00000.tar", "folder"),
    "a pipe where a shard is first written": (".build/val-1-00000.tar", "pipe"),
    "a link in a circle for the output": ("", "circle"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_something_else_in_the_place_of_a_file(
    root: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, seg_prep: SegPrep, what: str
) -> None:
    """Refused in one line or, where nothing is lost by it, built; what stood there is removed only if it was empty."""
    name, kind = IN_THE_WAY[what]
    out = tmp_path / "out"
    path = out / name if name else out
    path.parent.mkdir(parents=True, exist_ok=True)
    {
        "file": path.touch,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "circle": lambda: path.symlink_to("out"),
    }[kind]()
    if kind == "folder":
        (path / "mine.txt").write_text("mine")
    line = seg_prep.refused(*arguments(root, out))
    assert str(tmp_path) in line
    assert not (out / "manifest.json").is_file() if kind != "circle" else path.is_symlink()
    if kind == "folder":
        assert (path / "mine.txt").read_text() == "mine"
        (path / "mine.txt").unlink()
        path.rmdir()
    else:
        path.unlink()
    assert seg_prep(*arguments(root, out))[0] == 0
    assert tree(out) == whole["webdataset"]


class Stopped(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("years", [-40, 70])
def test_clocks_that_jump_change_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, dict[str, bytes]], years: int
) -> None:
    """Each look at the clock is years from the last; so are the times of all files when the build goes on."""
    raw = fake_camvid(tmp_path / "cv", {"val": 3}, size=(32, 48))
    draw = random.Random(years)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + draw.uniform(-1, 1) * 3e7 * years)
    out = tmp_path / "out"
    append, lines = Journal.append, []

    def stop(journal: Journal, line: object) -> None:
        append(journal, line)  # type: ignore[arg-type]
        lines.append(line)
        if len(lines) == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        with pytest.raises(Stopped):
            run_build("camvid", raw, out, **OPTIONS)
    for path in (*raw.rglob("*"), *out.rglob("*")):
        os.utime(path, (max(0, clock() + 3e7 * years), max(0, clock() - 3e7 * years)))
    run_build("camvid", raw, out, **OPTIONS)
    assert tree(out) == whole["webdataset"]
