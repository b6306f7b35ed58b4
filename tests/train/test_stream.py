"""The stream: which sample stands where, under any number of ranks and workers, and what is read for it."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards.classes import ClassTable
from shards.codec import encode_soft
from shards.errors import FormatError, SettingsError, UserError
from tests.train.conftest import recipe
from tests.train.shardset import CLASSES, scene, write
from train.batch import Batch, Item, Targets, collate, targets_of
from train.config import Recipe
from train.distributed import World
from train.feed import Positions, batches
from train.sources import open_sources
from train.stream import Failure, Stream, nearest

CPU = torch.device("cpu")


def stream(shard_set: Path, config: Recipe) -> Stream:
    return Stream(open_sources([shard_set], config), config)


def planes(targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """ids and weights [K, h, w]."""
    ids = np.zeros((targets.planes, *targets.base.shape), np.int32)
    weights = np.zeros(ids.shape, np.float32)
    targets.fill(ids, weights)
    return ids, weights


def labels(rng: np.random.Generator, h: int, w: int, classes: int) -> np.ndarray:
    """A hard label with void."""
    hard = rng.integers(0, classes + 1, (h, w)).astype(np.uint16)
    return np.where(hard == classes, shards.IGNORE, hard).astype(np.uint16)


# --- targets -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from(["mask", "renormalise", "keep"]), st.sampled_from(["1", "1/2", "1/4"]))
def test_targets_are_the_dense_label(seed: int, rule: str, scale: str) -> None:
    """ids and weights, scattered into planes, equal SoftLabel.dense under the same void rule."""
    soft = shards.soften(labels(np.random.default_rng(seed), 24, 20, 6), scale, "box")
    targets = targets_of(soft, rule, most=16)  # type: ignore[arg-type]
    ids, weights = planes(targets)
    dense = np.zeros((*soft.shape, 6), np.float32)
    for plane_ids, plane_weights in zip(ids, weights, strict=True):
        y, x = np.nonzero(plane_weights)
        np.add.at(dense, (y, x, plane_ids[y, x]), plane_weights[y, x])
    np.testing.assert_allclose(dense, soft.dense(6, void=rule), atol=1e-6)  # type: ignore[arg-type]
    assert targets.capped == 0
    assert (ids[weights == 0] == 0).all()
    assert len(ids) == max(1, (weights > 0).sum(0).max())


def test_hard_label_is_one_plane() -> None:
    hard = labels(np.random.default_rng(0), 6, 7, 3)
    ids, weights = planes(targets_of(shards.SoftLabel.from_hard(hard)))
    assert ids.shape == weights.shape == (1, 6, 7)
    assert (weights[0] == (hard != shards.IGNORE)).all()
    assert (ids[0][hard != shards.IGNORE] == hard[hard != shards.IGNORE]).all()


@pytest.mark.parametrize("rule", ["mask", "renormalise", "keep"])
def test_cap_keeps_the_heaviest_classes_and_the_mass(rule: str) -> None:
    soft = shards.soften(labels(np.random.default_rng(1), 32, 32, 9), "1/8", "box")
    full_ids, full = planes(targets_of(soft, rule, most=16))  # type: ignore[arg-type]
    targets = targets_of(soft, rule, most=2)  # type: ignore[arg-type]
    ids, weights = planes(targets)
    assert len(full_ids) > 2
    assert len(ids) == 2
    assert targets.capped == 16  # every one of the 4 x 4 cells
    assert (ids == full_ids[:2]).all()
    np.testing.assert_allclose(weights.sum(0), full.sum(0), atol=1e-6)
    np.testing.assert_allclose(weights[0] * full[1], weights[1] * full[0], atol=1e-6)  # proportions stay


def test_collate_fills_missing_planes_with_nothing() -> None:
    image = np.zeros((3, 2, 2), np.uint8)
    base, cell = np.ones((2, 2), np.uint16), np.array([3])
    one = Item("a", image, targets_of(shards.SoftLabel.from_hard(base)))
    mixed = Targets(base, cell, np.array([[2], [1], [0]], np.int32), np.full((3, 1), 1 / 3, np.float32), capped=5)
    batch = collate([one, Item("b", image, mixed)])
    assert batch.ids.shape == batch.weights.shape == (2, 3, 2, 2)
    assert batch.weights[0, 1:].sum() == 0
    assert batch.ids[1, :, 1, 1].tolist() == [2, 1, 0]
    assert batch.weights[1].sum() == 4
    assert batch.keys == ("a", "b")
    assert batch.capped == 5
    assert batch.images.dtype == torch.uint8


def test_samples_of_two_sizes_need_a_crop() -> None:
    sizes = [Item("a", np.zeros((3, n, 8), np.uint8), targets_of(_void(n, 8))) for n in (8, 9)]
    with pytest.raises(SettingsError, match=r"8x8, 9x8.*augment\.crop"):
        collate(sizes)


def _void(h: int, w: int) -> shards.SoftLabel:
    return shards.SoftLabel.from_hard(np.full((h, w), shards.IGNORE, np.uint16))


# --- order -------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_sample_once(shard_set: Path) -> None:
    source = stream(shard_set, recipe())
    for epoch in range(3):
        assert sorted(source.index(epoch * 11 + place) for place in range(11)) == list(range(11))
    assert [source.index(p) for p in range(11)] != [source.index(11 + p) for p in range(11)]


def test_order_follows_the_seed_and_nothing_else(shard_set: Path) -> None:
    def order(config: Recipe) -> list[int]:
        source = stream(shard_set, config)
        return [source.index(p) for p in range(22)]

    assert order(recipe()) == order(recipe(data={"workers": 2}, loop={"batch": 2}))
    assert order(recipe()) != order(recipe(loop={"seed": 1}))


@given(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]), st.integers(0, 5))
def test_ranks_and_parts_share_the_same_positions(size: int, parts: int, start: int) -> None:
    """Joined over ranks, step s holds the positions s * G .. (s + 1) * G - 1, from any step on."""
    config = recipe(loop={"batch": 72, "accumulate": parts, "steps": 7})
    ranks = [list(Positions(config, World(CPU, rank, size), start)) for rank in range(size)]
    assert all(len(rank) == (7 - start) * parts for rank in ranks)
    for step in range(7 - start):
        seen = [p for rank in ranks for micro in rank[step * parts : (step + 1) * parts] for p in micro]
        first = (start + step) * 72
        assert sorted(seen) == seen == list(range(first, first + 72))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"loop.batch = 4: expected a multiple of 3 processes x 1"):
        Positions(recipe(), World(CPU, 0, 3))


def made(shard_set: Path, config: Recipe, start: int = 0) -> list[Batch]:
    """All micro-batches of a run on one rank."""
    with batches(stream(shard_set, config), World(CPU), start) as source:
        return list(source)


def same(a: Batch, b: Batch) -> bool:
    tensors = zip((a.images, a.ids, a.weights), (b.images, b.ids, b.weights), strict=True)
    return a.keys == b.keys and all(torch.equal(x, y) for x, y in tensors)


def test_workers_change_nothing(shard_set: Path) -> None:
    """Batches from two data workers equal those made in this process, also from a later step on."""
    options = {"augment": {"crop": [24, 40], "jitter": {"hue": 0.1, "contrast": 0.3}}, "loop": {"steps": 5}}
    scales = ["1", "1/2", "1/4"]
    alone = made(shard_set, recipe(data={"scales": scales}, **options))
    config = recipe(data={"scales": scales, "workers": 2}, **options)
    two = made(shard_set, config)
    later = made(shard_set, config, 3)
    assert len(alone) == len(two) == 5
    assert all(same(a, b) for a, b in zip(alone, two, strict=True))
    assert all(same(a, b) for a, b in zip(alone[3:], later, strict=True))


def test_a_stream_crosses_process_borders(shard_set: Path) -> None:
    source = stream(shard_set, recipe())
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    assert np.array_equal(source.item(5).image, again.item(5).image)


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    """Two samples, batches of five: the order runs on through the epochs, each sample as often as the other."""
    folder = write(tmp_path / "few", {"train": [scene(0), scene(1)]})
    config = recipe(loop={"batch": 5, "steps": 2})
    keys = [key for batch in made(folder, config) for key in batch.keys]
    assert Counter(keys) == {"scene_0000": 5, "scene_0001": 5}
    assert all(len(set(keys[i : i + 2])) == 2 for i in range(0, 10, 2))


# --- what is read ------------------------------------------------------------------------------------------------


def test_stored_mode_reads_what_is_stored(shard_set: Path) -> None:
    source = stream(shard_set, recipe(augment={"flip": False}))
    stored = shards.open(shard_set, split="train", scale="1/2")
    for position in range(3):
        item, sample = source.item(position), stored[source.index(position)]
        assert item.key == sample.key
        assert np.array_equal(item.image.transpose(1, 2, 0), sample.image)
        assert all(map(np.array_equal, planes(item.targets), planes(targets_of(sample.soft))))


def test_all_given_scales_are_drawn(shard_set: Path) -> None:
    config = recipe(data={"scales": ["1", "1/4"]}, augment={"crop": [64, 96]})
    source = stream(shard_set, config)
    filled = [int((source.item(p).image[0] != source.fill[0]).any(0).sum()) for p in range(20)]
    assert {n <= 24 for n in filled} == {True, False}  # a 1/4 sample fills 24 columns of the padded crop, a full one 96


@pytest.mark.parametrize(("kind", "mode"), [("nearest", "nearest-exact"), ("nearest-corner", "nearest")])
@pytest.mark.parametrize("size", [(16, 24), (32, 48), (13, 31), (64, 96), (80, 100)])
def test_nearest_labels_are_torchs(kind: str, mode: str, size: tuple[int, int]) -> None:
    hard = labels(np.random.default_rng(3), 64, 96, 9)
    planes = torch.from_numpy(hard.astype(np.float64))[None, None]
    want = F.interpolate(planes, size=size, mode=mode)[0, 0].numpy()
    assert np.array_equal(nearest(hard, size, kind == "nearest-corner"), want)


@pytest.mark.parametrize("kind", ["nearest", "nearest-corner", "hardened"])
def test_hard_kinds_of_labels(shard_set: Path, kind: str) -> None:
    source = stream(shard_set, recipe(data={"labels": kind, "scales": ["1/4"]}, augment={"flip": False}))
    item, index = source.item(0), source.index(0)
    hard = shards.open(shard_set, split="train", scale="1")[index].hard
    offset = {"nearest": 2, "nearest-corner": 0}.get(kind)
    picked = (
        shards.soften(hard, "1/4", "box").harden() if offset is None else hard[offset::4, offset::4]
    )  # the pixel at (i + 1/2) * 4, or at i * 4
    ids, weights = planes(item.targets)
    assert len(ids) == 1
    assert np.array_equal(weights[0] > 0, picked != shards.IGNORE)
    assert np.array_equal(ids[0], np.where(picked == shards.IGNORE, 0, picked))


def test_nearest_with_partial_box_cells(tmp_path: Path) -> None:
    """Sizes that 4 does not divide: cell i still looks at pixel 4 i + 2, the last one at the border's pixel."""
    folder = write(tmp_path / "odd", {"train": [scene(0, (61, 90))]})
    source = stream(folder, recipe(data={"labels": "nearest", "scales": ["1/4"]}, augment={"flip": False}))
    hard = shards.open(folder, split="train", scale="1")[0].hard
    rows, columns = np.minimum(np.arange(16) * 4 + 2, 60), np.minimum(np.arange(23) * 4 + 2, 89)
    picked = hard[rows[:, None], columns]
    assert np.array_equal(planes(source.item(0).targets)[1][0] > 0, picked != shards.IGNORE)


