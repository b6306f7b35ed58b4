"""Sets that are awkward to build: names that run into each other, many splits, another seg-prep at work."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prep import pipeline
from prep.build import outdir, writer
from prep.build.known import Known
from prep.build.publish import check_sizes
from shards import load_manifest
from shards.errors import FormatError, SettingsError
from shards.lock import take
from shards.manifest import publish
from shards.verify import verify
from tests.fakes import fake_camvid, save
from tests.prep.builds import SegPrep, run_build, tree

BUSY = "another seg-prep is building into"


def folder_of(root: Path, *splits: str, seed: int = 0) -> Path:
    """Two tiny samples in each split."""
    rng = np.random.default_rng(seed)
    for split in splits:
        for number in range(2):
            name = f"{split}/{number}.png"
            save(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), root / "images" / name)
            save(rng.integers(0, 2, (8, 8), dtype=np.uint8), root / "labels" / name)
    (root / "classes.txt").write_text("road\nsky\n")
    return root


def test_two_splits_whose_shards_would_have_one_name_are_refused(tmp_path: Path, seg_prep: SegPrep) -> None:
    root, out = folder_of(tmp_path / "raw", "train", "train-1"), tmp_path / "out"
    options = ["--root", root, "--out", out, "--workers", 1, "--quiet", "--filter", "bilinear"]
    line = seg_prep.refused("folder", *options, "--scales", "2,1/2")
    assert "'train' at scale 1/2 and split 'train-1' at scale 2" in line
    assert not out.exists()
    assert seg_prep("folder", *options, "--scales", "2,1,1/4")[0] == 0
    assert list(verify(out)) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_files_of_a_split_are_closed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = folder_of(tmp_path / "raw", "train", *(f"s{number:02d}" for number in range(20))), tmp_path / "out"
    seen: list[int] = []
    write = writer.ChunkWriter.write

    def counted(self: writer.ChunkWriter, *given: object) -> None:
        write(self, *given)  # type: ignore[arg-type]
        seen.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))

    monkeypatch.setattr(writer.ChunkWriter, "write", counted)
    for options in ({}, {"update": True}):
        seen.clear()
        run_build("folder", root, out, **options)
        assert len(seen) == 21
        assert max(seen) - min(seen) <= 1, seen
        shutil.copyfile(root / "images/s03/0.png", root / "images/s04/0.png")


def test_a_full_disk_is_told_where_the_table_of_digests_is_written() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="/dev/full") as error:
        Known.write(Path("/dev/full"), os.urandom(16 * 1000))
    assert error.value.errno == errno.ENOSPC


def test_a_table_of_classes_under_another_name(tmp_path: Path, seg_prep: SegPrep) -> None:
    """The file's name is in the title of the set."""
    root = fake_camvid(tmp_path / "raw", {"val": 2})
    options = ["camvid", "--root", root, "--workers", 1, "--quiet", "--scales", "1"]
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("name\nRoad\nSky\n")
    assert seg_prep(*options, "--out", tmp_path / "out", "--classes", tmp_path / "a.tsv")[0] == 0
    assert seg_prep(*options, "--out", tmp_path / "out", "--classes", tmp_path / "b.tsv", "--update")[0] == 0
    assert seg_prep(*options, "--out", tmp_path / "scratch", "--classes", tmp_path / "b.tsv")[0] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


def test_a_set_that_another_process_takes_apart_is_not_called_damaged(tmp_path: Path) -> None:
    root, out = fake_camvid(tmp_path / "raw", {"val": 2}), tmp_path / "out"
    run_build("camvid", root, out)
    (out / "val/sources.jsonl").unlink()
    with pytest.raises(FormatError, match=r"sources\.jsonl"):
        run_build("camvid", root, out)
    (out / ".build").mkdir()
    handle = take(out / ".build" / "lock")
    assert handle is not None
    with pytest.raises(SettingsError, match=BUSY):
        run_build("camvid", root, out)
    os.close(handle)
    with pytest.raises(FormatError, match=r"sources\.jsonl"):
        run_build("camvid", root, out)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_set_that_was_replaced_while_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    """The other process is through with its update before this one finds out."""
    root, out = fake_camvid(tmp_path / "raw", {"val": 2}), tmp_path / "out"
    run_build("camvid", root, out)

    def replaced(*_: object) -> None:
        os.utime(out / "manifest.json", ns=(1, 1))
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(out / "val"))

    monkeypatch.setattr(outdir if fresh else pipeline, "check_no_foreign" if fresh else "check_sizes", replaced)
    with pytest.raises(SettingsError, match=BUSY):
        run_build("camvid", root, out, fresh=fresh)


