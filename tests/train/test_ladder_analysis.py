"""seg-ladder: silent units against weights of zero, rungs against heads called by hand, pictures, curves."""

from __future__ import annotations

import hashlib
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.densenet import DenseNet
from torch import Tensor, nn

import shards
from shards.classes import ClassTable
from shards.errors import SettingsError
from tests.train.conftest import Call, recipe
from tests.train.shardset import CLASSES, scene, write
from tests.train.test_ladder_training import ladder
from tests.train.test_loop import trainer
from train import checkpoint
from train.curves import Curve, plot
from train.inference import load_model
from train.models.ladder import Ladder, LadderDenseNet, LadderFeatures, LadderModel
from train.pruning import counts_of, pruned, units_of
from train.run import Run, create, open_run
from train.strides import spread, strides_of

REGNET = {"arch": "ladder", "encoder": "regnetx_002", "down": 32, "up": 4}
UNITS = [f"encoder.maps.model.s{s}.b{b}" for s, count in ((1, 1), (2, 1), (3, 4), (4, 7)) for b in range(1, count + 1)]
BLOCK, CAPTION, GAP = (64, 96), 18, 4  # of a picture: a panel's size, pixels above it, pixels between two


@pytest.fixture(scope="module")
def run_folder(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder over a RegNet of 13 blocks, eight steps old, shown 32 x 48 pixels: 48 is no multiple of its stride."""
    folder = tmp_path_factory.mktemp("analysis") / "run"
    sections = {"model": REGNET, "data": {"scales": ["1/2"], "workers": 0}, "augment": {"crop": None}}
    assert trainer(shard_set, folder, ladder({"steps": 8}, **sections)).run().finished
    return folder


def scramble(model: nn.Module) -> nn.Module:
    """Random statistics and scales everywhere: timm starts the last norm of a residual branch at zero."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    return model.eval()


def ladder_over(encoder: nn.Module) -> LadderModel:
    widths = [24, 16, 16, 16, 16][: len(encoder.channels) - 1]
    parts = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "multiple": encoder.strides[-1], "smallest_batch": 2}
    return scramble(LadderModel(encoder=encoder, decoder=Ladder(encoder.channels, widths, 5), **parts))


@pytest.fixture
def densenet(monkeypatch: pytest.MonkeyPatch) -> LadderModel:
    """64 -> 4 over a DenseNet of 2, 2, 4 and 2 units."""
    made = DenseNet(growth_rate=8, block_config=(2, 2, 4, 2))
    monkeypatch.setattr("train.models.ladder.densenet.timm.create_model", lambda *args, **options: made)
    torch.manual_seed(0)
    return ladder_over(LadderDenseNet("tiny", False, 64, 4))


