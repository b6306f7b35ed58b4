"""The plan: samples are streamed, never held; duplicates are found; the listing decides whether a build goes on."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prep.build.plan import CHUNK, LARGEST_CHUNK, make_plan
from prep.build.settings import Settings
from prep.pipeline import build
from prep.raw import BaseReader, DecodedLabel, FilePart, RawSample
from shards.classes import ClassTable
from shards.errors import LayoutError
from shards.scale import Scale
from shards.verify import verify
from tests.fakes import fake_camvid
from tests.prep.builds import run_build, tree
from tests.prep.toy import ToyReader


@dataclass(frozen=True)
class Many(ToyReader):
    """A reader of as many samples as one likes, all of them the same file."""

    count: int = 1
    keys: tuple[str, ...] = ()

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        for number in range(self.count):
            key = self.keys[number] if self.keys else f"sample{number:09d}"
            yield RawSample(key, FilePart(root / "file", 0, 10), weak=(number % 2,))


def plan_of(reader: BaseReader, root: Path, **options: Any) -> Any:
    return make_plan(reader, Settings(reader.name, root, **options))


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 50_000):
        tracemalloc.start()
        plan = plan_of(Many(count=count), tmp_path)
        assert sum(len(chunk.samples) for chunk in plan.chunks()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 48_000 * 8, "not even a number a sample"


@pytest.mark.parametrize(("count", "size"), [(10, CHUNK), (20_000, CHUNK), (60_000, 14), (3_000_000, LARGEST_CHUNK)])
def test_chunks_grow_with_the_build(tmp_path: Path, count: int, size: int) -> None:
    plan = plan_of(Many(count=10), tmp_path)
    object.__setattr__(plan.splits[0], "samples", count)
    assert plan.chunk_size == size
    assert plan.chunk_count == -(-count // size)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 6])
def test_chunks_can_begin_anywhere(tmp_path: Path, start: int) -> None:
    root = fake_camvid(tmp_path / "cv", {"train": 9, "val": 5})
    plan = make_plan(run_reader(), Settings("camvid", root))
    whole = list(plan.chunks())
    assert [chunk.index for chunk in whole] == list(range(5)) == list(range(plan.chunk_count))
    assert [len(chunk.samples) for chunk in whole] == [4, 4, 1, 4, 1]
    assert [chunk.last for chunk in whole] == [False, False, True, False, True]
    assert list(plan.chunks(start)) == whole[start:]


def run_reader() -> Any:
    from prep.datasets import load_reader

    return load_reader("camvid")


def test_every_later_sample_of_a_key_is_a_duplicate(tmp_path: Path) -> None:
    keys = ("a", "b", "a", "c", "b", "a", "d")
    plan = plan_of(Many(count=len(keys), keys=keys), tmp_path)
    assert sorted(plan.splits[0].duplicates) == [2, 4, 5]
    assert plan.splits[0].bad == 3
    problems = [sample.problem for chunk in plan.chunks() for sample in chunk.samples]
    assert [problem is not None for problem in problems] == [False, False, True, False, True, True, False]
    assert problems[2] == "duplicate key 'a': file has it already"


class Alike(str):
    """Keys whose hashes are all equal."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)  # type: ignore[arg-type]


def test_keys_of_one_hash_are_told_apart(tmp_path: Path) -> None:
    plan = plan_of(Many(count=4, keys=tuple(map(Alike, "abca"))), tmp_path)
    assert list(plan.splits[0].duplicates) == [3]


def test_the_limit_holds_for_samples_and_for_duplicates(tmp_path: Path) -> None:
    plan = plan_of(Many(count=5, keys=("a", "b", "c", "a", "b")), tmp_path, limit=3)
    assert plan.samples == 3
    assert not plan.splits[0].duplicates
    assert [len(chunk.samples) for chunk in plan.chunks()] == [3]


def test_a_source_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    plan = plan_of(Many(count=10), tmp_path)
    object.__setattr__(plan.reader, "count", 7)
    with pytest.raises(LayoutError, match=r"split 'train' .* had 10 samples and has 7 now"):
        list(plan.chunks())


