"""Tar shards: standard USTAR for everybody, exact bytes for us, and nothing believed."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import FormatError, SettingsError
from shards.index import decode_index, encode_index
from shards.tar import TAR_END, IndexEntry, check_key, read_sample, sample_blocks, scan

keys = st.text("abcXYZ019_-é日 ", min_size=1, max_size=20).filter(str.strip)
samples = st.dictionaries(
    st.lists(keys, min_size=1, max_size=3).map("/".join),
    st.dictionaries(st.sampled_from(["jpg", "seg.png", "soft.npz", "json"]), st.binary(max_size=1500), min_size=1),
    min_size=1,
    max_size=5,
)


def shard(content):
    data, entries = b"", []
    for key, members in content.items():
        entries.append(IndexEntry(key, len(data), {s: len(d) for s, d in members.items()}))
        data += sample_blocks(key, members)
    return data + TAR_END, entries


@given(samples)
def test_the_standard_library_reads_what_we_write(content):
    data, _ = shard(content)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {m.name: (tar.extractfile(m).read(), m.mtime, m.uid, m.mode) for m in tar.getmembers()}
    want = {f"{k}.{s}": (d, 0, 0, 0o644) for k, members in content.items() for s, d in members.items()}
    assert found == want


@given(samples)
def test_scan_and_pread_agree_with_the_index(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    data, entries = shard(content)
    path.write_bytes(data)
    assert list(scan(path)) == entries
    assert decode_index(encode_index(entries)) == entries
    for entry in entries:
        assert read_sample(path, entry) == content[entry.key]


def test_long_names_split_at_a_slash():
    key = "city" * 10 + "/" + "x" * 80
    with tarfile.open(fileobj=io.BytesIO(sample_blocks(key, {"jpg": b"1"}) + TAR_END)) as tar:
        assert tar.getnames() == [f"{key}.jpg"]
    with pytest.raises(SettingsError, match="shorten"):
        sample_blocks("x" * 150, {"jpg": b"1"})


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", "a//b", "../a", "a\nb", "a\\b", "x" * 201, "a:b"])
def test_keys_that_break_paths_are_refused(key):
    with pytest.raises(SettingsError, match="key"):
        check_key(key)


def test_unknown_suffixes_are_refused():
    with pytest.raises(SettingsError, match="suffix"):
        sample_blocks("a", {"exe": b""})


@given(st.integers(0, 10**9), st.integers(0, 7))
def test_every_flipped_header_bit_is_found(tmp_path_factory, place, bit):
    data, entries = shard({"a": {"jpg": b"x" * 600, "json": b"{}"}, "b": {"json": b"[]"}})
    headers = [i for e in entries for start in _header_starts(e) for i in range(start, start + 512)]
    damaged = bytearray(data)
    damaged[headers[place % len(headers)]] ^= 1 << bit
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(bytes(damaged))
    with pytest.raises(FormatError):
        list(scan(path))


def _header_starts(entry):
    at = entry.offset
    for size in entry.sizes.values():
        yield at
        at += 512 + -(-size // 512) * 512


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024, 2048, -1, -512, -1024])
def test_truncation_is_found(tmp_path, keep):
    data, _entries = shard({"a": {"jpg": b"x" * 600, "json": b"{}"}})
    path = tmp_path / "a.tar"
    path.write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"a\.tar"):
        list(scan(path))
    path.write_bytes(data + b"more")
    with pytest.raises(FormatError, match="added to"):
        list(scan(path))


def test_an_index_that_names_what_no_header_can_hold(tmp_path):
    """A key of 150 letters fits an index and no tar header: what is read is damaged, the person's settings are not."""
    data, _ = shard({"a": {"jpg": b"x"}})
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(FormatError, match="header differs from the index"):
        read_sample(tmp_path / "s.tar", IndexEntry("a" * 150, 0, {"jpg": 1}))


def test_reading_checks_the_header_against_the_index(tmp_path):
    data, entries = shard({"a": {"jpg": b"x" * 600}})
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="header differs"):
        read_sample(path, IndexEntry("b", 0, {"jpg": 600}))
    with pytest.raises(FormatError, match="truncated"):
        read_sample(path, IndexEntry("a", 1024, {"jpg": 60_000}))
    with pytest.raises(FormatError, match="cannot be opened"):
        read_sample(tmp_path / "none.tar", entries[0])


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"key":"a","offset":1,"members":{"jpg":1}}',
        b'{"key":"a","offset":512,"members":{"jpg":1}}',
        b'{"key":"a","offset":0,"members":{"exe":1}}',
        b'{"key":"a","offset":0,"members":{"jpg":-1}}',
        b'{"key":"a","offset":0,"members":{"jpg":true}}',
        b'{"key":"a.b","offset":0,"members":{"jpg":1}}',
        b'{"key":"a","offset":0,"members":{"jpg":1},"x":1}',
        b'{"key":"a","offset":0,"members":{}}\n{"key":"a","offset":0,"members":{}}',
    ],
)
def test_index_lines_are_checked(line):
    with pytest.raises(FormatError, match=r"^i: "):
        decode_index(line, "i")