def zeroed(model: nn.Module, units: list[str], keys: tuple[str, ...]) -> dict[str, Tensor]:
    """The model's weights, those of some layers of some units all zero."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for unit in units:
        for key in keys:
            state[f"{unit}.{key}"].zero_()
    return state


DENSE_TAIL = [
    f"encoder.blocks.{block}.units.{unit}" for block in (4, 3, 2, 1, 0) for unit in (1, 0)
]  # blocks 2 and 3 are the halves of DB3


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_silent_dense_units_are_as_with_convolutions_of_zeros(densenet: LadderModel, count: int) -> None:
    images = torch.randint(0, 256, (1, 3, 64, 128), dtype=torch.uint8)
    with torch.no_grad():
        whole = densenet(images)
        with pruned(densenet, count):
            found = densenet(images)
        assert torch.equal(densenet(images), whole)  # as it was
        densenet.load_state_dict(zeroed(densenet, DENSE_TAIL[:count], ("conv2.weight",)))
        assert torch.equal(found, densenet(images))
    assert torch.equal(found, whole) == (count == 0)


def test_dense_units_are_counted_from_the_tail(densenet: LadderModel) -> None:
    assert [name for name, _ in units_of(densenet)] == DENSE_TAIL


@pytest.mark.parametrize(
    ("encoder", "units", "keys"),
    [
        ("resnet10t", 4, ("bn2.weight", "bn2.bias")),
        ("resnet14t", 4, ("bn3.weight", "bn3.bias")),
        ("seresnet18", 8, ("bn2.weight", "bn2.bias")),
        ("dpn48b", 16, ("c1x1_c1.weight", "c1x1_c2.weight")),
        ("dpn68", 22, ("c1x1_c.conv.weight",)),
    ],
)
def test_silent_blocks_keep_their_shortcut(encoder: str, units: int, keys: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.encoder = LadderFeatures(encoder, False, 32, 4)
    scramble(model)
    images = torch.randn(1, 3, 64, 64)
    tail = [name for name, _ in units_of(model)]
    assert len(tail) == units
    reference = [maps[0] for maps in model.encoder(images)]
    for count in (1, units):
        with torch.no_grad():
            with pruned(model, count):
                found = [maps[0] for maps in model.encoder(images)]
            kept = zeroed(model, [], ())
            model.load_state_dict(zeroed(model, tail[:count], keys))
            expected = [maps[0] for maps in model.encoder(images)]
            model.load_state_dict(kept)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        changed = [not torch.equal(a, b) for a, b in zip(found, reference, strict=True)]
        assert changed == ([False] * 3 + [True] if count == 1 else [True] * 4)  # one block: the coarsest map alone


def test_an_error_inside_leaves_no_unit_silent(densenet: LadderModel) -> None:
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        whole = densenet(images)
        with pytest.raises(RuntimeError, match="stop"), pruned(densenet, 4):
            raise RuntimeError("stop")
        assert torch.equal(densenet(images), whole)
    with pytest.raises(SettingsError, match="found 10 units"), pruned(densenet, 11):
        pass


def test_counts_of_units() -> None:
    assert counts_of(None, 58) == [0, 1, 2, 4, 8, 16, 32, 58]
    assert counts_of(None, 8) == [0, 1, 2, 4, 8]
    assert counts_of("all", 3) == [0, 1, 2, 3]
    assert counts_of([8, 0, 8], 8) == [0, 8]
    with pytest.raises(SettingsError, match="--units 9: found 8 units"):
        counts_of([0, 9], 8)


def edited(run_folder: Path, to: Path, units: list[str]) -> Path:
    """A copy of a run with the last norms of some units at zero."""
    folder = Path(shutil.copytree(run_folder, to))
    saved = checkpoint.load(folder / checkpoint.NAME)
    for unit in units:
        for key in ("weight", "bias"):
            saved.model[f"{unit}.conv3.bn.{key}"].zero_()
    checkpoint.save(folder / checkpoint.NAME, replace(saved, model=saved.model))
    return folder


def scores_of(call: Call, folder: Path, shard_set: Path, *options: str) -> dict[str, Any]:
    """What seg-eval writes."""
    words = ("--run", folder, "--shards", shard_set, "--quiet", "--json", folder / "scores.json")
    assert call("seg-eval", *words, *options)[0] == 0
    return json.loads((folder / "scores.json").read_text())


def test_prune_scores_as_seg_eval_does_with_zeroed_weights(
    call: Call, run_folder: Path, shard_set: Path, tmp_path: Path
) -> None:
    before = hashlib.sha256((run_folder / checkpoint.NAME).read_bytes()).digest()
    words = ("seg-ladder", "prune", "--run", run_folder, "--shards", shard_set, "--json", tmp_path / "new" / "p.json")
    code, out, err = call(*words, "--units", "5, 0", "--plot", tmp_path / "p.svg")
    assert code == 0, err
    result = json.loads((tmp_path / "new" / "p.json").read_text())
    assert result["tail"] == UNITS[::-1]
    assert [scores["units"] for scores in result["pruned"]] == [0, 5]
    for scores in result["pruned"]:
        silent = UNITS[13 - scores["units"] :]
        expected = scores_of(call, edited(run_folder, tmp_path / f"run{scores['units']}", silent), shard_set)
        for name in ("miou", "per_class", "iiou", "pixels", "category_miou"):
            assert scores[name] == expected[name], name
    for name in ("samples", "split", "manifest_digest", "step", "norms", "scales", "flip", "input_scale", "dataset"):
        assert result[name] == expected[name], name
    assert len({scores["miou"] for scores in result["pruned"]}) == 2
    assert hashlib.sha256((run_folder / checkpoint.NAME).read_bytes()).digest() == before
    rows = {line[:14].strip(): line[14:].split() for line in out.splitlines()}
    assert rows["silent units"] == ["0", "5"]
    for name in CLASSES.names:
        assert rows[name] == [f"{100 * scores['per_class'][name]:.2f}" for scores in result["pruned"]]
    assert rows["mean IoU"] == [f"{100 * scores['miou']:.2f}" for scores in result["pruned"]]
    assert "13 units, from the tail: 7 in encoder.maps.model.s4, 4 in encoder.maps.model.s3" in out
    assert "5 images of scenes val; BatchNorm statistics: moving averages" in out
    assert {"mean", *CLASSES.names} <= set(ET.parse(tmp_path / "p.svg").getroot().itertext())


def test_a_long_table_goes_on_below(call: Call, run_folder: Path, shard_set: Path) -> None:
    words = ("seg-ladder", "prune", "--run", run_folder, "--shards", shard_set, "--units", "all", "--limit", "1")
    code, out, _ = call(*words)
    assert code == 0
    heads = [line.split()[2:] for line in out.splitlines() if line.startswith("silent units")]
    assert heads == [[str(i) for i in range(10)], ["10", "11", "12", "13"]]
    assert out.count("\nroad ") == 2
    assert "1 images of scenes val" in out


def test_both_take_the_exact_norms_unless_told(call: Call, run_folder: Path, shard_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    assert call("seg-norms", "--run", folder, "--quiet")[0] == 0
    found = {}
    for option in (("--limit", "2"), ("--limit", "2", "--moving-norms")):
        expected = scores_of(call, folder, shard_set, *option)
        words = ("--run", folder, "--shards", shard_set, "--json", tmp_path / "x.json", "--quiet", *option)
        assert call("seg-ladder", "prune", *words, "--units", "0") == (0, "", "")
        result = json.loads((tmp_path / "x.json").read_text())
        assert (result["norms"], result["pruned"][0]["per_class"]) == (expected["norms"], expected["per_class"])
        assert call("seg-ladder", "strides", *words, "--scores", "--out", tmp_path / "out") == (0, "", "")
        result = json.loads((tmp_path / "x.json").read_text())
        assert (result["norms"], result["strides"][-1]["per_class"]) == (expected["norms"], expected["per_class"])
        found[option] = expected["miou"]
    assert len(set(found.values())) == 2


@pytest.mark.parametrize("units", ["", "1,x", "-1", "1,,2", "0.5"])
def test_units_that_are_no_numbers_are_one_line(call: Call, units: str) -> None:
    code, out, err = call("seg-ladder", "prune", "--run", "none", "--shards", "none", f"--units={units}")
    assert (code, out) == (2, "")
    assert err == f'error: --units {units!r}: expected whole numbers from 0 such as 0,4,8, or "all"\n'


def refused(call: Call, *words: object) -> str:
    """The one line of a command that is refused."""
    code, out, err = call("seg-ladder", *words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    return err


def test_what_cannot_be_pruned_is_one_line(call: Call, run_folder: Path, shard_set: Path, tmp_path: Path) -> None:
    words = ("prune", "--run", run_folder, "--shards", shard_set)
    assert "--units 14: found 13 units" in refused(call, *words, "--units", "0,14")
    assert "p.png: expected a name that ends in .svg" in refused(call, *words, "--plot", tmp_path / "p.png")
    assert "no run in" in refused(call, "prune", "--run", tmp_path, "--shards", shard_set)
    assert "nowhere" in refused(call, *words, "--split", "nowhere")
    other = write(tmp_path / "other", {"val": [scene(0)]}, classes=ClassTable.make(("a", "b", "c", "d")))
    assert "class 0 is 'road' and 'a'" in refused(call, "prune", "--run", run_folder, "--shards", other)
    config = ladder({"steps": 1})  # over a MobileNet
    assert trainer(shard_set, tmp_path / "run", config).run().finished
    said = refused(call, "prune", "--run", tmp_path / "run", "--shards", shard_set)
    assert "found no units to prune in this run's encoder, expected a ladder over a DenseNet" in said


def by_hand(model: LadderModel, images: Tensor) -> Iterator[Tensor]:
    """Logits of each rung at the size of the images, from the network's parts, coarsest first."""
    h, w = images.shape[2:]
    size = [-(-n // model.multiple) * model.multiple for n in (h, w)]
    pixels = (images / 255 - model.mean / 255) / (model.std / 255)
    maps = model.encoder(F.pad(pixels, (0, size[1] - w, 0, size[0] - h)))
    ladder = model.decoder
    x, _ = ladder.spp(torch.cat(maps[-1], 1))
    for step, head, skip in zip(ladder.steps, ladder.step_heads, maps[-2::-1], strict=True):
        yield F.interpolate(head(x), size, mode="bilinear")[:, :, :h, :w]
        x = step(x, *skip)
    yield F.interpolate(ladder.head(x), size, mode="bilinear")[:, :, :h, :w]


@pytest.mark.parametrize("size", [(64, 128), (50, 71), (33, 130)])
def test_rungs_are_the_heads_on_each_steps_input(densenet: LadderModel, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *size)).float()
    before = {name: tensor.clone() for name, tensor in densenet.state_dict().items()}
    with torch.no_grad():
        found = densenet.logits_by_stride(images)
        assert list(found) == [64, 32, 16, 8, 4]
        for logits, expected in zip(found.values(), by_hand(densenet, images), strict=True):
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[4], densenet(images))
    assert not densenet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in densenet.state_dict().items())


