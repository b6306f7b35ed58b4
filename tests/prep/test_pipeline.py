"""The pipeline: what it stores, that bytes do not depend on how it runs, and that memory stays flat."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import shards
from prep.build import worker
from prep.build.counts import Counts
from prep.build.encode import EncodedSample, Job, encode_sample
from prep.build.plan import make_plan
from prep.build.settings import Settings
from prep.datasets import load_reader
from shards import IGNORE
from shards.codec import ImageFormat, decode_soft
from shards.errors import UserError
from shards.manifest import load_manifest
from shards.scale import Scale
from shards.verify import verify
from tests.fakes import fake_camvid, fake_cityscapes, save
from tests.prep.builds import die, die_at_start, run_build, tree


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path, format: str) -> None:
    root = fake_camvid(tmp_path / "cv", {"train": 11, "val": 6})
    options = {"shard_size": 30_000, "format": format}
    run_build("camvid", root, tmp_path / "one", workers=1, **options)
    run_build("camvid", root, tmp_path / "two", workers=2, **options)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert not list(verify(tmp_path / "two"))


@pytest.mark.parametrize("filter", ["box", "bilinear", "triangle"])
def test_every_scale_is_the_pair_that_shards_makes(tmp_path: Path, filter: str) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3}, size=(50, 70))
    scales = "1,1/2,1/4" if filter == "box" else "3/2,1,2/3,1/4"
    run_build("camvid", root, tmp_path / "out", scales=scales, filter=filter)
    full = shards.open(tmp_path / "out", split="val", scale="1")
    for scale in scales.split(","):
        part = shards.open(tmp_path / "out", split="val", scale=scale)
        assert part.keys() == full.keys()
        if scale == "1":
            continue
        for sample in part:
            source = full[sample.key]
            image, soft = shards.resize_pair(source.image, source.hard, scale, filter)
            assert np.array_equal(sample.image, image)
            assert sample.soft == soft
            assert sample.hard is None
            assert sample.meta["size"] == [50, 70]
            assert sample.meta["scale"] == scale


def test_zarr_and_tar_hold_the_same_members(tmp_path: Path) -> None:
    root = fake_cityscapes(tmp_path / "cs", {"val": 5, "test": 2})
    run_build("cityscapes", root, tmp_path / "w", shard_size=40_000)
    run_build("cityscapes", root, tmp_path / "z", shard_size=40_000, format="zarr")
    for split in ("val", "test"):
        for scale in ("1", "1/2"):
            tar, zarr = (shards.open(tmp_path / name, split=split, scale=scale) for name in "wz")
            assert tar.keys() == zarr.keys()
            assert tar.groups == zarr.groups
            assert [tar.members(i) for i in range(len(tar))] == [zarr.members(i) for i in range(len(zarr))]


def test_without_scale_1_nothing_of_full_size_is_stored(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    run_build("camvid", root, tmp_path / "out", scales="1/2")
    assert not (tmp_path / "out" / "val" / "1").exists()
    assert load_manifest(tmp_path / "out").scales == ["1/2"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_keep_stores_sources_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2}, suffix=suffix)
    run_build("camvid", root, tmp_path / "out")
    full = shards.open(tmp_path / "out", split="val", scale="1")
    half = shards.open(tmp_path / "out", split="val", scale="1/2")
    for index, key in enumerate(full.keys()):
        assert full.members(index)[suffix] == (root / "val" / f"{key}.{suffix}").read_bytes()
        assert suffix in half.members(index)


def test_keep_writes_anew_what_would_not_decode_as_it_is(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3}, suffix="jpg")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned, grey, _ = sorted((root / "val").iterdir())
    Image.open(turned).rotate(180).save(turned, exif=exif)
    Image.open(grey).convert("CMYK").save(grey)
    run_build("camvid", root, tmp_path / "out")
    full = shards.open(tmp_path / "out", split="val", scale="1")
    for path in (turned, grey):
        stored = Image.open(io.BytesIO(full.members(full.position(path.stem))["jpg"]))
        assert stored.mode == "RGB"
        assert not stored.getexif()
    upright = np.asarray(Image.open(turned).rotate(180)).astype(int)
    assert np.abs(full[turned.stem].image - upright).mean() < 4


@pytest.mark.parametrize(
    ("text", "suffix", "kind"), [("png", "png", "PNG"), ("webp", "webp", "WEBP"), ("jpeg:80", "jpg", "JPEG")]
)
def test_image_formats(tmp_path: Path, text: str, suffix: str, kind: str) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 1})
    run_build("camvid", root, tmp_path / "out", image_format=text)
    for scale in ("1", "1/2"):
        stored = shards.open(tmp_path / "out", split="val", scale=scale).members(0)[suffix]
        assert Image.open(io.BytesIO(stored)).format == kind


def test_shards_close_before_they_pass_their_size(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 12})
    run_build("camvid", root, tmp_path / "out", shard_size=30_000)
    part = load_manifest(tmp_path / "out").splits["val"].scales["1"]
    assert len(part.shards) > 2
    assert all(shard.bytes <= 30_000 for shard in part.shards)
    assert sum(part.groups) == 12
    run_build("camvid", root, tmp_path / "tiny", shard_size=1)
    assert load_manifest(tmp_path / "tiny").splits["val"].scales["1"].groups == [1] * 12


def test_meta_holds_what_leads_back_to_the_source(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 1})
    run_build("camvid", root, tmp_path / "out")
    sample = shards.open(tmp_path / "out", split="val", scale="1/2")[0]
    assert sample.meta == {
        "key": sample.key, "split": "val", "source": f"val/{sample.key}.png", "size": [48, 64], "scale": "1/2",
    }  # fmt: skip


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"train": 5, "val": 4})
    run_build("camvid", root, tmp_path / "out")
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    labels = [np.asarray(Image.open(path)) for path in sorted((root / "valannot").iterdir())]
    found = stats["splits"]["val"]
    assert found["samples"] == 4
    assert [entry["pixels"] for entry in found["classes"]] == [sum((x == i).sum() for x in labels) for i in range(11)]
    assert [entry["images"] for entry in found["classes"]] == [sum((x == i).any() for x in labels) for i in range(11)]
    assert found["void_share"] == pytest.approx(np.mean([x == 11 for x in labels]))
    parts = [m for m in range(4) for m in [shards.open(tmp_path / "out", split="val", scale="1/2").members(m)]]
    soft = [decode_soft(part["soft.npz"]) for part in parts]
    mixed = sum(len(label.cells) for label in soft) / sum(label.base.size for label in soft)
    assert found["mixed_cells"] == {"1/2": pytest.approx(mixed)}
    assert stats["time"]["seconds"] >= 0
    assert "| 3 | Road |" in (tmp_path / "out" / "README.md").read_text()


def test_the_manifest_names_every_published_file(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    run_build("camvid", root, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert {file.path for file in manifest.all_files()} == set(tree(tmp_path / "out")) - {"manifest.json"}
    assert manifest.settings["splits"] == ["val"]
    assert str(root) not in (tmp_path / "out" / "manifest.json").read_text()
    assert not (tmp_path / "out" / ".build").exists()


def test_a_moved_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 3})
    run_build("camvid", root, tmp_path / "a")
    root.rename(tmp_path / "elsewhere")
    run_build("camvid", tmp_path / "elsewhere", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_chunks_in_flight_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than workers + 2 chunks are handed out beyond what has come back."""
    handed = 0

    class Done:
        def result(self) -> list[object]:
            return []

        def done(self) -> bool:
            return True

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, _: object, *chunks: object) -> Done:
            nonlocal handed
            handed += len(chunks)
            return Done()

        def shutdown(self, **_: object) -> None: ...

    monkeypatch.setattr(worker, "ProcessPoolExecutor", Pool)
    root = fake_camvid(tmp_path / "cv", {"val": 60}, size=(8, 8))
    settings = Settings("camvid", root)
    plan = make_plan(load_reader("camvid"), settings)
    job = Job(plan.reader, root, settings.scales, "box", ImageFormat.parse("keep"))
    order, most = [], 0
    for chunk, _ in worker.encode_chunks(job, plan.chunks(), plan.chunk_count, 2):
        order.append(chunk.index)
        most = max(most, handed - max(len(order) - 2, 0) + 1)  # two were encoded here first
    assert order == list(range(15))
    assert handed == 13
    assert most <= 4 + 1