@pytest.mark.parametrize("kind", ["soft", "nearest", "hardened"])
def test_rescaled_pairs_are_made_with_one_kernel(shard_set: Path, kind: str) -> None:
    config = recipe(
        data={"mode": "rescale", "scales": ["1"], "labels": kind},
        augment={"rescale": [0.3, 0.9], "crop": [64, 96], "flip": False},
    )
    source = stream(shard_set, config)
    sizes = set()
    for position in range(6):
        rng = source.generator(position)
        key, image, soft = source._rescaled(source.index(position), rng)
        full = shards.open(shard_set, split="train", scale="1")[key]
        assert image.shape[:2] == soft.shape
        assert 0.3 * 64 - 1 <= soft.shape[0] <= 0.9 * 64 + 1
        assert np.array_equal(image, shards.resize_image_to(full.image, soft.shape, "triangle"))
        resized = shards.soften_to(full.hard, soft.shape, "triangle")
        want = {
            "soft": resized,
            "nearest": shards.SoftLabel.from_hard(nearest(full.hard, soft.shape)),
            "hardened": shards.SoftLabel.from_hard(resized.harden()),
        }
        assert soft == want[kind]
        sizes.add(soft.shape)
        assert source.item(position).image.shape == (3, 64, 96)
    assert len(sizes) > 3


