"""Evaluation: full resolution, averaging of views, bounded chunks, scores of known predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import shards
from shards.classes import ClassTable
from shards.errors import UserError
from tests.train.conftest import recipe
from tests.train.shardset import CLASSES, COLOURS, Raw, scene, write
from train import inference
from train.distributed import World
from train.evaluate import Example, evaluate, open_for_scoring
from train.inference import Views, as_label, covered, predict, views_of

CPU = torch.device("cpu")
WORLD = World(CPU)


class ByColour(nn.Module):
    """Knows a scene's classes by their colours: logits [B, 4, H, W], the nearer the higher."""

    sharpness = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        palette = torch.from_numpy(COLOURS[:4]).float()  # [4, 3]
        distance = images.float().permute(0, 2, 3, 1)[..., None, :] - palette  # [B, H, W, 4, 3]
        return -self.sharpness * distance.abs().sum(-1).permute(0, 3, 1, 2) / 20


class Always(nn.Module):
    """Answers one class."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(images), 4, *images.shape[2:])
        out[:, self.answer] = 9.0
        return out


def test_a_network_that_knows_scores_one(shard_set: Path) -> None:
    split = open_for_scoring(shard_set, "val", "1", CLASSES, "run")
    scores, samples = evaluate(ByColour(), split, Views(), WORLD)
    assert samples == scores["images"] == 5
    assert scores["miou"] == pytest.approx(1.0, abs=0.02)
    assert scores["per_class"].keys() == set(CLASSES.names)
    assert scores["iiou"] == pytest.approx(1.0, abs=0.05)
    assert scores["category_miou"] == pytest.approx(1.0, abs=0.02)


def test_the_commonest_class_scores_its_share(shard_set: Path) -> None:
    split = open_for_scoring(shard_set, "val", "1/2", CLASSES, "run")
    scores, _ = evaluate(Always(0), split, Views(), WORLD)
    hards = [shards.open(shard_set, split="val", scale="1")[i].hard for i in range(5)]
    share = sum((h == 0).sum() for h in hards) / sum((h != shards.IGNORE).sum() for h in hards)
    assert scores["pixel_accuracy"] == pytest.approx(share)
    assert scores["miou"] == pytest.approx(share / 4)
    assert scores["pixels"] == sum((h != shards.IGNORE).sum() for h in hards)


def test_scored_at_the_sources_size(shard_set: Path) -> None:
    """The network sees 1/2; what is counted is the source's own pixels, against the label of scale 1."""
    seen: list[tuple[Example, np.ndarray]] = []
    split = open_for_scoring(shard_set, "val", "1/2", CLASSES, "run")
    evaluate(ByColour(), split, Views(), WORLD, limit=2, watch=lambda e, p: seen.append((e, p)))
    assert len(seen) == 2
    stored = shards.open(shard_set, split="val", scale="1/2")
    for index, (example, prediction) in enumerate(seen):
        assert np.array_equal(example.shown, stored[index].image)
        assert example.image.shape == (64, 96, 3)
        assert prediction.shape == example.hard.shape == (64, 96)
        assert prediction.dtype == np.uint16


def test_an_input_scale_that_is_not_stored_is_made(shard_set: Path) -> None:
    split = open_for_scoring(shard_set, "val", "1/8", CLASSES, "run")
    example = next(split.examples(range(1)))
    assert np.array_equal(example.shown, shards.resize_image(example.image, "1/8", "box"))


def test_partial_box_cells_reach_beyond_the_image(tmp_path: Path) -> None:
    """At 45 x 61 pixels the last cells of 1/8 are partial: upsampling keeps every cell over its own 8 x 8 pixels."""
    path = write(tmp_path / "odd", {"val": [scene(3, (45, 61))]})
    split = open_for_scoring(path, "val", "1/8", CLASSES, "run")
    seen: list[tuple[Example, np.ndarray]] = []
    evaluate(ByColour(), split, Views(), WORLD, watch=lambda e, p: seen.append((e, p)))
    example, prediction = seen[0]
    assert example.shown.shape == (6, 8, 3)
    with torch.inference_mode():
        padded = torch.nn.functional.pad(
            torch.from_numpy(example.shown).permute(2, 0, 1)[None].float(), (0, 24, 0, 26), mode="replicate"
        )
        scores = ByColour()(padded).softmax(1)[..., :6, :8]
    full = torch.nn.functional.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)
    assert np.array_equal(prediction, full.argmax(1)[0, :45, :61].numpy())
    assert covered((45, 61), "1/8", "box") == (48, 64)
    assert covered((45, 61), "1/8", "bilinear") == covered((45, 61), "1", "box") == (45, 61)