def test_an_update_that_dies_while_a_set_is_called_complete_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = folder_of(tmp_path / "raw", "train"), tmp_path / "out"
    run_build("folder", root, out)
    told = load_manifest(out).model_copy()

    def die_half_way(*_: object) -> None:
        """Another process' update, killed when it has moved the shards and not yet published them."""
        check_sizes(told, out)
        (out / ".build" / "ready").mkdir(parents=True)
        (out / "manifest.json").unlink()
        (out / "train" / "1" / "train-1-00000.tar").rename(out / ".build" / "ready" / "train-1-00000.tar")

    monkeypatch.setattr(pipeline, "check_sizes", die_half_way)
    run_build("folder", root, out)
    assert (out / ".build" / "ready" / "train-1-00000.tar").exists()


def test_the_manifest_is_read_once_to_know_whose_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_build("camvid", fake_camvid(tmp_path / "raw", {"val": 2}), tmp_path / "out", shard_size=1)
    looks: list[Path] = []
    is_ours: Callable[[Path], bool] = outdir.is_ours
    monkeypatch.setattr(outdir, "is_ours", lambda out: looks.append(out) or is_ours(out))
    assert outdir.foreign_files(tmp_path / "out") == []
    assert len(looks) == 1


def stopped(out: Path, chunks: int, monkeypatch: pytest.MonkeyPatch, build: Callable[[], object]) -> None:
    """A build that is stopped after so many chunks."""
    write = writer.ChunkWriter.write

    def write_and_stop(self: writer.ChunkWriter, *given: object) -> None:
        write(self, *given)  # type: ignore[arg-type]
        if self.state.chunks == chunks:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer.ChunkWriter, "write", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            build()


def flip(path: Path) -> None:
    """Another pixel, the same size, written a while later."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


@pytest.fixture
def bitmaps(tmp_path: Path) -> Path:
    """Eight splits of two samples each, whose images keep their size whatever they show."""
    root = folder_of(tmp_path / "raw", "train", *(f"s{number}" for number in range(7)))
    for path in (root / "images").rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()
    return root


@pytest.mark.parametrize(("split", "kept"), [("train", 0), ("s1", 2), ("s6", 4)])
def test_a_sample_that_changes_while_a_build_is_stopped(
    bitmaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, kept: int
) -> None:
    """Also where its file keeps its size: what was done before it stays, the rest is done again."""
    stopped(tmp_path / "out", 4, monkeypatch, lambda: run_build("folder", bitmaps, tmp_path / "out"))
    flip(bitmaps / "images" / split / "1.bmp")
    assert run_build("folder", bitmaps, tmp_path / "out").resumed == kept
    run_build("folder", bitmaps, tmp_path / "scratch")
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


def test_files_that_were_only_written_anew_cost_no_work(
    bitmaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that was moved to another disk."""
    stopped(tmp_path / "out", 4, monkeypatch, lambda: run_build("folder", bitmaps, tmp_path / "out"))
    moved = tmp_path / "moved"
    shutil.copytree(bitmaps, moved, copy_function=shutil.copyfile)
    for path in moved.rglob("*.*"):
        os.utime(path, ns=(1, 1))
    assert run_build("folder", moved, tmp_path / "out").resumed == 4


def test_a_sample_that_changes_while_an_update_is_stopped(
    bitmaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_build("folder", bitmaps, tmp_path / "out")
    flip(bitmaps / "images/s6/0.bmp")
    stopped(tmp_path / "out", 4, monkeypatch, lambda: run_build("folder", bitmaps, tmp_path / "out", update=True))
    flip(bitmaps / "images/train/1.bmp")
    changes = run_build("folder", bitmaps, tmp_path / "out", update=True).changes
    assert (changes["train"].changed, changes["s6"].changed) == (1, 1)
    run_build("folder", bitmaps, tmp_path / "scratch")
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


@pytest.mark.parametrize("option", ["--quiet", "--update"])
def test_a_set_that_seg_shards_made_is_told_as_such(tmp_path: Path, seg_prep: SegPrep, option: str) -> None:
    root, out = fake_camvid(tmp_path / "raw", {"val": 2}), tmp_path / "out"
    run_build("camvid", root, out)
    publish(load_manifest(out).model_copy(update={"settings": {"subset": {"drawn": 2}, "of": {}}}), out)
    line = seg_prep.refused("camvid", "--root", root, "--out", out, option)
    assert "that seg-prep did not build" in line
    assert seg_prep("camvid", "--root", root, "--out", out, "--quiet", "--fresh")[0] == 0