def test_workers_that_die_while_they_start_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 40})
    monkeypatch.setattr(worker, "_start_worker", die_at_start)
    monkeypatch.setattr(worker, "any_ready", lambda first: [future.exception() for future in first])
    with pytest.raises(UserError, match=r"a worker process died.*fewer --workers"):
        run_build("camvid", root, tmp_path / "out", workers=2)


def test_this_process_goes_on_until_a_worker_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 20})
    monkeypatch.setattr(worker, "any_ready", lambda first: False)
    monkeypatch.setattr(worker, "_encode_in_worker", die)  # would break the pool
    run_build("camvid", root, tmp_path / "out", workers=2)
    assert len(shards.open(tmp_path / "out", split="val", scale="1")) == 20


def test_small_builds_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 20})
    monkeypatch.setattr(worker, "WORTH_SECONDS", 1e9)
    monkeypatch.setattr(worker, "ProcessPoolExecutor", None)
    run_build("camvid", root, tmp_path / "out", workers=8)


def test_a_worker_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 40})
    monkeypatch.setattr(worker, "_encode_in_worker", die)
    with pytest.raises(UserError, match=r"a worker process died.*fewer --workers"):
        run_build("camvid", root, tmp_path / "out", workers=2)


def test_weak_labels_and_readers_meta_are_stored(tmp_path: Path) -> None:
    from dataclasses import replace

    root = fake_camvid(tmp_path / "cv", {"val": 1})
    reader = load_reader("camvid")
    sample = replace(next(iter(reader.samples(root, "val"))), weak=(3, 1), meta={"scene": "night"})
    job = Job(reader, root, Scale.parse_many("1/2"), "box", ImageFormat.parse("keep"))
    (encoded,) = encode_sample(job, "val", sample).parts
    assert isinstance(encoded, EncodedSample)
    assert b'"scene":"night"' in encoded.blocks[0].data
    assert b'"weak":[3,1]' in encoded.blocks[0].data