def test_rungs_need_their_heads(densenet: LadderModel) -> None:
    bare = Ladder(densenet.encoder.channels, [24, 16, 16, 16], 5, auxiliary=False)
    densenet.decoder = bare
    with pytest.raises(SettingsError, match="without auxiliary heads"):
        densenet.logits_by_stride(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("down", "up", "dilated", "strides"),
    [(64, 4, "none", [64, 32, 16, 8, 4]), (16, 2, "none", [16, 8, 4, 2]), (8, 8, 8, [8]), (8, 4, 8, [8, 4])],
)
def test_strides_of_a_recipe(down: int, up: int, dilated: Any, strides: list[int]) -> None:
    model = {"arch": "ladder", "encoder": "densenet121", "down": down, "up": up, "dilated": dilated}
    assert strides_of(ladder(model=model)) == strides


def predictions(run_folder: Path, shard_set: Path) -> dict[str, list[np.ndarray]]:
    """By key, what each rung says of a validation scene, at full size, coarsest first."""
    model, _ = load_model(open_run(run_folder), torch.device("cpu"))
    found = {}
    for sample in (shards.open(shard_set, split="val", scale="1/2")[i] for i in range(5)):
        image = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            shares = [logits.softmax(1) for logits in by_hand(model, image)]
        found[sample.key] = [F.interpolate(s, BLOCK, mode="bilinear").argmax(1)[0].numpy() for s in shares]
    return found


