"""Walking the headers of raw tars: Python's tarfile is the oracle; what is damaged is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from prep.places import read_place
from prep.raw import FilePart
from prep.wnids.tarfiles import members
from shards.errors import LayoutError
from tests.fakes_imagenet import fake_whole_tar, tar_bytes, write

LONG = "n02084071/" + "x" * 180 + "/" + "y" * 120 + ".JPEG"
FILES = {
    "n02084071_1.JPEG": b"a" * 700,
    "./n02084071_2.JPEG": b"b" * 512,
    LONG: b"c" * 513,
    "犬.JPEG": b"d",
    "empty.JPEG": b"",
    "folder/" * 20 + "n02084071_3.JPEG": b"e" * 1024,
}
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    files = {name: data for name, data in FILES.items() if name != LONG or form != tarfile.USTAR_FORMAT}
    path = write(tmp_path / "x.tar", tar_bytes(files, form))
    with tarfile.open(path) as tar:
        want = [(m.name, m.offset_data, m.size) for m in tar]
    found = list(members(path))
    assert [(m.path, m.place.offset, m.place.length) for m in found] == want
    assert [read_place(m.place, "x") for m in found] == list(files.values())
    assert all(m.problem is None for m in found)


def test_a_tar_in_a_tar(tmp_path: Path) -> None:
    root = fake_whole_tar(tmp_path)
    inner = {m.path: m.place for m in members(root / "fall11_whole.tar")}
    with tarfile.open(root / "fall11_whole.tar") as outer:
        for name, place in inner.items():
            with tarfile.open(fileobj=outer.extractfile(name)) as tar:
                want = {f"{name}/{m.name}": tar.extractfile(m).read() for m in tar}
            assert {m.place.name: read_place(m.place, "x") for m in members(place)} == want


def test_folders_are_passed_over_and_links_are_a_problem(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("s.JPEG", tarfile.SYMTYPE), ("h.JPEG", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.JPEG"
            member.size = 700 if kind == tarfile.LNKTYPE else 0  # of what it links to; no bytes follow
            tar.addfile(member)
        member = tarfile.TarInfo("a.JPEG")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    found = list(members(write(tmp_path / "x.tar", out.getvalue())))
    assert [m.path for m in found] == ["s.JPEG", "h.JPEG", "a.JPEG"]
    assert [m.problem for m in found] == [
        "a symbolic link in a tar; expected an image",
        "a hard link in a tar; expected an image",
        None,
    ]
    assert read_place(found[2].place, "x") == b"abc"


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_is_noticed(tmp_path: Path, form: int) -> None:
    """Wherever a tar is cut before its end mark, the walk says so and names it."""
    files = {"a.JPEG": b"a" * 700, "犬" * 20 + ".JPEG": b"b" * 600}
    data = tar_bytes(files, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in tar)
    for cut in (0, 1, 511, 512, 600, 1211, 1212, *range(1536, end, 97), end - 1, end, end + 511):
        path = write(tmp_path / "n02084071.tar", data[:cut])
        with pytest.raises(LayoutError, match=r"n02084071\.tar (ends|has a damaged).*download or copy it again"):
            list(members(path))
    assert len(list(members(write(tmp_path / "n02084071.tar", data[: end + 512])))) == 2


def test_a_part_ends_where_it_ends(tmp_path: Path) -> None:
    """A tar within a tar is cut by its own length, however the file goes on."""
    inner = tar_bytes({"a.JPEG": b"a" * 700})
    path = write(tmp_path / "whole.tar", bytes(512) + inner + tar_bytes({"b.JPEG": b"b"}))
    with pytest.raises(LayoutError, match=r"n1\.tar in .*whole\.tar ends within a\.JPEG: truncated"):
        list(members(FilePart(path, 512, 700, "n1.tar")))
    assert [m.place.name for m in members(FilePart(path, 512, len(inner), "n1.tar"))] == ["n1.tar/a.JPEG"]


def test_sizes_beyond_what_octal_holds(tmp_path: Path) -> None:
    """GNU writes them in base 256, pax as text; both are read, and then found to be more than there is."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = tarfile.TarInfo("huge.JPEG")
        member.size = 9 << 33
        path = write(tmp_path / "x.tar", member.tobuf(form) + bytes(4096))
        with pytest.raises(LayoutError, match=r"ends within huge\.JPEG: truncated"):
            list(members(path))


@pytest.mark.parametrize(
    ("at", "value"), [(0, b"z"), (124, b"0000000x"), (148, b"9"), (156, b"1"), (124, b"\xff" * 12)]
)
def test_a_damaged_header_is_noticed(tmp_path: Path, at: int, value: bytes) -> None:
    data = bytearray(tar_bytes({"a.JPEG": b"a" * 700, "b.JPEG": b"b"}))
    data[1536 + at : 1536 + at + len(value)] = value
    with pytest.raises(LayoutError, match=r"x\.tar has a damaged header at byte 1536"):
        list(members(write(tmp_path / "x.tar", bytes(data))))


def pax_member(record: bytes) -> bytes:
    """A tar whose one member has a pax header with some record before it."""
    header = tarfile.TarInfo("x")
    header.size, header.type = len(record), tarfile.XHDTYPE
    padded = record + bytes(-len(record) % 512)
    return header.tobuf() + padded + tar_bytes({"a.JPEG": b"a"})


def test_pax_headers_may_give_path_and_size(tmp_path: Path) -> None:
    (member,) = members(write(tmp_path / "x.tar", pax_member(b"13 path=b.JP\n9 size=1\n")))
    assert (member.path, member.place.length) == ("b.JP", 1)


@pytest.mark.parametrize(
    "record",
    [
        *(b"%d size=%s\n" % (len(size) + 9, size) for size in (b"99999999999999999999999", b"-1", b"abc")),
        b"5008 size=" + b"9" * 4997 + b"\n",
        b"12 path=b.JP\n",
        b"99 path=b.JP\n",
        b"x path=b.JP\n",
        b"0 path=b.JP\n",
        b"13 path=b.JPx",
    ],
)
def test_damaged_pax_headers_are_noticed(tmp_path: Path, record: bytes) -> None:
    with pytest.raises(LayoutError, match=r"x\.tar has a damaged header"):
        list(members(write(tmp_path / "x.tar", pax_member(record))))


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"x\.tar is gzip-compressed.*gunzip"):
        list(members(write(tmp_path / "x.tar", b"\x1f\x8b\x08" + b"\0\1" * 600)))
    with pytest.raises(LayoutError, match=r"x\.tar has a damaged header at byte 0"):
        list(members(write(tmp_path / "x.tar", b"hello" * 600)))
    with pytest.raises(LayoutError, match="cannot be read"):
        list(members(tmp_path / "nowhere.tar"))
