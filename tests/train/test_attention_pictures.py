"""Pictures of attention (LarvSeg's equation 4) and of predictions with their classes named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from shards.classes import ClassTable
from shards.errors import SettingsError
from tests.train.conftest import Call
from tests.train.shardset import scene
from train import checkpoint, run
from train.attention_pictures import attention_of, draw_attention, load_with_memory, tags_of
from train.checkpoint import Checkpoint
from train.config import from_dict
from train.figure import PAPER, classes_shown
from train.inference import Views
from train.label_space import LabelSpace
from train.models import build_model
from train.objective_mixed import remembered
from train.run import Run, open_run

CPU = torch.device("cpu")
TABLE = ClassTable.make(("road", "wall", "sofa", "lamp", "cat"))
BASE = np.arange(5) < 2
SOURCES = [{"name": "pixels"}, {"name": "tags", "labels": "image"}]
VALUES = {
    "name": "tiny",
    "description": "for tests",
    "data": {"scales": ["1"], "workers": 0},
    "model": {"arch": "linear", "encoder": "mobilenetv3_small_050", "output_stride": 8, "head": "cosine"},
    "loss": {"memory_size": 2, "memory_top": 3},
    "augment": {"crop": [64, 64]},
    "loop": {"batch": 4},
    "mixture": {"parts": 2, "sources": SOURCES},
}


def made(folder: Path, **loss: object) -> Run:
    """A run whose memory knows sofa and lamp; cat's ring is not full."""
    recipe = from_dict({**VALUES, "loss": {**VALUES["loss"], **loss}})
    known = np.array([True, True, False, False, False])
    space = LabelSpace(TABLE, BASE, (known, ~known | True))
    source = {"path": "x", "dataset": "x", "digest": "0" * 64, "filter": "box"}
    sources = tuple({**source, "source": one["name"]} for one in SOURCES)
    made = Run(folder, recipe, TABLE, sources, None, space)
    run.create(made)
    torch.manual_seed(3)
    model = build_model(recipe.model, 5, recipe.loss, remembered(recipe, space))
    if getattr(model, "bank", None) is not None:
        width = model.bank.slots.shape[2]
        vectors = F.normalize(torch.randn(5, width), dim=1)
        model.bank.add(torch.tensor([2, 2, 3, 3, 4]), vectors)
    checkpoint.save(
        folder / checkpoint.NAME,
        Checkpoint(
            model=model.state_dict(),
            optimiser={},
            step=1,
            recipe=recipe.to_dict(),
            classes=TABLE.to_dict(),
            classes_digest=TABLE.digest,
            digests=made.digests,
            versions=run.versions(),
        ),
    )
    return open_run(folder)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("attention") / "run")


def by_hand(opened: Run, image: np.ndarray, tags: list[int]) -> dict[int, np.ndarray]:
    """Equation 4 for two known labels, each the other's background: cosines to slots one by one, in float64."""
    model = load_with_memory(opened, CPU)
    with torch.no_grad():
        cells = model.coarse(torch.tensor(image).permute(2, 0, 1)[None])[0].double()  # [d, h, w]
    score = {}
    for tag in tags:
        slots = model.bank.slots[tag - 2].double()
        score[tag] = torch.stack([torch.einsum("d,dhw->hw", slot, cells) for slot in slots]).mean(0)
    out = {}
    for tag in tags:
        raw = score[tag] - torch.stack([score[other] for other in tags if other != tag]).mean(0)
        normal = (raw - raw.mean()) / (raw.var(unbiased=False) + 1e-5).sqrt()
        grid = normal.sigmoid()[None, None]
        full = F.interpolate(grid, scale_factor=8, mode="bilinear", align_corners=False)[0, 0].numpy()
        out[tag] = full[: image.shape[0], : image.shape[1]]  # the rest is padding
    return out


@pytest.mark.parametrize("size", [(64, 96), (61, 90)])
def test_maps_are_those_of_the_memory(opened: Run, size: tuple[int, int]) -> None:
    image = scene(3, size).image
    found = attention_of(load_with_memory(opened, CPU), opened, image, [2, 3], Views(), CPU)
    want = by_hand(opened, image, [2, 3])
    assert list(found) == [2, 3]
    for tag in found:
        assert found[tag].shape == size
        assert found[tag] == pytest.approx(want[tag], abs=1e-4)
        assert np.ptp(found[tag]) > 0.3


