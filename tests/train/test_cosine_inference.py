"""Labels out of a cosine head, restricted choices of classes and sliding windows, against whole score maps in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import shards
from shards.errors import SettingsError
from tests.train.conftest import Call, recipe
from tests.train.shardset import scene
from tests.train.test_cosine_loss import Largest
from train import inference, score_maps
from train.config import Loss, Model
from train.inference import Views, classes_of, leading, predict, predict_top, views_of
from train.models import Cosined, CosineModel, EmbeddingModel, build_model
from train.windows import starts

CPU = torch.device("cpu")
HEADS = ("dense", "embedding", "cosine")


class Colours(nn.Module):
    """Stands in for a network: features hang on colours and on the place in the window, at stride 4."""

    def __init__(self, head: str, classes: int = 23) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = {"dense": classes, "embedding": 12, "cosine": 6}
        self.conv = nn.Conv2d(3, widths[head], 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        images = images + torch.linspace(-2, 2, images.shape[-1])
        maps: Tensor = self.conv(images) * 3
        return maps


def network(head: str, classes: int = 23) -> Any:
    torch.manual_seed(1)
    model = build_model(
        Model(arch="linear", encoder="mobilenetv3_small_050", output_stride=8, head=head), classes, Loss(tau=0.3)
    ).eval()
    model.encoder, model.decoder, model.multiple = nn.Identity(), Colours(head, classes), 8
    if isinstance(model, CosineModel):
        model.vectors.weight = nn.Parameter(torch.randn(classes, 6))
    return model


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=0, keepdims=True)


def upsampled(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.tensor(maps)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()


def said(model: Any, part: np.ndarray, classes: list[int] | None) -> np.ndarray:
    """Logits [C, h, w] of a part of an image (of a point's vector, with an embedding head), float64."""
    h, w = part.shape[:2]
    with torch.no_grad():
        out = model(torch.tensor(np.ascontiguousarray(part)).permute(2, 0, 1)[None])
    if isinstance(model, CosineModel):
        table = out.table.double().numpy()[classes]
        table = table[0] if classes is None else table
        scores = np.einsum("dhw,cd->chw", out.features[0].double().numpy(), table)
        scores = (scores - scores.mean(0)) / np.sqrt(scores.var(0) + 1e-5)
        return upsampled(scores, (h + -h % 8, w + -w % 8))[:, :h, :w]
    if isinstance(model, EmbeddingModel):
        return out.pixels[0].double().numpy()
    return out[0].double().numpy()[classes if classes is not None else slice(None)]


def view(model: Any, image: np.ndarray, views: Views, classes: list[int] | None) -> np.ndarray:
    """What the windows of an image say, averaged: mmsegmentation's loop."""
    if views.window is None:
        return said(model, image, classes)
    (height, width), (high, wide), (down, right) = image.shape[:2], views.window, views.steps
    total, count = 0.0, np.zeros((height, width))
    for i in range(max(height - high + down - 1, 0) // down + 1):
        for j in range(max(width - wide + right - 1, 0) // right + 1):
            bottom, end = min(i * down + high, height), min(j * right + wide, width)
            top, left = max(bottom - high, 0), max(end - wide, 0)
            found = said(model, image[top:bottom, left:end], classes)
            total += np.pad(found, ((0, 0), (top, height - bottom), (left, width - end)))
            count[top:bottom, left:end] += 1
    assert count.min() >= 1
    return np.asarray(total) / count


def naive(model: Any, image: np.ndarray, size: tuple[int, int], views: Views, classes: list[int] | None) -> np.ndarray:
    """Confidences [C, H, W] of all classes."""
    total: Any = 0.0
    for scale in views.scales:
        h, w = (int(side * scale + 0.5) for side in image.shape[:2])
        shown = image if scale == 1 else shards.resize_image_to(image, (h, w), "triangle")
        for mirrored in (False, True) if views.flip else (False,):
            found = view(model, shown[:, ::-1] if mirrored else shown, views, classes)
            found = found[:, :, ::-1].copy() if mirrored else found
            if isinstance(model, EmbeddingModel):
                total += unit(upsampled(unit(found) if views.window else found, size))
            else:
                exp = np.exp(found - found.max(0))
                total += upsampled(exp / exp.sum(0), size)
    if isinstance(model, EmbeddingModel):
        table = model.classes().detach().double().numpy()
        table = table if classes is None else table[classes]
        squares = ((unit(total)[None] - table[:, :, None, None]) ** 2).sum(1)
        total = np.exp(-squares / 0.3)
    return np.asarray(total / total.sum(0))


VIEWS = [
    Views(),
    Views((0.75, 1.0), True),
    Views(window=(40, 48), stride=(24, 30)),
    Views((1.0, 1.3), True, window=(32, 64)),
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("views", VIEWS, ids=["one", "several", "windows", "all"])
@pytest.mark.parametrize("classes", [None, [7, 2, 20, 11]], ids=["all", "some"])
def test_labels_and_confidences_equal_whole_maps(
    head: str, views: Views, classes: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = network(head), scene(3, (61, 90)).image
    for module in (inference, score_maps):
        monkeypatch.setattr(module, "CHUNK", 7 * 61 * 90)
    for size in ((61, 90), (80, 100)):
        want = naive(model, image, size, views, classes)
        label = predict(model, image, size, views, CPU, classes=classes)
        best = np.sort(want, axis=0)
        clear = best[-1] - best[-2] > 1e-4
        assert clear.mean() > 0.9
        assert (label.numpy() == want.argmax(0))[clear].all()
        assert len(np.unique(label)) > 2
        ids, shares = (t.numpy() for t in predict_top(model, image, size, views, CPU, top=3, classes=classes))
        assert (ids[0] == want.argmax(0))[clear].all()
        np.testing.assert_allclose(np.take_along_axis(want, ids, 0), shares, atol=2e-4)
        np.testing.assert_allclose(shares, -np.sort(-want, axis=0)[:3], atol=2e-4)


@pytest.mark.parametrize("head", HEADS)
def test_a_choice_of_classes_that_is_none_is_refused(head: str) -> None:
    model, image = network(head, 5), scene(3).image
    for wrong in ([], [5], [-1], [[1, 2]]):
        with pytest.raises(SettingsError, match="expected some numbers from 0 to 4"):
            predict(model, image, (64, 96), Views(), CPU, classes=np.array(wrong, np.int64))


def test_many_classes_need_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image, chunk = network("cosine", 1200), scene(3).image, 12 * 64 * 96
    for module in (inference, score_maps):
        monkeypatch.setattr(module, "CHUNK", chunk)
    with Largest() as watch, torch.inference_mode():
        predict(model, image, (64, 96), Views((1.0, 0.5)), CPU)
        predict_top(model, image, (64, 96), Views(), CPU, top=5)
    assert watch.entries <= 2 * chunk
    assert 20 * watch.entries < 4000 * 64 * 96


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 100))
def test_windows_begin_where_mmsegmentation_has_them(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    count = max(length - window + stride - 1, 0) // stride + 1
    assert starts(length, window, stride) == [max(min(i * stride + window, length) - window, 0) for i in range(count)]


def test_windows_that_cannot_be() -> None:
    for wrong, told in (
        ({"window": (16, 64)}, r"window \(16, 64\): expected at least 32"),
        ({"window": (64, 64), "stride": (65, 64)}, r"stride \(65, 64\): expected 1 pixel to the window's"),
        ({"window": (64, 64), "stride": (0, 64)}, "stride"),
        ({"stride": (64, 64)}, "without a window"),
    ):
        with pytest.raises(SettingsError, match=told):
            Views(**wrong)  # type: ignore[arg-type]


def test_windows_are_the_recipes() -> None:
    chosen = recipe(eval={"window": [64, 96], "stride": [32, 64]})
    assert views_of(chosen, CPU).window == (64, 96)
    assert views_of(chosen, CPU).steps == (32, 64)
    assert views_of(recipe(), CPU).window is None


def test_tiny_images_with_windows_and_mirror() -> None:
    model, image = network("cosine"), scene(3).image[:20, :40]
    label = predict(model, image, (20, 40), Views(flip=True, window=(32, 32)), CPU)
    assert label.shape == (20, 40)


@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 15))
def test_leading_classes_of_equals_come_in_order(seed: int, classes: int, top: int) -> None:
    scores = torch.randint(4, (classes, 3, 2), generator=torch.Generator().manual_seed(seed)).float()
    before = scores.clone()
    values, ids = leading(scores, top)
    order = scores.argsort(dim=0, descending=True, stable=True)[:top]
    assert torch.equal(ids, order)
    assert torch.equal(values, scores.gather(0, order))
    assert torch.equal(scores, before)


def test_each_picture_of_a_batch_has_its_own_classes() -> None:
    table = torch.eye(3)
    features = table[torch.tensor([[[0, 1]], [[2, 0]]])].permute(0, 3, 1, 2)
    out = Cosined(features, table, torch.tensor(1.0), True, (2, 4), 2)
    assert classes_of(out).tolist() == [[[0, 0, 1, 1]] * 2, [[2, 2, 0, 0]] * 2]
    cut = classes_of(out._replace(size=(1, 3)))
    assert cut.tolist() == [[[0, 0, 1]], [[2, 2, 0]]]


def test_from_shards_to_pictures(call: Call, shard_set: Path, tmp_path: Path) -> None:
    config = tmp_path / "cosine.toml"
    config.write_text(
        """
description = "a cosine head over a small encoder"
data = { scales = ["1/2"], workers = 0 }
model = { arch = "linear", encoder = "mobilenetv3_small_050", output_stride = 8, head = "cosine", dropout = 0.0 }
optim = { lr = 0.05, weight_decay = 0.0 }
loop = { steps = 30, batch = 4, image_every = 15, checkpoint_every = 0 }
eval = { input_scale = "1/2" }
"""
    )
    run = tmp_path / "run"
    code, _, err = call("seg-train", "--shards", shard_set, "--recipe", config, "--out", run)
    assert code == 0, err
    scores = tmp_path / "scores.json"
    code, _, err = call("seg-eval", "--run", run, "--shards", shard_set, "--json", scores)
    assert code == 0, err
    assert json.loads(scores.read_text())["pixel_accuracy"] > 0.5
    picture = tmp_path / "street.png"
    from PIL import Image

    Image.fromarray(scene(50).image).save(picture)
    code, _, err = call("seg-predict", "--run", run, "--out", tmp_path / "out", "--top", 2, picture)
    assert code == 0, err
    with np.load(tmp_path / "out" / "street.top.npz") as top:
        assert top["ids"].shape == (2, 64, 96)
        assert (top["confidences"].astype(np.float32).sum(0) <= 1.001).all()