# --- several sources, and what is refused ------------------------------------------------------------------------


def test_sources_are_joined(shard_set: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"train": [scene(i) for i in range(50, 54)]})
    config = recipe()
    joined = Stream(open_sources([shard_set, other], config), config)
    assert len(joined) == 15
    assert joined.sources.counts == {str(shard_set): 11, str(other): 4}
    keys = [joined.item(p).key for p in range(15)]
    assert len(set(keys)) == 15
    assert {"scene_0050", "scene_0053", "scene_0010"} <= set(keys)
    assert keys != [Stream(open_sources([other, shard_set], config), config).item(p).key for p in range(15)]


def test_class_tables_must_be_equal(shard_set: Path, tmp_path: Path) -> None:
    renamed = ClassTable.make(("road", "wall", "lorry", "person"), categories=CLASSES.categories, things=CLASSES.things)
    other = write(tmp_path / "other", {"train": [scene(0)]}, classes=renamed)
    with pytest.raises(UserError, match="class 2 is 'car' and 'lorry'"):
        open_sources([shard_set, other], recipe())
    fewer = write(tmp_path / "fewer", {"train": [scene(0, classes=3)]}, classes=ClassTable.make(("a", "b", "c")))
    with pytest.raises(UserError, match="4 and 3 classes"):
        open_sources([shard_set, fewer], recipe())


