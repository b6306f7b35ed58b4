"""Updates that are refused, and old sets that are damaged: nothing damaged is copied into a set that looks whole."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.build.counts import Counts
from prep.build.known import Known, digest_bytes
from prep.build.source import read_source
from prep.build.sources import decode_line, encode_line
from prep.raw import FilePart, RawSample
from shards import load_manifest, manifest
from shards.errors import FormatError, SettingsError
from shards.scale import Scale
from shards.verify import verify
from tests.prep.builds import SegPrep, run_build, tree
from tests.prep.raw_edits import Raw

OPTIONS: dict[str, Any] = {"scales": "1", "shard_size": 16_000}


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path / "raw").fill({"train": 12, "val": 2})


def build(raw: Raw, out: Path, **options: Any) -> Any:
    return run_build("camvid", raw.root, out, **{**OPTIONS, **options})


def change(raw: Raw, stem: str = "f0060") -> None:
    raw.splits["train"][stem] = raw.new()
    raw.write()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"filter": "triangle"}, "filter box -> triangle"),
        ({"splits": ("val",)}, "splits train,val -> val"),
        ({"limit": 3}, "limit none -> 3"),
        ({"format": "zarr"}, "format webdataset -> zarr"),
        ({"weak": True}, "weak none -> images"),
    ],
)
def test_other_settings_are_refused(raw: Raw, tmp_path: Path, options: dict[str, Any], what: str) -> None:
    build(raw, tmp_path / "out")
    change(raw)
    before = tree(tmp_path / "out")
    with pytest.raises(SettingsError, match=f"differs in {what}: --update expects the same settings"):
        build(raw, tmp_path / "out", update=True, **options)
    assert tree(tmp_path / "out") == before


def test_another_class_table_is_refused(raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.classes import ClassTable

    build(raw, tmp_path / "out")
    monkeypatch.setattr("prep.datasets.camvid.load_classes", lambda name: ClassTable.make(tuple("abcdefghijk")))
    with pytest.raises(SettingsError, match="differs in classes"):
        build(raw, tmp_path / "out", update=True)


def test_other_libraries_are_refused(raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer one may write other bytes: old and new samples would differ from what either version gives."""
    build(raw, tmp_path / "out")
    change(raw)
    monkeypatch.setattr("prep.build.update.library_versions", lambda: {"shard cut": "by content", "numpy": "0.0.1"})
    with pytest.raises(SettingsError, match=r"other library versions, which differ in numpy .* -> 0\.0\.1.*--fresh"):
        build(raw, tmp_path / "out", update=True)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"libraries": 3}', b"{}"])
def test_a_set_that_does_not_say_its_libraries_is_refused(raw: Raw, tmp_path: Path, damage: bytes) -> None:
    build(raw, tmp_path / "out")
    (tmp_path / "out" / "stats.json").write_bytes(damage)
    with pytest.raises(SettingsError, match="other library versions"):
        build(raw, tmp_path / "out", update=True)


def test_a_set_without_checksums_of_samples_must_be_built_once_more(raw: Raw, tmp_path: Path) -> None:
    """What is kept of it would have none, and a build from scratch has them everywhere."""
    path = tmp_path / "out" / "stats.json"
    build(raw, tmp_path / "out")
    found = json.loads(path.read_bytes())
    assert found["libraries"].pop("sample checksums") == "crc32"
    path.write_text(json.dumps(found))
    with pytest.raises(SettingsError, match=r"which differ in sample checksums none -> crc32.*--fresh"):
        build(raw, tmp_path / "out", update=True)
    assert all("crc32" in line for line in min((tmp_path / "out").rglob("*.index.jsonl")).read_text().splitlines())