def miou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean IoU of predictions and labels, class by class, as its definition says."""
    scores = []
    for klass in range(len(CLASSES)):
        both = sum(((p == klass) & (y == klass)).sum() for p, y in pairs)
        either = sum((((p == klass) & (y != shards.IGNORE)) | (y == klass)).sum() for p, y in pairs)
        scores += [both / either] if either else []
    return float(np.mean(scores))


def panels(path: Path) -> list[np.ndarray]:
    """The six panels of a picture: three beside each other, two rows, a caption above each."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    h, w = BLOCK
    assert pixels.shape == (2 * (CAPTION + h), 3 * w + 2 * GAP, 3)
    found = []
    for y in (0, CAPTION + h):
        for x in (0, w + GAP, 2 * (w + GAP)):
            assert pixels[y : y + CAPTION, x : x + w].min() < 100, "no caption"
            found.append(pixels[y + CAPTION : y + CAPTION + h, x : x + w])
    return found


def test_strides_draw_and_score_every_rung(call: Call, run_folder: Path, shard_set: Path, tmp_path: Path) -> None:
    words = ("seg-ladder", "strides", "--run", run_folder, "--shards", shard_set, "--out", tmp_path / "new" / "out")
    code, out, err = call(*words, "--count", "2", "--scores", "--json", tmp_path / "s.json")
    assert code == 0, err
    expected, full = predictions(run_folder, shard_set), shards.open(shard_set, split="val", scale="1")
    palette = np.array([*CLASSES.colours, (0, 0, 0)], np.uint8)
    pictures = sorted((tmp_path / "new" / "out").iterdir())
    assert [path.name for path in pictures] == ["scene_0101.png", "scene_0103.png"]  # of 100 .. 104
    for path in pictures:
        image, label, *rungs = panels(path)
        sample = full[path.stem]
        assert np.array_equal(image, sample.image)
        assert np.array_equal(label, palette[np.minimum(sample.hard, 4)])
        assert len({rung.tobytes() for rung in rungs}) == 4
        for rung, ids in zip(rungs, expected[path.stem], strict=True):
            assert (rung == palette[ids]).all(2).mean() > 0.999  # bar a tie that rounding decides
    result = json.loads((tmp_path / "s.json").read_text())
    assert [rung["stride"] for rung in result["strides"]] == [32, 16, 8, 4]
    for place, rung in enumerate(result["strides"]):
        assert rung["miou"] == pytest.approx(miou([(expected[s.key][place], s.hard) for s in full]), abs=1e-3)
    same = ("samples", "split", "step", "norms", "input_scale", "manifest_digest")
    scores = scores_of(call, run_folder, shard_set)
    assert {name: result[name] for name in same} == {name: scores[name] for name in same}
    assert result["strides"][-1]["per_class"] == scores["per_class"]
    rows = {line[:14].strip(): line[14:].split() for line in out.splitlines()}
    assert rows["stride"] == ["32", "16", "8", "4"]
    assert rows["mean IoU"] == [f"{100 * rung['miou']:.2f}" for rung in result["strides"]]


