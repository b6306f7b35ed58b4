"""The whole road of a mixture: pixels and tags in, scores of base and novel classes out, in training and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.classes import ClassTable
from shards.errors import UserError
from tests.train.conftest import MAINS, Call
from tests.train.shardset import Raw, scene, write
from train.run import open_run
from train.sources import open_all

BASE = ClassTable.make(("road", "wall", "bus"))
TAGGED = ClassTable.make(("person", "wall", "road", "car"))  # person and car are novel
RECIPE = """
description = "for tests"
[data]
scales = ["1"]
workers = 0
[augment]
crop = [32, 48]
[model]
arch = "linear"
encoder = "mobilenetv3_small_050"
output_stride = 8
head = "cosine"
[loss]
memory_size = 2
memory_top = 3
[optim]
name = "adamw"
[loop]
steps = 4
batch = 4
accumulate = 2
image_every = 0
eval_every = 2
[eval]
window = [64, 64]
[mixture]
parts = 2
[[mixture.sources]]
name = "pixels"
[[mixture.sources]]
name = "tags"
labels = "image"
"""


def turned(raw: Raw) -> Raw:
    """A scene whose classes stand in TAGGED's order."""
    assert raw.hard is not None
    order = np.arange(65536, dtype=np.uint16)
    order[:4] = [2, 1, 3, 0]
    return Raw(raw.key, raw.image, order[raw.hard])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shard sets "pixels" and "tags", both with a labelled split "val", and "run" on them."""
    place = tmp_path_factory.mktemp("mixture")
    splits = {"train": range(4), "val": range(100, 102)}
    pixels = {name: [scene(i, classes=2) for i in indices] for name, indices in splits.items()}
    write(place / "pixels", pixels, classes=BASE, scales=("1",))
    tags = {name: [turned(scene(i)) for i in indices] for name, indices in splits.items()}
    write(place / "tags", tags, classes=TAGGED, scales=("1",))
    (place / "tiny.toml").write_text(RECIPE)
    words = ["seg-train", "--recipe", str(place / "tiny.toml"), "--out", str(place / "run"), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        given = [word for name in ("pixels", "tags") for word in ("--shards", f"{name}={place / name}")]
        patch.setattr("sys.argv", [*words, *given])
        with pytest.raises(SystemExit) as ended:
            MAINS["seg-train"]()
    assert ended.value.code in (0, None)
    return place


def test_scores_in_training_are_those_of_seg_eval(call: Call, folder: Path, tmp_path: Path) -> None:
    """Scored is the set with the most novel classes; answers are restricted to its classes; bus is none of them."""
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    told = [line["eval"] for line in log if "eval" in line]
    assert len(told) == 2
    words = ("seg-eval", "--run", folder / "run", "--report", tmp_path / "report", "--json", tmp_path / "s.json")
    code, out, err = call(*words, "--shards", folder / "tags")
    assert code == 0, err
    scores = json.loads((tmp_path / "s.json").read_text())
    for name in ("miou", "miou_base", "miou_novel", "pixel_accuracy"):
        assert told[-1][name] == pytest.approx(scores[name])
    assert told[-1]["per_class"] == pytest.approx(scores["per_class"])
    groups = {"person": "novel", "wall": "base", "road": "base", "car": "novel"}
    assert scores["per_class_group"] == groups
    assert scores["matched"] == {
        "classes": "shards", "run": 5, "allowed": 4, "missing": "refuse", "missing_classes": []
    }  # fmt: skip
    assert scores["window"] == [64, 64]
    assert "2 base and 2 novel classes" in out
    assert "answers: 4 of the run's 5 classes" in out
    assert call(*words, "--shards", folder / "tags", "--window", "none")[0] == 0  # the recipe asks for one
    assert "window" not in json.loads((tmp_path / "s.json").read_text())


def test_pictures_of_a_mixtures_run(call: Call, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(scene(7).image).save(tmp_path / "a.png")
    words = ("--run", folder / "run", "--image", tmp_path / "a.png", "--out", tmp_path / "o.png")
    code, out, err = call("seg-grouping", "attention", *words, "--tag", "car", "--tag", "person", "--tag", "road")
    assert code == 0, err
    assert "no map of road" in out
    assert "2 maps" in out
    code, _, err = call("seg-predict", "--run", folder / "run", "--out", tmp_path, "--legend", tmp_path / "a.png")
    assert code == 0, err
    assert (tmp_path / "a.legend.png").is_file()
    words = ("--run", folder / "run", "--shards", folder / "tags", "--classes", "novel", "--json", tmp_path / "g.json")
    code, out, err = call("seg-grouping", "score", *words)
    assert code == 0, err
    assert "features: the head's unit vectors" in out
    assert json.loads((tmp_path / "g.json").read_text())["per_class"].keys() == {"person", "car"}


def test_which_set_is_scored_in_training(folder: Path, tmp_path: Path) -> None:
    """That with the most novel classes; one without labels for its split "val" cannot be."""
    recipe = open_run(folder / "run").recipe

    def scored(pixels: Path, tags: Path) -> Path:
        return open_all([f"pixels={pixels}", f"tags={tags}"], recipe).scored

    assert scored(folder / "pixels", folder / "tags") == folder / "tags"
    bare = write(tmp_path / "bare", {"train": [turned(scene(1))]}, classes=TAGGED, scales=("1",))
    assert scored(folder / "pixels", bare) == folder / "pixels"
    alone = write(tmp_path / "alone", {"train": [scene(1, classes=2)]}, classes=BASE, scales=("1",))
    with pytest.raises(UserError, match="no shard set of the mixture has a split 'val' with pixel labels"):
        scored(alone, bare)
