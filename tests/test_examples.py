"""The examples read what we read, sample by sample, and are as short as README says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import shards
from shards.card import RECIPE
from tests.shards.build import build

EXAMPLES = Path(__file__).parents[1] / "examples"
MOST_LINES = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    build(folder)
    return folder


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The module that the test names; skipped where the framework that it is for is not installed."""
    name, package = request.param
    pytest.importorskip(
        package, reason=f"{package} is not installed: examples/{name}.py is not tested", exc_type=ImportError
    )
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def using(name: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [pytest.param((name, package), id=package)], indirect=True)


def dense(sample: shards.Sample) -> np.ndarray:
    return sample.soft.dense(3)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_no_example_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_the_recipe_is_the_card_s() -> None:
    body = (EXAMPLES / "decode.py").read_text().split("def decode")[1]
    assert body == RECIPE.split("def decode")[1]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore:Exception ignored in")  # webdataset's
@using("read_webdataset", "webdataset")
def test_webdataset(example: ModuleType, folder: Path) -> None:
    ours = shards.open(folder, "train", "1/2")
    found = list(example.samples(folder))
    assert [key for key, _, _ in found] == ours.keys()
    for (_, image, shares), sample in zip(found, ours, strict=True):
        np.testing.assert_array_equal(image, sample.image)
        np.testing.assert_allclose(shares[..., :-1], sample.soft.dense(3, "keep"), atol=1e-6)


@using("read_huggingface", "datasets")
def test_huggingface(example: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = shards.open(folder, "train", "1")
    found = list(example.samples(str(folder / "train/1/*.tar")))
    assert [sample["key"] for sample in found] == ours.keys()
    for theirs, sample in zip(found, ours, strict=True):
        np.testing.assert_array_equal(np.asarray(theirs["png"]), sample.image)
        np.testing.assert_array_equal(theirs["label"], np.where(sample.hard == shards.IGNORE, 255, sample.hard))


@using("read_pytorch", "torch")
def test_pytorch(example: ModuleType, folder: Path) -> None:
    ours = list(shards.open(folder, "train", "1/2"))
    batches = list(example.batches(folder, batch_size=2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    images = np.concatenate([images for images, _ in batches])
    shares = np.concatenate([shares for _, shares in batches])
    np.testing.assert_allclose(images * 255, np.stack([s.image for s in ours]).transpose(0, 3, 1, 2), atol=1e-4)
    np.testing.assert_array_equal(shares, np.stack([dense(s) for s in ours]).transpose(0, 3, 1, 2))


@using("read_grain", "grain")
def test_grain(example: ModuleType, folder: Path) -> None:
    ours = {sample.image.tobytes(): dense(sample) for sample in shards.open(folder, "train", "1/2")}
    found = list(example.batches(folder, batch=2))
    images = np.concatenate([batch["image"] for batch in found])
    shares = np.concatenate([batch["shares"] for batch in found])
    assert sorted(image.tobytes() for image in images) == sorted(ours)
    for image, share in zip(images, shares, strict=True):
        np.testing.assert_array_equal(share, ours[image.tobytes()])


@using("read_numpy", "numpy")
def test_numpy_on_ranks_and_continued(example: ModuleType, folder: Path) -> None:
    ours = shards.open(folder, "train", "1/2")
    order = shards.Loader(ours, batch=4, seed=0).order(0)
    expected = [ours[int(i)].image for i in order]
    whole = list(example.batches(folder))
    np.testing.assert_array_equal(np.concatenate([image for image, _, _ in whole]), np.stack(expected))
    ranks = [list(example.batches(folder, rank=rank, ranks=2)) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([ranks[0][0][0], ranks[1][0][0]]), whole[0][0])
    rest = list(example.batches(folder, start=whole[0][2]))
    np.testing.assert_array_equal(rest[0][0], whole[1][0])
    after = list(example.batches(folder, start=whole[-1][2]))  # the next epoch
    expected = [ours[int(i)].image for i in shards.Loader(ours, batch=4, seed=0).order(1)]
    np.testing.assert_array_equal(np.concatenate([image for image, _, _ in after]), np.stack(expected))


@using("read_mmseg", "mmseg.datasets")
def test_mmsegmentation(example: ModuleType, folder: Path) -> None:
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")
    dataset = example.DATASETS.build(
        {"type": "ShardDataset", "folder": str(folder), "split": "train", "pipeline": [{"type": "PackSegInputs"}]}
    )
    assert dataset.metainfo["classes"] == ("road", "car", "pole")
    for i, sample in enumerate(shards.open(folder, "train")):
        found = dataset[i]
        np.testing.assert_array_equal(found["inputs"].numpy()[::-1].transpose(1, 2, 0), sample.image)
        label = found["data_samples"].gt_sem_seg.data.numpy()[0]
        np.testing.assert_array_equal(label, np.where(sample.hard == shards.IGNORE, 255, sample.hard))


@pytest.mark.parametrize("name", ["read_webdataset", "read_pytorch", "read_numpy"])
def test_examples_run_as_they_say(folder: Path, name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
