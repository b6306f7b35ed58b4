"""An update gives what a build from scratch gives, and leaves the shards alone that need not change."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prep.build.update import SplitChange
from prep.pipeline import Outcome
from tests.prep.builds import run_build, tree
from tests.prep.raw_edits import EDITS, Raw, pair

OPTIONS: dict[str, Any] = {"scales": "1,1/2", "shard_size": 16_000}
KINDS: dict[str, dict[str, Any]] = {
    "webdataset": OPTIONS,
    "zarr": {**OPTIONS, "format": "zarr"},
    "weak": {**OPTIONS, "scales": "1", "weak": True},
    "windows": {**OPTIONS, "scales": "1,1/2", "weak": True, "weak_crop": 16},
    "jpeg, no scale 1": {**OPTIONS, "scales": "1/2,1/4", "image_format": "jpeg:90"},
}


def build(raw: Raw, out: Path, **options: Any) -> Outcome:
    return run_build("camvid", raw.root, out, **{**OPTIONS, **options})


def statistics(out: Path) -> dict[str, Any]:
    """stats.json without what depends on the machine."""
    found: dict[str, Any] = json.loads((out / "stats.json").read_text())
    return {name: value for name, value in found.items() if name != "time"}


def check_like_scratch(raw: Raw, out: Path, scratch: Path, **options: Any) -> None:
    build(raw, scratch, **options)
    assert tree(out) == tree(scratch)
    assert statistics(out) == statistics(scratch)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in scratch.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_any_edits_end_in_the_bytes_of_a_build_from_scratch(tmp_path: Path, kind: str) -> None:
    draw, options = random.Random(kind), KINDS[kind]
    raw = Raw(tmp_path / "raw").fill({"train": 9, "val": 4})
    build(raw, tmp_path / "out", **options)
    for step in range(3):
        edits = [raw.edit(draw) for _ in range(draw.choice((1, 1, 3)))]
        build(raw, tmp_path / "out", update=True, **options)
        try:
            check_like_scratch(raw, tmp_path / "out", tmp_path / f"scratch{step}", **options)
        except AssertionError as error:
            raise AssertionError(f"after {edits}: {error}") from None


@pytest.mark.parametrize("edit", EDITS)
def test_each_kind_of_edit(tmp_path: Path, edit: str) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 9, "val": 4})
    if edit == "mend":
        EDITS["spoil"](raw, random.Random(1), "train", "f0030")
        raw.write()
    build(raw, tmp_path / "out")
    before = {split: dict(samples) for split, samples in raw.splits.items()}
    EDITS[edit](raw, random.Random(2), "train", "f0050")
    assert raw.write().splits != before or edit == "swap"
    build(raw, tmp_path / "out", update=True)
    check_like_scratch(raw, tmp_path / "out", tmp_path / "scratch")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_update_did_is_told(tmp_path: Path, workers: int) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 40, "val": 3})
    build(raw, tmp_path / "out")
    train = raw.splits["train"]
    del train["f0100"]
    train["f0200"], train["new1"], train["new2"] = raw.new(), raw.new(), raw.new()
    raw.splits["val"]["f0020"] = (b"", b"")
    raw.splits["test"] = {"t": raw.new()}
    raw.write()
    outcome = build(raw, tmp_path / "out", update=True, workers=workers)
    changes = outcome.changes
    shards = len(list((tmp_path / "out" / "train").rglob("*.tar")))
    assert shards >= 20
    assert (changes["train"].unchanged, changes["train"].added, changes["train"].changed) == (38, 2, 1)
    assert changes["train"].removed == 1
    assert changes["train"].kept + changes["train"].rewritten == shards
    assert changes["train"].kept > shards / 3
    assert (changes["val"].unchanged, changes["val"].changed, changes["val"].removed) == (2, 1, 0)
    assert changes["test"] == SplitChange(added=1, rewritten=2)
    check_like_scratch(raw, tmp_path / "out", tmp_path / "scratch")
    del raw.splits["val"]
    gone = build(raw.write(), tmp_path / "out", update=True).changes
    assert gone["val"] == SplitChange(removed=3)
    assert gone["train"].rewritten == gone["test"].rewritten == 0


def test_shards_that_stay_are_moved_and_not_written(tmp_path: Path) -> None:
    """A sample at the front: later shards get other numbers, and are the same files on disk."""
    raw = Raw(tmp_path / "raw").fill({"train": 40})
    build(raw, tmp_path / "out", shard_size=30_000)
    places = {path.stat().st_ino: path for path in (tmp_path / "out").rglob("*.tar")}
    times = {path.stat().st_ino: path.stat().st_mtime_ns for path in places.values()}
    raw.splits["train"] = {"first": raw.new(), **raw.splits["train"]}
    raw.write()
    change = build(raw, tmp_path / "out", update=True, shard_size=30_000).changes["train"]
    after = {path.stat().st_ino: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    same = times.items() & after.items()
    assert len(same) == change.kept > len(after) / 2
    check_like_scratch(raw, tmp_path / "out", tmp_path / "scratch", shard_size=30_000)


def test_shards_of_one_sample_are_all_kept(tmp_path: Path) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 6})
    build(raw, tmp_path / "out", shard_size=1)
    items = list(raw.splits["train"].items())
    raw.splits["train"] = dict([*items[:2], ("new", raw.new()), *items[2:5]])
    change = build(raw.write(), tmp_path / "out", update=True, shard_size=1).changes["train"]
    assert change == SplitChange(unchanged=5, added=1, removed=1, kept=10, rewritten=2)
    check_like_scratch(raw, tmp_path / "out", tmp_path / "scratch", shard_size=1)


def test_only_what_has_changed_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prep.build import encode

    raw = Raw(tmp_path / "raw").fill({"train": 12})
    build(raw, tmp_path / "out")
    raw.splits["train"]["f0070"] = raw.new()
    raw.write()
    decoded: list[str] = []
    original = encode.decode_source
    monkeypatch.setattr(encode, "decode_source", lambda data, where: decoded.append(where) or original(data, where))
    build(raw, tmp_path / "out", update=True)
    assert decoded == ["camvid f0070: train/f0070.png"]


def test_a_change_that_keeps_the_size_is_found(tmp_path: Path) -> None:
    """The listing knows names and sizes only."""
    raw = Raw(tmp_path / "raw").fill({"train": 6})
    path = raw.root / "train" / "f0030.png"
    build(raw, tmp_path / "out")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert build(raw, tmp_path / "out").state is None  # "complete; nothing to do"
    outcome = build(raw, tmp_path / "out", update=True)
    assert outcome.changes["train"].changed == 1
    assert [bad.key for bad in outcome.bad] == ["f0030"]
    raw.splits["train"]["f0030"] = (bytes(data), pair(3)[1])
    check_like_scratch(raw, tmp_path / "out", tmp_path / "scratch")


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_where_nothing_has_changed_nothing_is_touched(tmp_path: Path, format: str) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 6, "val": 3})
    build(raw, tmp_path / "out", format=format)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    outcome = build(raw, tmp_path / "out", format=format, update=True)
    assert outcome.state is None
    assert outcome.changes["train"].unchanged == 6
    assert outcome.changes["val"].rewritten == 0
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_only_the_stores_of_an_affected_split_are_rewritten(tmp_path: Path) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 6, "val": 3})
    build(raw, tmp_path / "out", format="zarr")
    inodes = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.zarr")}
    raw.splits["val"]["f0010"] = raw.new()
    changes = build(raw.write(), tmp_path / "out", format="zarr", update=True).changes
    assert (changes["train"].kept, changes["train"].rewritten) == (2, 0)
    assert (changes["val"].kept, changes["val"].rewritten) == (0, 2)
    kept = {path for path in inodes if path.stat().st_ino == inodes[path]}
    assert {path.relative_to(tmp_path / "out").parts[0] for path in kept} == {"train"}


def test_a_line_that_comes_twice_and_no_longer(tmp_path: Path) -> None:
    """What the pipeline itself says of a sample (a duplicate) decides its fate, not only its bytes."""
    raw = Raw(tmp_path / "raw").fill({"train": 5})
    build(raw, tmp_path / "out")
    path = raw.root / "train.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[3], *lines]))
    assert [bad.key for bad in build(raw, tmp_path / "out", update=True).bad] == ["f0040"]
    check_like_scratch(raw, tmp_path / "out", tmp_path / "twice")
    raw.write()
    assert not build(raw, tmp_path / "out", update=True).bad
    check_like_scratch(raw, tmp_path / "out", tmp_path / "once")


def test_an_update_without_a_set_builds_one(tmp_path: Path) -> None:
    raw = Raw(tmp_path / "raw").fill({"train": 3})
    assert not build(raw, tmp_path / "out", update=True).changes
    check_like_scratch(raw, tmp_path / "out", tmp_path / "scratch")


def test_parts_of_larger_files_may_lie_elsewhere(tmp_path: Path) -> None:
    """A sample's bytes count, not their place in a tar or a JSON file."""
    from prep.build.settings import Settings
    from prep.pipeline import build as build_with
    from shards.scale import Scale
    from tests.prep.test_plan import Counting, counting

    root = counting(tmp_path)
    settings = Settings("toy", root, scales=Scale.parse_many("1"))
    build_with(Counting(count=20), settings, tmp_path / "out", quiet=True)

    class Later(Counting):
        def samples(self, root: Path, split: str) -> Any:
            from dataclasses import replace

            for sample in super().samples(root, split):
                yield replace(sample, label=tuple(replace(p, offset=p.offset + 4) for p in sample.label))

    labels = (root / "labels").read_bytes()
    (root / "labels").write_bytes(b"????" + labels)
    outcome = build_with(Later(count=20), settings, tmp_path / "out", update=True, quiet=True)
    assert outcome.changes["train"].unchanged == 20
    build_with(Later(count=20), settings, tmp_path / "scratch", quiet=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")