def test_a_set_of_an_older_release_must_be_built_once_more(raw: Raw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(raw, out)
    found = load_manifest(out)
    older = found.model_copy(update={"files": [f for f in found.files if not f.path.endswith("/sources.jsonl")]})
    for path in out.rglob("sources.jsonl"):
        path.unlink()
    manifest.publish(older, out)
    assert not list(verify(out))
    assert build(raw, out).state is None  # complete, as it was
    with pytest.raises(SettingsError, match=r"built without sources\.jsonl.*build it once with --fresh"):
        build(raw, out, update=True)
    build(raw, out, fresh=True)
    change(raw)
    assert build(raw, out, update=True).changes["train"].changed == 1


def test_fresh_and_update_exclude_each_other(raw: Raw, tmp_path: Path, seg_prep: SegPrep) -> None:
    line = seg_prep.refused("camvid", "--root", raw.root, "--out", tmp_path / "out", "--fresh", "--update")
    assert "--fresh and --update" in line
    assert not (tmp_path / "out").exists()


def test_foreign_files_are_refused(raw: Raw, tmp_path: Path) -> None:
    build(raw, tmp_path / "out")
    change(raw)
    (tmp_path / "out" / "val" / "notes.txt").write_text("mine")
    before = tree(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"val/notes\.txt"):
        build(raw, tmp_path / "out", update=True)
    assert tree(tmp_path / "out") == before


def test_a_split_without_a_usable_sample_leaves_the_old_set(raw: Raw, tmp_path: Path) -> None:
    from shards.errors import UserError

    build(raw, tmp_path / "out")
    before = tree(tmp_path / "out")
    raw.splits["val"] = {"x": (b"", b"")}
    with pytest.raises(UserError, match=r"split 'val' has no usable sample.*run again with --update"):
        build(raw.write(), tmp_path / "out", update=True)
    assert {name: data for name, data in tree(tmp_path / "out").items() if not name.startswith(".build")} == before


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["train/sources.jsonl", "quarantine.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "gone", "cut"])
def test_damaged_lists_are_refused(raw: Raw, tmp_path: Path, name: str, damage: str) -> None:
    raw.splits["train"]["f0020"] = (b"", b"")
    build(raw.write(), tmp_path / "out")
    change(raw)
    path = tmp_path / "out" / name
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path)
    if (name, damage) == ("manifest.json", "gone"):
        with pytest.raises(SettingsError, match="not part of a build"):
            build(raw, tmp_path / "out", update=True)
    else:
        with pytest.raises(FormatError, match="--fresh"):
            build(raw, tmp_path / "out", update=True)


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_a_damaged_sample_is_not_copied(raw: Raw, tmp_path: Path, format: str) -> None:
    """The flipped bit would get a checksum of its own, and no one would ever find it."""
    out = tmp_path / "out"
    build(raw, out, format=format, shard_size=10**6)
    large = max((path for path in (out / "train").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flip(large)
    change(raw)
    before = tree(out)
    with pytest.raises(FormatError, match=large.name if format == "webdataset" else "checksum"):
        build(raw, out, format=format, shard_size=10**6, update=True)
    assert {name: data for name, data in tree(out).items() if not name.startswith(".build")} == before


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_damage_in_a_file_that_is_kept_stays_visible(raw: Raw, tmp_path: Path, format: str) -> None:
    """Its checksum in the new manifest is the old one."""
    out = tmp_path / "out"
    build(raw, out, format=format)
    large = max((path for path in (out / "val").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flip(large)
    change(raw)
    assert build(raw, out, format=format, update=True).changes["val"].rewritten == 0
    assert any(large.name in problem for problem in verify(out))


def test_an_index_that_is_not_its_shards_is_refused(raw: Raw, tmp_path: Path) -> None:
    build(raw, tmp_path / "out")
    change(raw)
    path = sorted((tmp_path / "out" / "train").rglob("*.index.jsonl"))[0]
    path.write_bytes(path.read_bytes().replace(b"f0010", b"f0011"))
    with pytest.raises(FormatError, match="differs from the manifest"):
        build(raw, tmp_path / "out", update=True)


def test_a_digest_knows_all_that_decides_the_stored_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "other").write_bytes(b"Same")
    a, b, c, other = (tmp_path / name for name in ("a", "b", "c", "other"))
    sample = RawSample("key", a, b)
    samples = [
        sample,
        replace(sample, key="Key"),
        replace(sample, image=c),
        replace(sample, image=other),
        replace(sample, image=tmp_path / "absent"),
        replace(sample, label=c),
        replace(sample, label=other),
        replace(sample, label=None),
        replace(sample, label=(FilePart(b, 0, 4), FilePart(b, 0, 0))),
        replace(sample, instances=c),
        replace(sample, instances=b),
        replace(sample, weak=(1,)),
        replace(sample, meta={"x": 1}),
        replace(sample, facts=(1, 2)),
        replace(sample, problem="bad"),
        replace(sample, problem="bad", image=c),
        replace(sample, problem="worse"),
    ]
    digests = [read_source(tmp_path, "train", each, "p: ", True).digest for each in samples]
    assert len({*digests, read_source(tmp_path, "val", sample, "p: ", True).digest}) == len(samples) + 1
    assert all(len(digest) == 22 for digest in digests)
    part = replace(sample, label=FilePart(tmp_path / "b", 0, 4))  # where in a file the bytes lie does not matter
    assert read_source(tmp_path, "train", part, "p: ", True).digest == digests[0]
    unused = replace(sample, instances=c)  # and no instance map is read where none is stored
    assert read_source(tmp_path, "train", unused, "p: ", False).digest == digests[0]


SCALES = Scale.parse_many("1,1/2,1/4")
numbers = st.dictionaries(st.integers(0, 70_000), st.integers(1, 10**9), max_size=5)
one = st.builds(
    lambda samples, pixels, more, mixed, tally: Counts(
        samples, Counter(pixels), Counter(pixels.keys()) + Counter(more), mixed, Counter(tally)
    ),
    st.integers(1, 99),
    numbers,
    numbers,
    st.dictionaries(st.sampled_from(["1/2", "1/4"]), st.lists(st.integers(1, 10**6), min_size=2, max_size=2)),
    st.dictionaries(st.text(max_size=4), st.integers(1, 99), max_size=3),
)


@given(one)
def test_a_line_comes_back(counts: Counts) -> None:
    line = encode_line("x" * 22, counts, SCALES)
    assert line.count(b"\n") == 1
    assert decode_line(line, SCALES, "here", 1) == ("x" * 22, counts)


def test_lines_are_short() -> None:
    tagged = Counts(1, Counter(), Counter({1234: 1}))
    assert len(encode_line("x" * 22, tagged, SCALES)) == 43
    assert len(encode_line("x" * 22, Counts(), SCALES)) == 29


@given(
    st.binary(max_size=60) | st.recursive(st.integers() | st.text(max_size=3), st.lists).map(json.dumps).map(str.encode)
)
def test_other_lines_are_typed_errors(line: bytes) -> None:
    with pytest.raises(FormatError, match="line 7 is not one of a source sample"):
        decode_line(line, SCALES, "here", 7)


def test_digests_are_found_and_no_others(tmp_path: Path) -> None:
    import base64

    draw = random.Random(5)
    texts = [base64.urlsafe_b64encode(draw.randbytes(16)).decode().rstrip("=") for _ in range(300)]
    alike = base64.urlsafe_b64encode(digest_bytes(texts[0])[:8] + b"another ").decode().rstrip("=")
    known = Known.write(tmp_path / "known.npy", b"".join(map(digest_bytes, [*texts[:200], alike])))
    assert [known.find(text) for text in texts] == [*range(200), *[None] * 100]
    assert known.find(alike) == 200
    unknown = base64.urlsafe_b64encode(digest_bytes(texts[0])[:8] + b"a third ").decode().rstrip("=")
    assert known.find(unknown) is None
