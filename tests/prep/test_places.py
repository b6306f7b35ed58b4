"""Where a sample's bytes lie: files, parts of files, and what must never be taken for a whole one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prep import places
from prep.places import place_name, place_size, read_place
from prep.raw import FilePart
from shards.errors import SampleError


def test_parts_are_read_whole_and_joined_by_newlines(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"0123456789")
    two.write_bytes(b"abcdef")
    parts = (FilePart(one, 8, 2), FilePart(two, 1, 3), FilePart(one, 0, 1))
    assert read_place(parts, "w") == b"89\nbcd\n0"
    assert read_place(parts[1], "w") == b"bcd"
    assert read_place((), "w") == b""


@pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1), (50, 2)])
def test_a_part_beyond_its_file_is_an_error(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with pytest.raises(SampleError, match=r"^w: f ends within it: truncated or changed while it was read$"):
        read_place(FilePart(tmp_path / "f", offset, length), "w")


def test_pipes_folders_and_missing_files_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (("pipe", "not a regular file"), (".", "unreadable file: Is a directory"), ("x", "missing file")):
        with pytest.raises(SampleError, match=rf"^w: {why}$"):
            read_place(tmp_path / path, "w")
    for path in ("x", "a\0b", "\ud800"):
        assert place_size(tmp_path / path) == -1
        with pytest.raises(SampleError, match=r"^w: missing file$"):
            read_place(FilePart(tmp_path / path, 0, 1), "w")


def test_no_more_than_the_cap_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_BYTES", 10)
    (tmp_path / "f").write_bytes(bytes(11))
    part = FilePart(tmp_path / "f", 0, 6)
    assert len(read_place(part, "w")) == 6
    for place in (tmp_path / "f", (part, part), FilePart(tmp_path / "f", 0, 11)):
        with pytest.raises(SampleError, match=r"more (bytes )?than the cap of 10"):
            read_place(place, "w")


def test_names_are_below_the_root(tmp_path: Path) -> None:
    part = FilePart(tmp_path / "a/b.tar", 512, 5, "c\udcff.jpg")
    assert place_name(part, tmp_path) == "a/b.tar/c\\udcff.jpg"
    assert place_name((FilePart(tmp_path / "x.json", 0, 1), FilePart(tmp_path / "x.json", 1, 1)), tmp_path) == "x.json"
    assert place_name((), tmp_path) == "no annotation"
    assert place_name(Path("/else/where.jpg"), tmp_path) == "where.jpg"
