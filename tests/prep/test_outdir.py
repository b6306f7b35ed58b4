"""The output folder between builds: what a killed build or another process leaves, and files that got lost."""

from __future__ import annotations

import errno
import fcntl
import os
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from prep import pipeline
from prep.build import outdir
from prep.build.journal import Journal
from shards import manifest, published
from shards.errors import FormatError, SettingsError
from shards.shardfile import ShardRecord, write_all
from shards.terminal import describe
from tests.fakes import fake_camvid
from tests.prep.builds import run_build, tree

OPTIONS = {"scales": "1,1/2", "shard_size": 22_000}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def stop(*_: object) -> None:
    raise Killed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_camvid(tmp_path_factory.mktemp("raw") / "cv", {"val": 6})


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_what_a_killed_fresh_leaves_is_not_taken_for_the_new_build(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    run_build("camvid", root, tmp_path / "out", format=format, filter="triangle", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(outdir.shutil, "rmtree", stop)  # the manifest is gone by then
        with pytest.raises(Killed):
            run_build("camvid", root, tmp_path / "out", format=format, fresh=True, **OPTIONS)
    assert (tmp_path / "out" / "val").is_dir()
    run_build("camvid", root, tmp_path / "out", format=format, **OPTIONS)
    run_build("camvid", root, tmp_path / "other", format=format, **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "other")


def test_a_store_is_on_disk_before_it_is_in_place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    original = published.sync_folder

    def note(path: Path) -> None:
        synced.append(path)
        original(path)

    monkeypatch.setattr(published, "sync_folder", note)
    run_build("camvid", root, tmp_path / "out", format="zarr", scales="1/2")
    (store,) = (tmp_path / "out" / "val").rglob("*.zarr")
    below = {path.relative_to(store).as_posix() for path in (store, *store.rglob("*"))}
    building = tmp_path / "out" / ".build" / store.name
    assert below == {path.relative_to(building).as_posix() for path in synced if path.is_relative_to(building)}


def test_a_build_that_another_process_finished_meanwhile_is_left_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_build("camvid", root, tmp_path / "out", scales="1/2")
    before = tree(tmp_path / "out")
    published, looks = pipeline._published, iter((None,))  # the first look is a moment too early
    monkeypatch.setattr(pipeline, "_published", lambda out: next(looks) if looks.__length_hint__() else published(out))
    with pytest.raises(SettingsError, match="finished its build"):
        run_build("camvid", root, tmp_path / "out", scales="1/4")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("lost", ["shard", "quarantine"])
def test_a_complete_build_that_lost_a_file_is_not_called_complete(root: Path, tmp_path: Path, lost: str) -> None:
    run_build("camvid", root, tmp_path / "out", scales="1/2")
    path = next((tmp_path / "out").rglob("*.tar")) if lost == "shard" else tmp_path / "out" / "quarantine.jsonl"
    path.unlink()
    with pytest.raises(FormatError, match=f"{path.name}.*--fresh"):
        run_build("camvid", root, tmp_path / "out", scales="1/2")
    run_build("camvid", root, tmp_path / "out", scales="1/2", fresh=True)
    assert path.is_file()


def test_an_empty_folder_of_somebody_else_stays(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "lost+found").mkdir(parents=True)
    run_build("camvid", root, tmp_path / "out", scales="1/2")
    assert (tmp_path / "out" / "lost+found").is_dir()


def test_a_file_system_without_locks_is_told_as_such(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SettingsError, match=r"out is on a file system without locks \(No locks available\).*--out"):
        run_build("camvid", root, tmp_path / "out", scales="1/2")


def test_more_than_99_999_shards_are_still_ours() -> None:
    assert outdir._OURS.fullmatch("val/1-2/val-1-2-123456.tar")


def test_shards_are_on_disk_before_the_journal_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    closed: list[str] = []
    sync, append = os.fsync, Journal.append

    def note_sync(handle: int) -> None:
        synced.update(path.name for path in (tmp_path / "out").glob(".build/*") if same(path, handle))
        sync(handle)

    def note_line(journal: Journal, line: dict[str, Any]) -> None:
        records = [ShardRecord.from_dict(value) for value in line.get("closed", ())]
        closed.extend(name for record in records for name in (record.name, record.index_name))
        assert synced.issuperset(closed)
        append(journal, line)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Journal, "append", note_line)
    run_build("camvid", root, tmp_path / "out", **OPTIONS)
    assert len(closed) >= 4


def same(path: Path, handle: int) -> bool:
    return os.path.samestat(path.stat(), os.fstat(handle))


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk(FileIO):
    """A file on a disk that has no room."""

    write = full


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FullDisk(tmp_path / "shard", "w") as file, pytest.raises(OSError, match="shard") as caught:
        write_all(file, b"x")
    assert describe(caught.value).startswith(f"disk full: {tmp_path / 'shard'}; free some space")
    monkeypatch.setattr(manifest.os, "fsync", full)
    with pytest.raises(OSError, match="card"):
        manifest.publish_bytes(tmp_path / "card", b"x")


def test_a_reopened_journal_drops_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"one\ntwo\nthree\n")
    Journal.reopen(path, 4).close()
    assert path.read_bytes() == b"one\n"
