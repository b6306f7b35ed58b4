"""Inference of an embedding head against NumPy: views averaged at full resolution, labels, likeliest classes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import shards
from tests.train.shardset import scene
from tests.train.test_embedding_loop import embedding
from tests.train.test_loop import trainer
from train.inference import Views, classes_of, predict, predict_top
from train.loop import Trainer
from train.models import Embedded, EmbeddingModel


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=0, keepdims=True)


@pytest.fixture(scope="module")
def trained(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    made: Trainer = trainer(shard_set, tmp_path_factory.mktemp("trained") / "run", embedding(loop={"steps": 12}))
    made.run()
    assert isinstance(made.model, EmbeddingModel)
    return made.model.eval()


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((1.0,), True), ((0.75, 1.0), True)])
def test_views_are_averaged_on_the_sphere_at_full_resolution(
    trained: EmbeddingModel, scales: tuple[float, ...], flip: bool
) -> None:
    image, size, cpu = scene(50).image, (90, 130), torch.device("cpu")
    total = np.zeros((3, *size))
    for scale in scales:
        h, w = int(64 * scale + 0.5), int(96 * scale + 0.5)
        shown = image if scale == 1 else shards.resize_image_to(image, (h, w), "triangle")
        views = [(shown, 1), (shown[:, ::-1], -1)] if flip else [(shown, 1)]
        for pixels, way in views:
            with torch.no_grad():
                found = trained(torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]).pixels
            found = found.flip(-1) if way < 0 else found
            full = torch.nn.functional.interpolate(found, size=size, mode="bilinear", align_corners=False)
            total += unit(full[0].double().numpy())
    table = trained.classes().detach().double().numpy()
    squares = ((unit(total)[None] - table[:, :, None, None]) ** 2).sum(1)  # [C, H, W]
    label = predict(trained, image, size, Views(scales, flip), cpu).numpy()
    assert label.shape == size
    assert (label == squares.argmin(0)).mean() > 0.999
    ids, shares = (t.numpy() for t in predict_top(trained, image, size, Views(scales, flip), cpu, top=3))
    exp = np.exp(-squares / 0.05)
    wanted = exp / exp.sum(0)
    assert (ids[0] == label).mean() > 0.999
    assert ids.shape == shares.shape == (3, *size)
    np.testing.assert_allclose(np.take_along_axis(wanted, ids, 0), shares, atol=1e-3)
    assert (np.diff(shares, axis=0) <= 1e-6).all()


@pytest.mark.parametrize(("renormalise", "distance"), [(True, "squared"), (False, "plain")])
@pytest.mark.parametrize(("scales", "flip"), [((0.5, 1.0), True), ((0.5,), False)])
def test_views_that_disagree_are_averaged_as_the_head_says(
    trained: EmbeddingModel, scales: tuple[float, ...], flip: bool, renormalise: bool, distance: str
) -> None:
    """Embeddings that hang on colour and column: far from the sphere once they are resized and averaged."""

    def directions(shown: Tensor) -> Tensor:
        vectors = shown.float() - 127
        vectors[:, 0] += torch.linspace(-200, 200, shown.shape[-1])
        return vectors / vectors.norm(dim=1, keepdim=True)

    model = copy.deepcopy(trained)
    model.renormalise, model.distance = renormalise, distance
    table = model.classes().detach()
    model.forward = lambda images: Embedded(directions(images), table, 0.4)  # type: ignore[method-assign]
    image, size, views = scene(50).image, (64, 96), []
    for scale in scales:
        shown = image if scale == 1 else shards.resize_image_to(image, (32, 48), "triangle")
        for way in (1, -1) if flip else (1,):
            found = directions(torch.tensor(shown[:, ::way].copy()).permute(2, 0, 1)[None])
            full = found if way > 0 else found.flip(-1)
            full = torch.nn.functional.interpolate(full, size=size, mode="bilinear")[0].double()
            views.append(unit(full.numpy()) if renormalise else full.numpy())
    mean = np.mean(views, axis=0)
    mean = unit(mean) if renormalise else mean
    squares = ((mean[None] - table.double().numpy()[:, :, None, None]) ** 2).sum(1)
    exp = np.exp(-(squares if distance == "squared" else np.sqrt(squares)) / 0.4)
    ids, found_shares = predict_top(model, image, size, Views(scales, flip), torch.device("cpu"), top=4)
    assert (ids[0].numpy() == squares.argmin(0)).mean() > 0.999
    np.testing.assert_allclose(found_shares, np.take_along_axis(exp / exp.sum(0), ids.numpy(), 0), atol=1e-5)
    label = predict(model, image, size, Views(scales, flip), torch.device("cpu"))
    assert (label == ids[0]).float().mean() > 0.999


def test_the_mirror_image_of_a_small_picture_is_laid_over_it(trained: EmbeddingModel) -> None:
    """Its border is repeated up to 32 pixels; a head that looks at colours alone says the same of the mirror image."""
    model = copy.deepcopy(trained)
    table = model.classes().detach()
    model.forward = lambda images: Embedded(  # type: ignore[method-assign]
        torch.nn.functional.normalize(images.float() - 127, dim=1), table, 0.4
    )
    image, cpu = scene(50).image[20:40, 30:54], torch.device("cpu")
    one, both = (predict_top(model, image, (20, 24), Views((1.0,), flip), cpu, top=4) for flip in (False, True))
    assert torch.equal(one[0], both[0])
    torch.testing.assert_close(one[1], both[1])


def test_each_picture_of_a_batch_has_its_own_classes() -> None:
    table = torch.eye(3)
    pixels = table[torch.tensor([[[0, 1]], [[2, 0]]])].permute(0, 3, 1, 2)
    assert classes_of(Embedded(pixels, table, 1.0)).tolist() == [[[0, 1]], [[2, 0]]]
    assert classes_of(pixels).tolist() == [[[0, 1]], [[2, 0]]]


def test_what_lies_beyond_the_image_is_cut_off(trained: EmbeddingModel) -> None:
    """Where a box filter's last cells reach beyond the image, their part inside is the result."""
    image, cpu = scene(50).image, torch.device("cpu")
    for views in (Views(), Views((0.75, 1.0), True)):
        whole = predict(trained, image, (128, 192), views, cpu)
        assert torch.equal(predict(trained, image, (125, 189), views, cpu, (128, 192)), whole[:125, :189])
        ids, shares = predict_top(trained, image, (128, 192), views, cpu, top=2)
        cut = predict_top(trained, image, (125, 189), views, cpu, (128, 192), 2)
        assert torch.equal(cut[0], ids[:, :125, :189])
        assert torch.equal(cut[1], shares[:, :125, :189])