def test_ranks_share_the_samples(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_for_scoring(shard_set, "val", "1", CLASSES, "run")
    keys = [[e.key for e in split.examples(range(rank, 5, 2))] for rank in range(2)]
    assert sorted(keys[0] + keys[1]) == shards.open(shard_set, split="val", scale="1").keys()
    assert [len(k) for k in keys] == [3, 2]
    monkeypatch.setattr(World, "sum_counts", lambda self, table: table)
    scores, samples = evaluate(Always(0), split, Views(), World(CPU, 1, 2))
    assert (scores["images"], samples) == (2, 5)


def test_what_cannot_be_scored(shard_set: Path, tmp_path: Path) -> None:
    other = ClassTable.make(("road", "wall", "car", "dog"), categories=CLASSES.categories, things=CLASSES.things)
    with pytest.raises(UserError, match="class 3 is 'dog' and 'person'"):
        open_for_scoring(shard_set, "val", "1", other, "run")
    with pytest.raises(UserError, match="no split 'test'; it holds train, val"):
        open_for_scoring(shard_set, "test", "1", CLASSES, "run")
    small = write(tmp_path / "small", {"val": [scene(0)]}, scales=("1/2",))
    with pytest.raises(UserError, match=r"holds scales 1/2 and not 1: .*--scales 1/2,1 --fresh"):
        open_for_scoring(small, "val", "1/2", CLASSES, "run")
    raw = scene(0)
    bare = write(tmp_path / "bare", {"test": [Raw(raw.key, raw.image, None)]})
    with pytest.raises(UserError, match="has no labels"):
        open_for_scoring(bare, "test", "1", CLASSES, "run")


# --- one image ---------------------------------------------------------------------------------------------------


class Wavy(nn.Module):
    """Smooth, asymmetric logits of 7 classes out of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 7, 5, padding=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images.float() / 30)


def image(h: int = 40, w: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)


def mean_scores(net: nn.Module, picture: np.ndarray, scales: tuple[float, ...], flip: bool, size: tuple[int, int]):
    """What `predict` must agree with: every view's softmax at full size, averaged, all classes at once."""
    total = torch.zeros(7, *size)
    for factor in scales:
        h, w = int(picture.shape[0] * factor + 0.5), int(picture.shape[1] * factor + 0.5)
        pixels = torch.tensor(shards.resize_image_to(picture, (h, w), "triangle")).permute(2, 0, 1)[None]
        scores = net(pixels).softmax(1)
        if flip:
            scores = (scores + net(pixels.flip(-1)).softmax(1).flip(-1)) / 2
        total += F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
    return total / len(scales)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.25), (1.0, 1.5, 2.0)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("chunk", [1, 3 * 90 * 100, 1 << 26])
def test_views_are_averaged_whatever_the_chunks(
    scales: tuple[float, ...], flip: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", chunk)
    net = Wavy().eval()
    with torch.no_grad():
        want = mean_scores(net, image(), scales, flip, (90, 100)).argmax(0)
    got = predict(net, image(), (90, 100), Views(scales, flip), CPU)
    assert (got == want).float().mean() > 0.999
    assert as_label(got).dtype == np.uint16


def test_same_size_needs_no_resize() -> None:
    net = Wavy().eval()
    with torch.no_grad():
        want = net(torch.tensor(image()).permute(2, 0, 1)[None])[0].argmax(0)
    assert torch.equal(predict(net, image(), (40, 56), Views(), CPU), want)


def test_tiny_images() -> None:
    """Smaller than a network can take: grown for the network, cut back for the result."""
    sizes = []

    class Watch(Wavy):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(images.shape[2:]))
            return super().forward(images)

    assert predict(Watch().eval(), image(5, 40), (5, 40), Views(), CPU).shape == (5, 40)
    assert sizes == [(32, 40)]


def test_a_recipe_says_how_it_is_scored_unless_asked_otherwise() -> None:
    chosen = recipe(eval={"scales": [0.5, 1.0], "flip": True}, loop={"amp": "bf16"})
    views = views_of(chosen, CPU)
    assert (list(views.scales), views.flip, views.bf16) == ([0.5, 1.0], True, True)
    assert list(views_of(chosen, CPU, (2.0,)).scales) == [2.0]
    plain = recipe()
    assert views_of(plain, CPU).flip is False
    assert views_of(plain, CPU, flip=True).flip is True
    assert views_of(plain, CPU).bf16 is False
