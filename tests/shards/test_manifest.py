"""The manifest: canonical, self-checking, closed to everything else."""

from __future__ import annotations

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import ClassTable, FormatError, SettingsError, UserError, load_manifest
from shards.manifest import Manifest, manifest_bytes, parse_manifest, publish_bytes, seal
from tests.shards.build import CLASSES


def test_reads_what_was_published(tar_set):
    manifest = load_manifest(tar_set)
    assert manifest.class_table == CLASSES
    assert manifest.splits["train"].labelled
    assert not manifest.splits["test"].labelled
    assert manifest_bytes(manifest) == (tar_set / "manifest.json").read_bytes()


@given(st.integers(0, 10**9), st.integers(0, 7))
def test_every_flipped_bit_is_found(tar_set, place, bit):
    data = bytearray((tar_set / "manifest.json").read_bytes())
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(FormatError):
        parse_manifest(bytes(data), "m")


@given(st.integers(0, 10**9))
def test_every_truncation_is_found(tar_set, place):
    data = (tar_set / "manifest.json").read_bytes()
    with pytest.raises(FormatError):
        parse_manifest(data[: place % len(data)], "m")


def nested(depth):
    """A list in a list in a list ..."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["format_version"], 2, "format version 2 found; this release reads 1"),
        (["format_version"], "1", "format_version"),
        (["scales"], "1", "scales"),
        (["splits", "train", "samples"], -1, "samples"),
        (["splits", "train", "samples"], 5.0, "samples"),
        (["splits", "train", "scales", "1", "shards", 0, "path"], "../x.tar", "leaves the folder"),
        (["splits", "train", "scales", "1", "shards", 0, "path"], "/etc/passwd", "leaves the folder"),
        (["splits", "train", "scales", "1", "shards", 0, "path"], "a\\b", "leaves the folder"),
        (["splits", "train", "scales", "1", "shards", 0, "sha256"], "00", "sha256"),
        (["splits", "train", "samples"], 4, "own digest"),
        (["title"], "Another", "own digest"),
        (["extra"], 1, "extra"),
        (["classes", "names", 0], "car", "found twice"),
        (["filter"], "cubic", "cubic"),
        (["scales", 0], "1/0", "'1/0' found"),
        (["title"], "\ud800", "JSON cannot"),
        (["settings"], {"x": float("nan")}, "own digest"),
        (["settings"], {"x": nested(900)}, "JSON cannot"),
        (["classes", "colours", 0, 0], float("inf"), "class table"),
        (["void"], 255, "void"),
    ],
)
def test_wrong_values_are_named(tar_set, path, value, says):
    raw = json.loads((tar_set / "manifest.json").read_bytes())
    place = raw
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    data = json.dumps(raw, sort_keys=True, indent=1).encode() + b"\n"
    with pytest.raises(FormatError, match=says):
        parse_manifest(data, "m")


def test_counts_must_add_up(tar_set):
    from shards.manifest import seal

    manifest = load_manifest(tar_set)
    split = manifest.splits["train"].model_copy(update={"samples": 4})
    wrong = seal(manifest.model_copy(update={"splits": {**manifest.splits, "train": split}}))
    with pytest.raises(FormatError, match="add up"):
        parse_manifest(manifest_bytes(wrong), "m")


def test_files_must_be_large_enough_for_their_samples(tar_set):
    draft, count = load_manifest(tar_set).model_dump(mode="json"), 10**12
    draft["splits"]["train"]["samples"] = count + 3
    for part in draft["splits"]["train"]["scales"].values():
        part["groups"][0] = part["shards"][0]["samples"] = count
    wrong = seal(Manifest.model_validate(draft))
    with pytest.raises(FormatError, match=f"split train at 1: files too small for {count + 3} samples"):
        parse_manifest(manifest_bytes(wrong), "m")


@pytest.mark.parametrize("format", ["tar_set", "zarr_set"])
def test_every_scale_is_stored_in_the_sets_format(format, request):
    from shards.manifest import seal

    manifest = load_manifest(request.getfixturevalue(format))
    for change in ({"shards": []}, {"store": None}, {"store": "x"}, {"store": "x", "shards": []}):
        split = manifest.splits["train"]
        part = split.scales["1"].model_copy(update=change)
        if part == split.scales["1"] or (part.store and not part.shards and manifest.format == "zarr"):
            continue
        split = split.model_copy(update={"scales": {**split.scales, "1": part}})
        wrong = seal(manifest.model_copy(update={"splits": {**manifest.splits, "train": split}}))
        with pytest.raises(FormatError, match=r"not stored as|add up"):
            parse_manifest(manifest_bytes(wrong), "m")
    with pytest.raises(FormatError, match="no split"):
        parse_manifest(manifest_bytes(seal(manifest.model_copy(update={"splits": {}}))), "m")


def test_no_manifest_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="build it with seg-prep"):
        load_manifest(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(UserError, match="not finished"):
        load_manifest(tmp_path)


def test_class_tables():
    table = ClassTable.make([f"c{i}" for i in range(300)])
    assert ClassTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert len(set(table.colours)) == 300
    assert table.digest != ClassTable.make([f"c{i}" for i in range(299)]).digest
    for names in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(SettingsError):
            ClassTable.make(names)
    with pytest.raises(SettingsError, match="differ in length"):
        ClassTable.make(["a", "b"], colours=[(0, 0, 0)])
    with pytest.raises(SettingsError, match="0 to 255"):
        ClassTable.make(["a"], colours=[(0, 0, 256)])
    for broken in ({}, {**table.to_dict(), "wnids": [1] * 300}, {**table.to_dict(), "colours": [[1, 2]] * 300}):
        with pytest.raises(SettingsError):
            ClassTable.from_dict(broken)


def test_publishing_is_synced_file_first_then_renamed_then_folder(tmp_path, monkeypatch):
    steps, fsync = [], os.fsync

    def note(handle):
        is_folder = os.path.samestat(os.fstat(handle), tmp_path.stat())
        steps.append("folder" if is_folder else "file")
        steps.append("in place" if (tmp_path / "card").exists() else "not yet")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    publish_bytes(tmp_path / "card", b"x")
    assert steps == ["file", "not yet", "folder", "in place"]
    assert [path.name for path in tmp_path.iterdir()] == ["card"]


names = st.text('ab"\\\n\x7fé', max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(values, st.sampled_from([1, 2, 0]))
def test_the_quick_check_of_bytes_is_the_slow_one(tar_set, value, indent):
    """Whatever JSON the settings hold: canonical bytes are taken, the same content laid out otherwise is not."""
    manifest = seal(load_manifest(tar_set).model_copy(update={"settings": {"digest": value, "a": [], "b": {}}}))
    data = manifest_bytes(manifest)
    assert parse_manifest(data, "m") == manifest
    other = json.dumps(json.loads(data), sort_keys=True, indent=indent, ensure_ascii=indent == 1).encode() + b"\n"
    if other != data:
        with pytest.raises(FormatError, match="own digest"):
            parse_manifest(other, "m")


def test_a_thousand_shards_open_quickly(tar_set):
    """Of the manifest of 1,000 shards; a generous bound, since other work goes on beside the tests."""
    manifest = load_manifest(tar_set)
    split = manifest.splits["train"]
    shard = split.scales["1"].shards[0]
    many = [shard.model_copy(update={"path": f"train/1/train-1-{i:05d}.tar"}) for i in range(1000)]
    part = split.scales["1"].model_copy(update={"shards": many, "groups": [shard.samples] * 1000})
    split = split.model_copy(update={"samples": 1000 * shard.samples, "scales": {"1": part}})
    data = manifest_bytes(seal(manifest.model_copy(update={"splits": {"train": split}, "scales": ["1"]})))
    took = []
    for _ in range(3):
        began = time.perf_counter()
        parse_manifest(data, "m")
        took.append(time.perf_counter() - began)
    assert min(took) < 0.15