def test_without_scores_only_what_is_drawn_is_looked_at(
    call: Call, run_folder: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], LadderModel.logits_by_stride
    monkeypatch.setattr(LadderModel, "logits_by_stride", lambda self, x: seen.append(len(x)) or real(self, x))
    words = ("seg-ladder", "strides", "--run", run_folder, "--shards", shard_set, "--out", tmp_path)
    code, out, _ = call(*words, "--count", "2", "--split", "train")
    assert (code, seen) == (0, [1, 1])
    assert out == f"pictures of 2 samples, strides 32, 16, 8, 4: {tmp_path}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene_0002.png", "scene_0008.png"]


def test_spread() -> None:
    assert (spread(5, 2), spread(101, 1), spread(3, 9), spread(4, 4)) == ([1, 3], [50], [0, 1, 2], [0, 1, 2, 3])


def test_runs_without_rungs_are_one_line(call: Call, shard_set: Path, tmp_path: Path) -> None:
    words = ("--shards", shard_set, "--out", tmp_path / "out")
    for name, config, said in (
        ("linear", recipe(), 'found model.arch = "linear" in the run, expected a run with model.arch = "ladder"'),
        ("bare", ladder(model={**REGNET, "auxiliary": False}), "found model.auxiliary = false in the run, expected"),
    ):
        create(Run(tmp_path / name, config, CLASSES, ()))
        assert said in refused(call, "strides", "--run", tmp_path / name, *words)
    said = refused(call, "strides", "--run", tmp_path / "bare", *words, "--json", tmp_path / "x.json")
    assert "--json without --scores" in said
    assert not (tmp_path / "out").exists()


def test_curves_stand_where_their_numbers_are() -> None:
    curves = [
        Curve("<mean>", "#000", [(0, 1.0), (10, 0.5), (20, 0.0)], bold=True),
        Curve("gap", "rgb(1, 2, 3)", [(0, 0.25), (10, None), (20, 0.75)]),
    ]
    root = ET.fromstring(plot(curves, "t", "units & more", "IoU"))
    space = "{http://www.w3.org/2000/svg}"
    lines = [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [3, 1, 1]
    (left, top), middle, (right, bottom) = lines[0]
    assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert lines[1] == [pytest.approx((left, top + 0.75 * (bottom - top)), abs=0.1)]
    assert lines[2] == [pytest.approx((right, top + 0.25 * (bottom - top)), abs=0.1)]
    assert len(list(root.iter(f"{space}circle"))) == 5
    texts = {e.text: (float(e.get("x", 0)), float(e.get("y", 0))) for e in root.iter(f"{space}text")}
    assert {"<mean>", "gap", "units & more", "IoU"} <= texts.keys()
    assert texts["10"] == pytest.approx(((left + right) / 2, bottom + 18), abs=0.1)
    assert len(plot([Curve("one", "#000", [(0, 0.5)])], "t", "x", "y")) > 100  # a single point at 0