def test_missing_scale_split_labels(shard_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds scales 1, 1/2, 1/4 and not 1/8: .*--scales 1,1/2,1/4,1/8 --fresh"):
        open_sources([shard_set], recipe(data={"scales": ["1/8"]}))
    with pytest.raises(UserError, match="no split 'trial'; it holds train, val"):
        open_sources([shard_set], recipe(data={"split": "trial"}))
    halves = write(tmp_path / "halves", {"train": [scene(0)]}, scales=("1/2",))
    with pytest.raises(UserError, match="and not 1:"):
        open_sources([halves], recipe(data={"labels": "nearest"}))
    raw = scene(0)
    bare = write(tmp_path / "bare", {"test": [type(raw)(raw.key, raw.image, None)]})
    with pytest.raises(UserError, match=r"'test' .* has no labels"):
        open_sources([bare], recipe(data={"split": "test"}))
    with pytest.raises(UserError, match="holds no sample"):
        open_sources([write(tmp_path / "none", {"train": []})], recipe())
    with pytest.raises(UserError, match="no manifest"):
        open_sources([tmp_path], recipe())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_shard_reaches_the_loop_as_it_is(tmp_path: Path, workers: int) -> None:
    folder = write(tmp_path / "s", {"train": [scene(i) for i in range(4)]})
    tar = next((folder / "train" / "1-2").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:700])
    config = recipe(data={"workers": workers})
    with pytest.raises(FormatError, match="1-2") as caught:
        made(folder, config)
    assert "\n" not in str(caught.value)


def test_class_ids_beyond_the_table_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored soft label is not trusted to fit the class table: it would index outside of the logits."""
    beyond = len(CLASSES)
    wrong = encode_soft(shards.SoftLabel.from_hard(np.full((32, 48), beyond, np.uint16)))
    monkeypatch.setattr("tests.train.shardset.encode_soft", lambda soft: wrong)
    folder = write(tmp_path / "s", {"train": [scene(i) for i in range(2)]})
    found = Stream(open_sources([folder], recipe()), recipe())[0]
    assert isinstance(found, Failure)
    assert f"class id {beyond} found" in str(found.error)
