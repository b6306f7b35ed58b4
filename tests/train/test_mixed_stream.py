"""Samples of a mixture: which stands where under any ranks and workers, what is read of images and their tags."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shards
from shards.classes import ClassTable
from shards.errors import SettingsError, UserError
from tests.train import shardset
from tests.train.conftest import recipe
from tests.train.shardset import CLASSES, Raw, scene, write
from tests.train.test_stream import planes
from train.batch import Batch, targets_of
from train.config import Recipe
from train.distributed import World
from train.feed import batches
from train.mixed_stream import MixedStream, make_stream
from train.sources import MixedSources, open_all, open_sources
from train.stream import Stream

CPU = torch.device("cpu")
TAGGED = ClassTable.make(["person", "kite", "road", "moon"])  # ids 3, 4, 0, 5 of the union with CLASSES
TAGS = {"t_0": [1, 0], "t_1": [3], "t_2": [], "t_3": [2, 0, 2], "t_4": None}


@pytest.fixture(scope="module", name="sets")
def make_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five scenes with pixel labels, and five pictures with tags, one greyscale, one tiny."""
    folder = tmp_path_factory.mktemp("sets")
    pixels = write(folder / "pixels", {"train": [scene(i) for i in range(5)]})
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40, 56, 3), np.uint8) for _ in TAGS]
    images[1] = np.repeat(images[1][..., :1], 3, 2)  # grey
    images[3] = images[3][:5, :7]
    raws = [Raw(key, image, None) for key, image in zip(TAGS, images, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        plain = shardset.encode_meta
        patch.setattr(
            shardset,
            "encode_meta",
            lambda meta: plain({**meta, **({} if TAGS[meta["key"]] is None else {"weak": TAGS[meta["key"]]})}),
        )
        tags = write(folder / "tags", {"train": raws}, classes=TAGGED)
    return {"pixels": pixels, "tags": tags}


def mixed(steps: int = 6, batch: int = 4, parts: int = 2, **sections: Any) -> Recipe:
    """Pixels to tags as 2 to 1."""
    sources = [
        {"name": "pixels", "share": 2},
        {"name": "tags", "labels": "image", "crop": [24, 24], **sections.pop("tags", {})},
    ]
    values: dict[str, Any] = {
        "data": {"scales": ["1"], "workers": 0},
        "augment": {"crop": [32, 48], "jitter": {"contrast": 0.3}},
        "model": {"head": "cosine"},
        "mixture": {"parts": parts, "sources": sources},
    }
    loop = {"steps": steps, "batch": batch, "accumulate": parts, **sections.pop("loop", {})}
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return recipe(**values, loop=loop)


def opened(sets: dict[str, Path], config: Recipe) -> MixedStream:
    sources = open_all([f"{name}={path}" for name, path in sets.items()], config)
    made = make_stream(sources, config)
    assert isinstance(made, MixedStream)
    return made


def made(sets: dict[str, Path], config: Recipe, world: World | None = None, start: int = 0) -> list[Batch]:
    with batches(opened(sets, config), world or World(CPU), start) as source:
        return list(source)


def facts(batch: Batch) -> list[Any]:
    """All that a batch holds, comparable."""
    tensors = (batch.images, batch.ids, batch.weights, batch.tags)
    held = [None if tensor is None else (tuple(tensor.shape), tensor.numpy().tobytes()) for tensor in tensors]
    return [batch.keys, batch.source, batch.capped, *held]


# --- order -------------------------------------------------------------------------------------------------------


def test_parts_follow_the_shares_and_sources_repeat(sets: dict[str, Path]) -> None:
    """18 parts of two samples: 12 of pixels, 6 of tags; each source goes through all its samples in turn."""
    config = mixed(steps=9)
    stream = opened(sets, config)
    found = made(sets, config)
    assert [batch.source for batch in found] == [stream.turns.of(part) for part in range(18)]
    assert Counter(batch.source for batch in found) == {0: 12, 1: 6}
    for source, count in ((0, 5), (1, 5)):
        keys = [key for batch in found if batch.source == source for key in batch.keys]
        for epoch in range(len(keys) // count):
            assert len(set(keys[epoch * count : (epoch + 1) * count])) == count
    assert stream.passes(9) == {"epoch": 24 / 5, "epochs": {"pixels": 24 / 5, "tags": 12 / 5}}
    assert stream.epoch_steps == pytest.approx(5 / (4 * 2 / 3))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("loader", ["threads", "processes"])
@pytest.mark.parametrize("size", [1, 2])
def test_ranks_and_workers_change_nothing(
    sets: dict[str, Path], size: int, loader: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.feed.cores", lambda: 8)
    straight = [batch for step in made(sets, mixed(steps=3)) for batch in facts(step)]
    config = mixed(steps=3, data={"workers": workers, "loader": loader}, loop={"accumulate": 2 // size})
    ranks = [made(sets, config, World(CPU, rank, size)) for rank in range(size)]
    each = 2 // size
    joined = [
        fact
        for step in range(3)
        for rank in ranks
        for batch in rank[step * each : (step + 1) * each]
        for fact in facts(batch)
    ]
    assert joined == straight


def test_every_step_can_be_gone_on_from(sets: dict[str, Path]) -> None:
    whole = [facts(batch) for batch in made(sets, mixed(steps=7))]
    for start in range(8):
        assert [facts(batch) for batch in made(sets, mixed(steps=7), start=start)] == whole[2 * start :]


def test_order_follows_seed_and_digests_and_source(sets: dict[str, Path], tmp_path: Path) -> None:
    def keys(config: Recipe, given: dict[str, Path] = sets) -> list[Any]:
        return [(batch.source, batch.keys) for batch in made(given, config)]

    assert keys(mixed()) == keys(mixed())
    assert keys(mixed()) != keys(mixed(loop={"seed": 1}))
    twice = recipe(
        augment={"crop": [32, 48]}, mixture={"sources": [{"name": "a"}, {"name": "b"}]}, loop={"batch": 5, "steps": 2}
    )
    same = keys(twice, {"a": sets["pixels"], "b": sets["pixels"]})  # one shard set under two names: two orders
    assert same[0][1] != same[1][1]
    assert set(same[0][1]) == set(same[1][1])


def test_a_plain_recipe_has_the_plain_stream(sets: dict[str, Path]) -> None:
    config = recipe()
    sources = open_all([str(sets["pixels"])], config)
    stream = make_stream(sources, config)
    assert type(stream) is Stream
    assert sources.space is None
    assert stream.epoch_steps == stream.passes(1)["epoch"] ** -1 == 5 / 4


# --- what is read ------------------------------------------------------------------------------------------------


def tagged(sets: dict[str, Path], **sections: Any) -> dict[str, tuple[Any, list[int] | None]]:
    """Image and tags of each tagged picture, in the run's classes."""
    stream = opened(sets, mixed(augment={"flip": False, "jitter": {}}, **sections)).streams[1]
    items = [stream.item(position) for position in range(5)]
    return {item.key: (item.image, None if item.tags is None else item.tags.tolist()) for item in items}


def test_images_come_with_their_tags(sets: dict[str, Path]) -> None:
    space = opened(sets, mixed()).sources.space
    assert space.classes.names == ("road", "wall", "car", "person", "kite", "moon")
    found = tagged(sets)
    assert {key: tags for key, (_, tags) in found.items()} == {
        "t_0": [3, 4], "t_1": [5], "t_2": [], "t_3": [0, 3], "t_4": []
    }  # fmt: skip
    grey = found["t_1"][0]
    assert grey.shape == (3, 24, 24)
    assert (grey[0] == grey[1]).all()
    small = found["t_3"][0]  # smaller than the crop: grown with the padding's colour
    stored = shards.open(sets["tags"], "train")["t_3"].image
    assert np.array_equal(small[:, :5, :7], stored.transpose(2, 0, 1))
    assert (small[:, 5:] == np.array([124, 116, 104])[:, None, None]).all()


def test_image_batches_have_rows_of_tags_and_no_cells(sets: dict[str, Path]) -> None:
    config = mixed(steps=5, batch=10, parts=2, loop={"accumulate": 2})
    found = made(sets, config)
    pixel, image = (next(batch for batch in found if batch.source == source) for source in (0, 1))
    assert pixel.tags is None
    assert pixel.untagged == 0
    assert image.images.shape == (5, 3, 24, 24)
    assert image.ids.shape == image.weights.shape == (5, 1, 0, 0)
    assert image.tags is not None
    assert image.tags.dtype == torch.int64
    want = {"t_0": [3, 4], "t_1": [5], "t_2": [], "t_3": [0, 3], "t_4": []}
    rows = [[index, klass] for index, key in enumerate(image.keys) for klass in want[key]]
    assert image.tags.tolist() == rows
    assert image.untagged == 2
    moved = image.to(CPU)
    assert moved.source == 1
    assert torch.equal(moved.tags, image.tags)  # type: ignore[arg-type]


def test_a_batch_without_any_tag(sets: dict[str, Path]) -> None:
    lone = [batch for batch in made(sets, mixed(steps=9, batch=1, parts=1)) if batch.keys in (("t_2",), ("t_4",))]
    assert lone
    assert all(batch.tags is not None and batch.tags.shape == (0, 2) and batch.untagged == 1 for batch in lone)


def test_images_are_rescaled_by_their_own_range(sets: dict[str, Path]) -> None:
    sections = {"mode": "rescale", "scales": ["1"]}
    stream = opened(
        sets,
        mixed(
            data=sections, augment={"rescale": [1.0, 1.0], "flip": False, "jitter": {}}, tags={"rescale": [0.5, 0.5]}
        ),
    )
    place = next(position for position in range(5) if stream.streams[1].item(position).key == "t_3")
    stored = shards.open(sets["tags"], "train")["t_3"].image
    half = shards.resize_image_to(stored, (3, 4), "triangle")
    assert np.array_equal(stream.streams[1].item(place).image[:, :3, :4], half.transpose(2, 0, 1))
    assert np.array_equal(stream.streams[0].item(0).image.shape, (3, 32, 48))


@pytest.mark.parametrize("scales", [("1",), ("1/4",), ("1", "1/4")])
def test_pixel_labels_give_tags_of_the_whole_image(tmp_path: Path, scales: tuple[str, ...]) -> None:
    """All classes of the label, before any crop, void left out; from scale 1 where that is stored."""
    raws = [scene(i) for i in range(4)]
    raws[0].hard[raws[0].hard == 2] = 0
    raws[0].hard[3, 3] = 2  # one pixel alone, which bilinear at 1/4 passes over
    raws[1].hard[:] = shards.IGNORE
    folder = write(tmp_path / "weak", {"train": raws}, scales=("1", "1/4"), filter="bilinear")
    other = write(tmp_path / "pixels", {"train": [scene(9)]}, scales=("1", "1/4"))
    config = mixed(data={"scales": list(scales)}, augment={"crop": [8, 8]}, tags={"crop": [8, 8]})
    stream = opened({"pixels": other, "tags": folder}, config)
    for position in range(8):
        item = stream.streams[1].item(position)
        hard = next(raw.hard for raw in raws if raw.key == item.key)
        assert item.tags is not None
        assert item.tags.tolist() == sorted(set(np.unique(hard).tolist()) - {shards.IGNORE})


def test_pixel_labels_without_scale_1_give_the_tags_of_the_soft_label(tmp_path: Path) -> None:
    folder = write(tmp_path / "half", {"train": [scene(i) for i in range(4)]}, scales=("1/2",))
    pixels = write(tmp_path / "pixels", {"train": [scene(9)]}, scales=("1", "1/2"))
    config = mixed(data={"scales": ["1/2"], "labels": "nearest"})  # pixel labels need scale 1, tags do not
    stream = opened({"pixels": pixels, "tags": folder}, config)
    for position in range(4):
        item = stream.streams[1].item(position)
        hard = scene(int(item.key[-4:])).hard
        assert item.tags is not None
        assert item.tags.tolist() == sorted(set(np.unique(hard).tolist()) - {shards.IGNORE})


def test_pixel_labels_speak_of_the_classes_of_the_run(tmp_path: Path, sets: dict[str, Path]) -> None:
    """The second source's classes stand elsewhere in the union: base cells and mixed cells are both renamed."""
    table = ClassTable.make(["sky", "person", "car", "sea"])
    other = write(tmp_path / "other", {"train": [scene(i) for i in range(3)]}, classes=table)
    config = recipe(
        data={"scales": ["1/4"], "workers": 0},
        augment={"flip": False},
        mixture={"sources": [{"name": "pixels"}, {"name": "other"}]},
    )
    stream = opened({"pixels": sets["pixels"], "other": other}, config).streams[1]
    for position in range(3):
        item = stream.item(position)
        soft = shards.open(other, "train", "1/4")[item.key].soft
        ids, weights = planes(targets_of(soft))
        new = np.array([4, 3, 2, 5])[ids]
        found = planes(item.targets)
        assert np.array_equal(found[1], weights)
        assert np.array_equal(found[0], np.where(weights > 0, new, 0))
        assert len(ids) > 1


# --- data.target_stride ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_a_coarse_target_is_the_softened_crop(sets: dict[str, Path], stride: int) -> None:
    """Image as it was; the label of the augmented crop is softened with the box filter: one cell for k x k pixels."""
    options: dict[str, Any] = {"augment": {"crop": [32, 48]}, "model": {"head": "cosine"}}
    fine = recipe(data={"scales": ["1"]}, **options)
    coarse = recipe(data={"scales": ["1"], "target_stride": stride}, **options)
    one, other = (Stream(open_sources([sets["pixels"]], config), config) for config in (fine, coarse))
    for position in range(5):
        item, softer = one.item(position), other.item(position)
        assert np.array_equal(item.image, softer.image)
        want = shards.soften(item.targets.base, f"1/{stride}", "box")
        assert all(map(np.array_equal, planes(softer.targets), planes(targets_of(want))))
    with batches(other, World(CPU)) as source:
        batch = next(source)
    assert batch.images.shape == (4, 3, 32, 48)
    assert batch.ids.shape[2:] == batch.weights.shape[2:] == (32 // stride, 48 // stride)


def test_a_stored_soft_label_is_softened_further(sets: dict[str, Path]) -> None:
    config = recipe(data={"scales": ["1/2"], "target_stride": 4}, augment={"flip": False}, model={"head": "cosine"})
    stream = Stream(open_sources([sets["pixels"]], config), config)
    item = stream.item(0)
    hard = shards.open(sets["pixels"], "train", "1")[item.key].hard
    want = targets_of(shards.soften(hard, "1/8", "box"))
    assert all(map(np.array_equal, planes(item.targets), planes(want)))


def test_a_crop_that_the_stride_does_not_divide(sets: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"crop = \[32, 48\]: expected multiples of data.target_stride = 32"):
        opened(sets, mixed(data={"target_stride": 32}))
    opened(sets, mixed(data={"target_stride": 16}, tags={"crop": [25, 25]}))  # images without cells have any crop
    config = mixed(data={"target_stride": 32, "mode": "rescale"}, augment={"rescale": [0.5, 1.0], "crop": [32, 64]})
    with pytest.raises(SettingsError, match=r"target_stride = 32: expected 16 at most with data.mode = \"rescale\""):
        opened(sets, config)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_sources_that_cannot_be_opened(sets: dict[str, Path], tmp_path: Path) -> None:
    bare = write(tmp_path / "bare", {"train": [Raw("x", scene(0).image, None)]})
    with pytest.raises(UserError, match=r"'train' of .*bare has neither image-level labels nor pixel labels"):
        opened({"pixels": sets["pixels"], "tags": bare}, mixed())
    with pytest.raises(UserError, match=r"split 'train' of .*tags has no labels"):
        opened({"pixels": sets["tags"], "tags": sets["tags"]}, mixed())
    with pytest.raises(UserError, match=r"has no split 'more'"):
        opened(sets, mixed(tags={"split": "more"}))
    with pytest.raises(UserError, match=r"source 'tags' of recipe tiny has no shard set"):
        opened({"pixels": sets["pixels"]}, mixed())


def test_folders_of_one_name_are_joined_and_must_agree(sets: dict[str, Path], tmp_path: Path) -> None:
    more = write(tmp_path / "more", {"train": [scene(i) for i in range(20, 23)]})
    words = [f"pixels={sets['pixels']}", f"tags={sets['tags']}", f"pixels={more}"]
    sources = open_all(words, mixed())
    assert isinstance(sources, MixedSources)
    assert sources.counts == {"pixels": 8, "tags": 5}
    assert len(sources) == 13
    told = [(kept["source"], kept["path"]) for kept in sources.describe()]
    assert told == [("pixels", str(sets["pixels"])), ("pixels", str(more)), ("tags", str(sets["tags"]))]
    assert sources.classes.names[:4] == CLASSES.names
    renamed = ClassTable.make(("a", "b", "c", "d"))
    other = write(tmp_path / "other", {"train": [scene(0)]}, classes=renamed)
    with pytest.raises(UserError, match=r"class tables of .* differ"):
        open_all([*words, f"pixels={other}"], mixed())
