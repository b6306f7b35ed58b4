"""Zarr stores by ranges: the same bytes as zarr-python gives, in our layout and in others."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from shards import FormatError, zarrset
from shards.arrays import CHUNKS
from shards.cache import CacheSettings
from shards.manifest import Manifest, publish
from shards.store import open_store
from shards.zarrset import ABSENT, PlainBytes
from tests.shards.build import SCALES, build, file_of, seal_anew
from tests.shards.server import Server


def all_members(folder, scale="1/2", check=True):
    ds = shards.open(folder, split="train", scale=scale, check=check)
    return [ds.members(i) for i in range(len(ds))]


@pytest.mark.parametrize("scale", SCALES)
def test_our_layout_needs_no_zarr(zarr_set, tar_set, scale, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.delitem(sys.modules, "shards.foreign", raising=False)
    assert all_members(zarr_set, scale) == all_members(tar_set, scale)
    monkeypatch.setattr(zarrset, "_crc32c", lambda: None)
    with pytest.raises(ImportError):
        all_members(zarr_set, scale)


def test_without_its_checksum_zarr_reads_the_same(zarr_set, tar_set, monkeypatch):
    monkeypatch.setattr(zarrset, "_crc32c", lambda: None)
    assert all_members(zarr_set) == all_members(tar_set)


def rewrite(folder, **layout):
    """Write the arrays of a store again, laid out otherwise."""
    for scale in SCALES:
        name = scale.replace("/", "-")
        group = zarr.open_group(str(folder / f"train/{name}/train-{name}.zarr"), mode="r+")
        for member in [name for name, _ in group.groups()]:
            for part in ("data", "offsets"):
                values = group[f"{member}/{part}"][:]
                del group[f"{member}/{part}"]
                array = group.create_array(f"{member}/{part}", shape=values.shape, dtype=values.dtype, **layout)
                array[:] = values
    seal_anew(folder)


@pytest.mark.parametrize(
    "layout", [{"chunks": (777,)}, {"chunks": (50,), "shards": (1000,)}, {"chunks": (1 << 20,), "compressors": None}]
)
def test_other_layouts_are_read_as_well(tmp_path, tar_set, layout, monkeypatch):
    build(tmp_path / "set", "zarr")
    rewrite(tmp_path / "set", **layout)
    assert all_members(tmp_path / "set") == all_members(tar_set)
    assert shards.open(tmp_path / "set", split="train").keys() == shards.open(tar_set, split="train").keys()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(tmp_path / "set") as server:
        ds = shards.open(server.url, split="train", scale="1/2", cache=CacheSettings(tmp_path / "cache", timeout=2))
        ds.ahead(range(5))
        assert [ds.members(i) for i in range(5)] == all_members(tar_set)
        paths = [one.path for one in server.asked]
    assert len(paths) == len(set(paths))


def test_other_layouts_are_not_trusted_either(tmp_path, monkeypatch):
    build(tmp_path, "zarr")
    rewrite(tmp_path, chunks=(777,))
    chunk = max((tmp_path / "train/1-2/train-1-2.zarr/image/data/c").iterdir())
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-9] + b"x" * 9)
    with pytest.raises(FormatError, match=r"image.*cannot be read"):
        all_members(tmp_path, check=False)
    chunk.unlink()
    with pytest.raises(FormatError, match=r"image/data/c/\d+"):
        all_members(tmp_path, check=False)
    chunk.write_bytes(data)
    monkeypatch.setattr("shards.foreign.MAX_CHUNK", 500)
    with pytest.raises(FormatError, match="chunks of more than 500"):
        all_members(tmp_path, check=False)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 5), st.binary(min_size=1, max_size=90), st.integers(0, 3), st.data()
)  # fmt: skip
def test_any_range_is_what_zarr_gives(tmp_path_factory, chunk, chunks, content, zeros, data):
    """Chunks of zeros are not written; ranges may cross chunks, shards and those."""
    folder = tmp_path_factory.mktemp("z")
    values = np.frombuffer(content, np.uint8).copy()
    values[: zeros * chunk * 2] = 0
    array = zarr.create_array(
        str(folder / "a"), shape=values.shape, chunks=(chunk,), shards=(chunk * chunks,), dtype="uint8",
        compressors=None, filters=None, fill_value=0,
    )  # fmt: skip
    array[:] = values
    files = {str(p.relative_to(folder)): file_of(folder, p) for p in (folder / "a/c").glob("*")}
    plain = PlainBytes(open_store(folder), files, "a", len(values), chunk * chunks, chunk)
    start = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(start, len(values)))
    assert plain.read(start, end) == array[start:end].tobytes() == values[start:end].tobytes()
    ranges = [(start, end), *data.draw(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=6))]
    starts, ends = (np.array([side(pair) for pair in ranges], np.uint64) for side in (min, max))
    expected: dict[str, int] = {}
    for place, (low, high) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        for byte in range(low, high):
            expected.setdefault(f"a/c/{byte // (chunk * chunks)}", place)
    there = {path: place for path, place in expected.items() if path in files}
    assert {f.path: place for place, f in plain.files(starts, ends)} == there


@pytest.mark.parametrize(
    ("place", "value"), [((0, 0), 1 << 20), ((0, 0), ABSENT - 3), ((0, 1), 5), ((0, 1), ABSENT), ((0, 0), 1)]
)
@pytest.mark.parametrize("sealed", [True, False])
def test_the_index_of_a_shard_is_not_trusted(tmp_path, place, value, sealed):
    import google_crc32c

    build(tmp_path, "zarr")
    path = tmp_path / "train/1/train-1.zarr/image/data/c/0"
    data = path.read_bytes()
    pairs = np.frombuffer(data[-16 * CHUNKS - 4 : -4], "<u8").reshape(CHUNKS, 2).copy()
    pairs[place] = value
    index = pairs.tobytes()
    checksum = google_crc32c.value(index).to_bytes(4, "little") if sealed else data[-4:]
    path.write_bytes(data[: -len(index) - 4] + index + checksum)
    if sealed and (place, value) == ((0, 0), 1):  # a place within the file: other bytes, which are no image
        with pytest.raises(FormatError, match="not a JPEG, PNG or WebP image"):
            all_members(tmp_path, "1", check=False)
        return
    says = "its index does not fit the chunks" if sealed else "checksum of its index differs"
    with pytest.raises(FormatError, match=rf"image/data/c/0 \[image of city/train_000\]: {says}"):
        all_members(tmp_path, "1", check=False)


def claim(folder, member, extra, drop):
    """A sealed set whose last sample's member claims so many bytes more, and lacks the files of its data or not."""
    store = folder / "train/1/train-1.zarr" / member
    meta = store / "data/zarr.json"
    values = json.loads(meta.read_text())
    values["shape"] = [values["shape"][0] + extra]
    meta.write_text(json.dumps(values))
    chunk = store / "offsets/c/0"
    offsets = np.frombuffer(chunk.read_bytes(), "<u8").copy()
    offsets[-1] += extra
    chunk.write_bytes(offsets.tobytes())
    if drop:
        shutil.rmtree(store / "data/c")
    seal_anew(folder)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("member", ["image", "key"])