def test_classes_that_the_memory_does_not_know_have_no_map(opened: Run) -> None:
    """cat has one image of two, wall is no class of the memory; a single known label looks for its background."""
    image = scene(3, (61, 93)).image
    model = load_with_memory(opened, CPU)
    found = attention_of(model, opened, image, [1, 2, 4], Views(), CPU)
    assert list(found) == [2]
    assert found[2].shape == (61, 93)
    assert attention_of(model, opened, image, [1, 4], Views(), CPU) == {}


def test_one_image_attention_needs_no_memory(tmp_path: Path) -> None:
    opened = made(tmp_path / "run", attention="image")
    model = load_with_memory(opened, CPU)
    assert list(attention_of(model, opened, scene(3).image, [1, 4], Views(), CPU)) == [1, 4]


def test_pictures_name_classes(opened: Run) -> None:
    image = scene(3, (64, 96)).image
    maps = {2: np.zeros((64, 96), np.float32), 0: np.ones((64, 96), np.float32)}
    picture = draw_attention(image, maps, opened)
    assert picture.shape == (18 + 64, 3 * 100 - 4, 3)
    assert np.array_equal(picture[18:, :96], image)
    blue, red = picture[18:, 100:196].astype(int).mean((0, 1)), picture[18:, 200:296].astype(int).mean((0, 1))
    assert blue[2] > red[2]
    assert red[0] > blue[0]
    unmarked = draw_attention(image, maps, replace(opened, space=None))
    assert not np.array_equal(picture[:18, 100:196], unmarked[:18, 100:196])  # "(novel)" behind sofa
    assert np.array_equal(picture[:18, 200:], unmarked[:18, 200:])  # road is base


def test_legends_name_what_is_there() -> None:
    label = np.zeros((10, 10), np.uint16)
    label[:2], label[2] = 3, 65535
    entries = classes_shown(label, TABLE, BASE)
    assert [entry.text for entry in entries] == ["road (70.0 %)", "lamp (20.0 %, novel)"]
    assert [entry.colour for entry in entries] == [TABLE.colours[0], TABLE.colours[3]]
    assert classes_shown(label, TABLE, None)[1].text == "lamp (20.0 %)"
    many = ClassTable.make([f"c{i}" for i in range(100)])
    entries = classes_shown(np.arange(100, dtype=np.uint16).reshape(10, 10), many, None)
    assert len(entries) == 41
    assert (entries[-1].colour, entries[-1].text) == (PAPER, "and 60 more")


def test_tags_are_names(opened: Run) -> None:
    assert tags_of(opened, ["cat", "road", "cat"]) == [0, 4]
    with pytest.raises(SettingsError, match="--tag 'dog': no class of run"):
        tags_of(opened, ["dog"])


def test_the_command(call: Call, opened: Run, tmp_path: Path) -> None:
    Image.fromarray(scene(3).image).save(tmp_path / "a.png")
    words = ("seg-grouping", "attention", "--run", opened.folder, "--image", tmp_path / "a.png")
    words = (*words, "--out", tmp_path / "o.png")
    code, out, err = call(*words, "--tag", "sofa", "--tag", "lamp", "--tag", "cat")
    assert code == 0, err
    assert "no map of cat: the memory does not know them" in out
    assert "2 maps" in out
    assert np.array(Image.open(tmp_path / "o.png")).shape == (18 + 64, 3 * 100 - 4, 3)
    code, _, err = call(*words, "--tag", "cat")
    assert code == 2
    assert "knows none of cat yet" in err


def test_runs_without_a_memory_are_refused(call: Call, tmp_path: Path) -> None:
    opened = made(tmp_path / "run", attention_weight=0)
    Image.fromarray(scene(3).image).save(tmp_path / "a.png")
    words = ("--run", opened.folder, "--image", tmp_path / "a.png", "--out", tmp_path / "o.png", "--tag", "sofa")
    code, _, err = call("seg-grouping", "attention", *words)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "has no memory of classes: expected" in err
