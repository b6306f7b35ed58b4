"""Each kind of bad sample is quarantined with a reason; the build goes on and says so."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import shards
from prep import places
from prep.build import encode
from shards.errors import UserError
from shards.verify import verify
from tests.fakes import fake_camvid, save
from tests.prep.builds import SegPrep, quarantine, run_build, tree


def bomb(path: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 70_000, 70_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + bytes(4) + b"IDAT"
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated image": ("val", cut, "truncated or damaged"),
    "empty image": ("val", lambda path: path.write_bytes(b""), "empty file (0 bytes)"),
    "not an image": ("val", lambda path: path.write_bytes(b"hello"), "not an image file (5 bytes)"),
    "bomb": ("val", bomb, "70000x70000 pixels are more than the cap"),
    "floating-point image": (
        "val",
        lambda path: Image.fromarray(np.zeros((48, 64), np.float32)).save(path, "TIFF"),
        "image of floating-point pixels",
    ),
    "missing image": ("val", Path.unlink, "missing file"),
    "folder for a file": ("val", lambda path: (path.unlink(), path.mkdir()), "unreadable file: Is a directory"),
    "pipe": ("val", lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    "device": ("valannot", lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "not a regular file"),
    "missing label": ("valannot", Path.unlink, "missing file"),
    "truncated label": ("valannot", cut, "truncated or damaged"),
    "empty label": ("valannot", lambda path: path.write_bytes(b""), "empty file (0 bytes)"),
    "label bomb": ("valannot", bomb, "70000x70000 pixels are more than the cap"),
    "size mismatch": (
        "valannot",
        lambda path: save(np.zeros((50, 60), np.uint8), path),
        "label is 60x50 pixels, its image is 64x48",
    ),
    "unknown id": ("valannot", lambda path: save(np.full((48, 64), 77, np.uint8), path), "unknown label id 77"),
    "colour label": ("valannot", lambda path: save(np.zeros((48, 64, 3), np.uint8), path), "is a colour image"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_sample_is_named_and_the_build_goes_on(case: str, tmp_path: Path) -> None:
    folder, damage, reason = CASES[case]
    root = fake_camvid(tmp_path / "cv", {"val": 6})
    path = sorted((root / folder).iterdir())[2]
    damage(path)
    run_build("camvid", root, tmp_path / "out")
    (bad,) = quarantine(tmp_path / "out")
    assert set(bad) == {"key", "split", "source", "reason"}
    assert bad["key"] == path.stem
    assert bad["source"] == f"val/{path.stem}.png"
    assert bad["reason"].startswith(f"{folder}/{path.name}: ")
    assert reason in bad["reason"]
    assert path.stem not in set(shards.open(tmp_path / "out", split="val", scale="1").keys())
    assert len(shards.open(tmp_path / "out", split="val", scale="1/2")) == 5
    assert not list(verify(tmp_path / "out"))


def test_an_absurdly_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    path = min((root / "val").iterdir())
    path.write_bytes(bytes(200_000))
    monkeypatch.setattr(places, "MAX_BYTES", 100_000)
    run_build("camvid", root, tmp_path / "out")
    assert "200000 bytes is more than the cap" in quarantine(tmp_path / "out")[0]["reason"]


def test_quarantine_is_in_sample_order_whatever_the_workers(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"train": 10, "val": 10})
    for folder in ("train", "val"):
        for path in sorted((root / folder).iterdir())[::3]:
            path.write_bytes(b"")
    run_build("camvid", root, tmp_path / "one", workers=1)
    run_build("camvid", root, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    keys = [bad["key"] for bad in quarantine(tmp_path / "one")]
    assert len(keys) == 8
    assert keys == sorted(keys[:4]) + sorted(keys[4:])


def test_max_bad_decides_the_exit_code_and_the_rest_is_published(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 8})
    for path in sorted((root / "val").iterdir())[:2]:
        path.write_bytes(b"")
    arguments = ("camvid", "--root", root, "--scales", "1/2", "--workers", 1)
    for limit, code in ((2, 0), (1, 1), (0, 1)):
        found, _, err = seg_prep(*arguments, "--out", tmp_path / str(limit), "--max-bad", limit, "--quiet")
        assert found == code
        assert "2 samples quarantined" in err
        assert str(tmp_path / str(limit) / "quarantine.jsonl") in err
        assert len(shards.open(tmp_path / str(limit), split="val", scale="1/2")) == 6
    assert seg_prep(*arguments, "--out", tmp_path / "default")[0] == 1


def test_many_bad_samples_are_summed_up(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 20}, size=(16, 16))
    for path in sorted((root / "val").iterdir())[:15]:
        path.write_bytes(b"")
    _, _, err = seg_prep("camvid", "--root", root, "--out", tmp_path / "out", "--scales", "1", "--workers", 1)
    assert "... and 5 more" in err
    assert "15 samples quarantined, more than --max-bad 0" in err


def test_a_split_without_any_good_sample_is_refused(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"train": 2, "val": 2})
    for path in (root / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"split 'val' has no usable sample: all 2 are bad.*empty file.*--split"):
        run_build("camvid", root, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("form", "width", "scales", "reason"),
    [
        ("webp", 17_000, "1", "webp holds at most 16383 pixels a side"),
        ("jpeg:90", 66_000, "1", "jpeg holds at most 65500 pixels a side"),
        ("png", 66_000, "16", "66000x32 pixels at scale 16 are more than the cap"),
    ],
)
def test_an_image_that_the_format_cannot_hold_is_quarantined(
    form: str, width: int, scales: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    wide = 66_000 // 16 if scales == "16" else width
    save(np.zeros((2, wide, 3), np.uint8), sorted((root / "val").iterdir())[1])
    save(np.zeros((2, wide), np.uint8), sorted((root / "valannot").iterdir())[1])
    monkeypatch.setattr(encode, "MAX_PIXELS", 1_000_000)
    run_build("camvid", root, tmp_path / "out", scales=scales, filter="bilinear", image_format=form)
    (bad,) = quarantine(tmp_path / "out")
    assert reason in bad["reason"]
    assert not list(verify(tmp_path / "out"))


def test_a_complete_build_still_says_that_samples_are_bad(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    cut(sorted((root / "val").iterdir())[0])
    command = ("camvid", "--root", root, "--out", tmp_path / "out", "--scales", "1/2", "--quiet")
    assert seg_prep(*command)[0] == 1
    code, _, err = seg_prep(*command)
    assert code == 1
    assert "1 samples quarantined, more than --max-bad 0" in err
    assert seg_prep(*command, "--max-bad", "1")[0] == 0


def _short_of_memory(*_: object, **__: object) -> None:
    raise MemoryError


def _opencv_is_short_of_memory(*_: object) -> None:
    error = cv2.error("Insufficient memory")
    error.code = cv2.Error.StsNoMem
    raise error


def _no_more_files(path: Path, _: str) -> bytes:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))


@pytest.mark.parametrize(
    ("where", "fault", "message"),
    [
        ("PIL.PngImagePlugin.PngImageFile.load", _short_of_memory, "not memory enough"),
        ("PIL.Image.open", _short_of_memory, "not memory enough"),
        ("prep.places._read_file", _short_of_memory, "not memory enough"),
        ("cv2.calcHist", _opencv_is_short_of_memory, "not memory enough"),
        ("prep.places._read_file", _no_more_files, "Too many open files"),
    ],
)
def test_a_machine_that_is_short_of_something_is_no_fault_of_a_sample(
    tmp_path: Path,
    seg_prep: SegPrep,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: Callable[..., None],
    message: str,
) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    command = ("camvid", "--root", root, "--out", tmp_path / "out", "--workers", 1, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(where, fault)
        assert message in seg_prep.refused(*command)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert seg_prep(*command)[0] == 0
    assert quarantine(tmp_path / "out") == []