def test_a_key_that_tar_cannot_hold_is_quarantined(tmp_path: Path) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    name = "x" * 230
    save(np.zeros((8, 8, 3), np.uint8), root / "val" / f"{name}.png")
    save(np.zeros((8, 8), np.uint8), root / "valannot" / f"{name}.png")
    with open(root / "val.txt", "a") as file:
        file.write(f"/a/val/{name}.png /a/valannot/{name}.png\n")
    outcome = run_build("camvid", root, tmp_path / "out")
    assert outcome.state is not None
    assert "key" in outcome.state.bad[0].reason


counts = st.builds(
    lambda pixels, mixed: Counts.of(
        [EncodedSample("k", (), pixels, ((0, 0), mixed))], [Scale.parse("1"), Scale.parse("1/2")]
    ),
    st.dictionaries(st.integers(0, 20) | st.just(IGNORE), st.integers(1, 1000)),
    st.tuples(st.integers(0, 10), st.integers(10, 20)),
)


@given(st.lists(counts, max_size=6))
def test_counts_add_up_however_they_are_split(parts: list[Counts]) -> None:
    whole, halves = Counts(), [Counts(), Counts()]
    for index, part in enumerate(parts):
        whole.add(part)
        halves[index % 2].add(Counts.from_dict(json.loads(json.dumps(part.to_dict()))))
    halves[0].add(halves[1])
    assert halves[0] == whole
