"""Errors of a sample name its file and its key, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from shards import FormatError
from shards.sets.diff import diff
from shards.sets.plan import OpenSet
from shards.sets.subset import Choice, plan_subset
from shards.statistics import count_labels
from shards.zarrset import ZarrReader
from tests.shards.build import build, seal_anew
from tests.train.conftest import recipe
from train.sources import open_sources


@pytest.fixture(scope="module", params=["webdataset", "zarr"])
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A set whose third sample has a label that is none, under good checksums; what errors call that sample."""
    folder = tmp_path_factory.mktemp("broken")
    build(folder, request.param, sums=False)
    tar = "train/1/train-1-00001.tar"
    name = tar if request.param == "webdataset" else "train/1/train-1.zarr"
    path = folder / (tar if request.param == "webdataset" else f"{name}/seg.png/data/c/0")
    dataset = shards.open(folder, "train")
    label = dataset.members(2)["seg.png"]
    data = path.read_bytes()
    assert data.count(label) == 1
    path.write_bytes(data.replace(label, label.replace(b"IDAT", b"IDAX", 1)))
    seal_anew(folder)
    return folder, f"{folder}/{name} sample city/train_002"


def of_train(folder: Path, read: Callable[..., object]) -> object:
    return read(open_sources([folder], recipe(data={"labels": "nearest"})))


READERS: dict[str, Callable[[Path], object]] = {
    "dataset": lambda folder: shards.open(folder, "train")["city/train_002"],
    "statistics": lambda folder: count_labels(folder, "train", "1"),
    "subset": lambda folder: plan_subset(OpenSet.at(folder), Choice(("train",), classes=("car",)), 1 << 20),
    "diff": lambda folder: list(diff(OpenSet.at(folder), OpenSet.at(folder.parent / "whole"))),
    "hard": lambda folder: of_train(folder, lambda sources: sources.hard(2)),
    "reduced": lambda folder: of_train(folder, lambda sources: sources.reduced(2, lambda shape: shape)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_broken_member_is_named(broken: tuple[Path, str], reader: str) -> None:
    folder, where = broken
    if reader == "diff" and not (folder.parent / "whole").exists():
        build(folder.parent / "whole")
    assert shards.open(folder, "train").where(2) == where
    with pytest.raises(FormatError) as caught:
        READERS[reader](folder)
    assert str(caught.value).startswith(f"{where} [seg.png]")


def test_metadata_too(tmp_path: Path) -> None:
    build(tmp_path, sums=False)
    path = tmp_path / "train/1-2/train-1-2-00001.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"key":"city/train_002"', b'["key":"city/train_002"', 1))
    assert path.read_bytes() != data
    seal_anew(tmp_path)
    with pytest.raises(FormatError) as caught:
        of_train(tmp_path, lambda sources: sources.meta(2))
    assert str(caught.value).startswith(f"{path} sample city/train_002 [json]")


def test_a_sample_that_memory_cannot_hold_is_named(tar_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = shards.open(tar_set, "train")
    keys = dataset.keys()

    def too_much(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(type(dataset.store), "range", too_much)
    with pytest.raises(FormatError, match=rf"train-1-00001\.tar \[{keys[2]}\]: \d+ bytes, more than memory"):
        dataset.members(2)


def test_an_image_with_another_beginning_is_named(zarr_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = shards.open(zarr_set, "train")
    keys, honest = dataset.keys(), ZarrReader._member
    monkeypatch.setattr(
        ZarrReader, "_member", lambda self, name, i: b"GIF" if name == "image" else honest(self, name, i)
    )
    with pytest.raises(FormatError, match=rf"sample {keys[3]} \[image\]: not a JPEG"):
        dataset.members(3)