def test_the_listing_knows_facts_tags_and_meta(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Facts(Many):
        sample: Mapping[str, Any] = None  # type: ignore[assignment]

        def samples(self, root: Path, split: str) -> Iterator[RawSample]:
            yield RawSample("key", root / "file", **self.sample)

    variants: list[dict[str, Any]] = [
        {},
        {"facts": (1, 2)},
        {"facts": (1, 3)},
        {"weak": (1,)},
        {"meta": {"x": 1}},
        {"label": (FilePart(tmp_path / "f", 0, 3), FilePart(tmp_path / "f", 3, 3))},
        {"label": (FilePart(tmp_path / "f", 0, 3), FilePart(tmp_path / "f", 4, 3))},
        {"label": ()},
    ]
    listings = {plan_of(Facts(count=1, sample=variant), tmp_path).listing for variant in variants}
    assert len(listings) == len(variants)


@dataclass(frozen=True)
class Counting(Many):
    """Counts its labels and publishes what it counted."""

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        for number in range(self.count):
            part = FilePart(root / "labels", 4 * number, 4)
            yield RawSample(f"s{number:02d}", root / "image.png", (part, part), facts=number)

    def decode_label(self, data: bytes, where: str, facts: Any) -> DecodedLabel:
        import numpy as np

        assert data == b"%04d\n%04d" % (facts, facts)
        return DecodedLabel(np.full((8, 8), facts % 2, np.uint16), {"odd" if facts % 2 else "even": 1, "sum": facts})

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        return {"merge-audit.json": {split: dict(sorted(tally.items())) for split, tally in tallies.items()}}


def counting(tmp_path: Path, count: int = 30) -> Path:
    import numpy as np

    from tests.fakes import save

    root = tmp_path / "raw"
    save(np.zeros((8, 8, 3), np.uint8), root / "image.png")
    (root / "labels").write_bytes(b"".join(b"%04d" % number for number in range(count)))
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_tallies_are_summed_over_workers_and_published(tmp_path: Path, workers: int) -> None:
    import json

    root, out = counting(tmp_path), tmp_path / "out"
    build(Counting(count=30), Settings("toy", root, scales=Scale.parse_many("1")), out, workers=workers, quiet=True)
    want = {"train": {"even": 15, "odd": 15, "sum": sum(range(30))}}
    assert json.loads((out / "merge-audit.json").read_text()) == want
    assert b"merge-audit.json" in (out / "manifest.json").read_bytes()


def test_a_published_report_is_ours_to_replace(tmp_path: Path) -> None:
    root, out = counting(tmp_path), tmp_path / "out"
    settings = Settings("toy", root, scales=Scale.parse_many("1"))
    build(Counting(count=30), settings, out, quiet=True)
    before = tree(out)
    build(Counting(count=30), settings, out, fresh=True, quiet=True)
    assert tree(out) == before


def test_a_part_beyond_the_end_of_its_file_is_quarantined(tmp_path: Path) -> None:
    root = counting(tmp_path)
    outcome = build(
        Counting(count=31), Settings("toy", root, scales=Scale.parse_many("1")), tmp_path / "out", quiet=True
    )
    assert [bad.key for bad in outcome.bad] == ["s30"]
    assert "labels ends within it" in outcome.bad[0].reason


def test_another_class_table_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.errors import SettingsError

    root = fake_camvid(tmp_path / "cv", {"val": 1})
    run_build("camvid", root, tmp_path / "out")
    other = ClassTable.make(tuple("abcdefghijk"))
    monkeypatch.setattr("prep.datasets.camvid.load_classes", lambda name: other)
    with pytest.raises(SettingsError, match=r"differs in classes [0-9a-f]{12}\.\.\. -> [0-9a-f]{12}\.\.\."):
        run_build("camvid", root, tmp_path / "out")


@pytest.mark.parametrize(("weak", "tags", "stored"), [(False, (0,), False), (True, (0,), True), (True, None, False)])
def test_a_labelled_split_holds_labels_only(
    tmp_path: Path, weak: bool, tags: tuple[int, ...] | None, stored: bool
) -> None:
    """A sample without a label among labelled ones would be read as one whose label is lost; tags may be mixed."""

    @dataclass(frozen=True)
    class Mixed(Counting):
        def samples(self, root: Path, split: str) -> Iterator[RawSample]:
            for sample in super().samples(root, split):
                yield replace(sample, label=None, weak=tags) if sample.key == "s02" else sample

    root = counting(tmp_path, 4)
    settings = Settings("toy", root, scales=Scale.parse_many("1"), weak=weak)
    outcome = build(Mixed(count=4), settings, tmp_path / "out", quiet=True)
    assert [(bad.key, bad.reason) for bad in outcome.bad] == (
        [] if stored else [("s02", "no label, while other samples of its split have one")]
    )
    assert not list(verify(tmp_path / "out"))
