"""Stacked batches are the lists' samples, decoded into the rows of one array."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from shards import FormatError, Loader, SettingsError
from shards.codec import ImageFormat, encode_hard, encode_image
from tests.shards import build as builder

SAMPLES = 7
Members = dict[str, bytes]


def pillow_png(image: np.ndarray) -> bytes:
    """A PNG with a palette: not one of those that we read ourselves."""
    out = io.BytesIO()
    Image.fromarray(image).quantize(16).save(out, "PNG")
    return out.getvalue()


def changed(monkeypatch: pytest.MonkeyPatch, folder: Path, change: object, format: str = "webdataset") -> Path:
    """A set whose samples at scale 1 have gone through `change(number, members)`."""
    members = builder.members

    def made(i: int, scale: str, split: str, key: str) -> Members:
        stored = members(i, scale, split, key)
        return change(i, stored) if scale == "1" else stored  # type: ignore[operator]

    monkeypatch.setattr(builder, "members", made)
    builder.build(folder, format, samples=SAMPLES, per_shard=3)
    return folder


def encoded(kind: str) -> object:
    """Sample i with its image encoded otherwise."""

    def change(i: int, stored: Members) -> Members:
        image, _ = builder.pair(i)
        new = {"png": pillow_png(image)} if kind == "palette" else {}
        if kind == "jpg":
            new = {"jpg": encode_image(image, ImageFormat("jpeg", 90))}
        elif kind == "webp":
            new = {"webp": encode_image(image, ImageFormat("webp"))}
        return {**new, **{suffix: data for suffix, data in stored.items() if suffix != "png"}}

    return change


def assert_equal(batch: shards.Batch, samples: list[shards.Sample]) -> None:
    """The batch holds these samples; its arrays are theirs, row by row."""
    assert len(batch) == len(samples) == len(batch.images)
    assert [s.key for s in batch.samples] == [s.key for s in samples]
    for row, (got, want) in enumerate(zip(batch.samples, samples, strict=True)):
        np.testing.assert_array_equal(batch.images[row], want.image)
        assert np.shares_memory(got.image, batch.images[row])
        assert (got.hard is None) == (want.hard is None) == (batch.hard is None)
        if batch.hard is not None and got.hard is not None:
            np.testing.assert_array_equal(batch.hard[row], want.hard)
            assert np.shares_memory(got.hard, batch.hard[row])
        assert got.soft == want.soft
        assert got.meta == want.meta
        assert np.array_equal(got.instances, want.instances) if want.instances is not None else got.instances is None


@pytest.mark.parametrize("kind", ["jpg", "webp", "palette"])
@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_every_kind_of_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, format: str) -> None:
    ds = shards.open(changed(monkeypatch, tmp_path / "set", encoded(kind), format), "train", "1")
    loader = Loader(ds, batch=3, threads=2)
    for batch, samples in zip(loader.stacked(0), Loader(ds, batch=3).epoch(0), strict=True):
        assert_equal(batch, samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stack")
    builder.build(place, samples=SAMPLES, per_shard=3)
    return place


@pytest.mark.parametrize(("split", "scale"), [("train", "1"), ("train", "1/2"), ("test", "1")])
@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_batches_of_lists(folder: Path, split: str, scale: str, threads: int, ranks: int) -> None:
    ds = shards.open(folder, split, scale)
    for rank in range(ranks):
        loader = Loader(ds, batch=3, seed=5, threads=threads, rank=rank, ranks=ranks)
        lists = Loader(ds, batch=3, seed=5, threads=0, rank=rank, ranks=ranks)
        stacked, listed = loader.stacked(2), lists.epoch(2)
        assert len(stacked) == len(listed) == 3
        for batch, samples in zip(stacked, listed, strict=True):  # the last batch holds one sample
            assert_equal(batch, samples)
            assert loader.state() == lists.state()


def test_it_goes_on_from_a_state(folder: Path) -> None:
    ds = shards.open(folder, "train", "1")
    loader = Loader(ds, batch=2)
    with loader.stacked(0) as batches:
        first = [s.key for s in next(batches).samples]
        rest = [s.key for batch in Loader(ds, batch=3, start=loader.state()).stacked() for s in batch.samples]
    assert first + rest == [ds.keys()[i] for i in loader.order(0)]
    assert list(batches) == []  # it was closed


def test_a_rank_without_a_sample(folder: Path) -> None:
    ds = shards.open(folder, "train", "1")
    last = list(Loader(ds, batch=6, rank=0, ranks=6).stacked(0))[-1]
    assert (last.images.shape, last.hard, last.samples) == ((0, 0, 0, 3), None, [])


def test_batches_that_are_kept_keep_their_pixels(folder: Path) -> None:
    ds = shards.open(folder, "train", "1")
    kept = list(Loader(ds, batch=2, threads=2).stacked(0))
    for batch, samples in zip(kept, Loader(ds, batch=2).epoch(0), strict=True):
        assert_equal(batch, samples)


def test_a_transform_is_refused(folder: Path) -> None:
    loader = Loader(shards.open(folder, "train", "1"), batch=2, transform=lambda sample: sample.key)
    with pytest.raises(SettingsError, match="stacked takes no transform"):
        loader.stacked(0)


@pytest.mark.parametrize("threads", [0, 2])
def test_sizes_that_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int) -> None:
    def smaller(i: int, stored: Members) -> Members:
        image, hard = (array[:30] if i == 4 else array for array in builder.pair(i))
        image = encode_image(image, ImageFormat("png"))
        hard = encode_hard(hard, len(builder.CLASSES)) if "seg.png" in stored else None
        return {"png": image, **({"seg.png": hard} if hard else {}), "json": stored["json"]}

    ds = shards.open(changed(monkeypatch, tmp_path / "set", smaller), "train", "1")
    stacked = Loader(ds, batch=2, shuffle=False, threads=threads).stacked(0)
    assert [s.key for s in next(stacked).samples] == ["city/train_000", "city/train_001"]
    next(stacked)
    with pytest.raises(SettingsError, match=r"city/train_00[45].*48x3[02] pixels found in a batch of 48x3[02]"):
        next(stacked)
    assert sum(len(batch) for batch in Loader(ds, batch=2, threads=threads).epoch(0)) == SAMPLES
    assert [len(batch) for batch in Loader(ds, batch=1, threads=threads).stacked(0)] == [1] * SAMPLES


def test_a_label_of_another_size_is_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(i: int, stored: Members) -> Members:
        if i == 2 and "seg.png" in stored:
            stored["seg.png"] = encode_hard(builder.pair(i)[1][:, :40], len(builder.CLASSES))
        return stored

    ds = shards.open(changed(monkeypatch, tmp_path / "set", wrong), "train", "1")
    with pytest.raises(FormatError, match=r"city/train_002.*\(32, 40\) found for an image of \(32, 48\)"):
        list(Loader(ds, batch=4, threads=2).stacked(0))


def test_a_broken_sample_ends_the_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(i: int, stored: Members) -> Members:
        return {**encoded("jpg")(i, stored), **({"jpg": b"\xff\xd8\xff"} if i == 3 else {})}  # type: ignore[operator]

    ds = shards.open(changed(monkeypatch, tmp_path / "set", broken), "train", "1")
    stacked = Loader(ds, batch=3, shuffle=False, threads=2).stacked(0)
    assert len(next(stacked)) == 3
    with pytest.raises(FormatError, match="city/train_003"):
        next(stacked)
    assert list(stacked) == []