def test_bytes_that_no_file_holds_are_not_allocated(tmp_path, member, drop, foreign, monkeypatch):
    """A manifest may lie with a good digest: 1.9 GB of zeros that no file has."""
    import tracemalloc

    build(tmp_path, "zarr")
    claim(tmp_path, member, 1_900_000_000, drop)
    if foreign:
        monkeypatch.setattr(zarrset, "_crc32c", lambda: None)
    ds = shards.open(tmp_path, split="train")
    with contextlib.suppress(FormatError):
        ds[0]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=rf"train-1\.zarr.*{member}.*1900\d+ bytes (asked for|found)") as caught:
            ds.keys() if member == "key" else ds[4]
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_number_of_samples_that_no_file_holds_is_not_allocated(tmp_path):
    """Neither by the sizes in a manifest, nor where that lies about these as well."""
    count = 10**11
    build(tmp_path, "zarr")
    for path in tmp_path.glob("train/1/*.zarr/*/offsets/zarr.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "shape": [count + 1]}))
    draft = seal_anew(tmp_path).model_dump(mode="json")
    draft["splits"]["train"]["samples"] = count
    for part in draft["splits"]["train"]["scales"].values():
        part["groups"] = [count]
    publish(Manifest.model_validate(draft), tmp_path)
    with pytest.raises(FormatError, match=f"split train at 1: files too small for {count} samples"):
        shards.open(tmp_path, "train")
    for part in draft["splits"]["train"]["scales"].values():
        part["files"].append({"path": f"{part['store']}/other", "bytes": count, "sha256": "0" * 64})
    publish(Manifest.model_validate(draft), tmp_path)
    for call in (lambda ds: ds[0], lambda ds: ds.keys()):
        with pytest.raises(FormatError, match=r"names no chunk 1 of its offsets|holds no whole chunk"):
            call(shards.open(tmp_path, "train"))
