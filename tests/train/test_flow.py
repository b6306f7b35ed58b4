"""The whole road of a run: shards in, training, scores and report, pictures of new images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shards
from shards.classes import ClassTable
from shards.picture import overlay
from tests.train.conftest import MAINS, Call
from tests.train.shardset import CLASSES, scene, write
from tests.train.test_cli import RECIPE
from train.inference import Views
from train.predict import label_image, predict_files
from train.run import open_run


@pytest.fixture(scope="module")
def run_folder(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, enough to beat the commonest class."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "tiny.toml").write_text(RECIPE)
    words = ["--shards", str(shard_set), "--recipe", str(folder / "tiny.toml"), "--out", str(folder / "run"), "--quiet"]
    for setting in ("loop.steps=40", "loop.batch=4", "optim.name=adamw", "optim.lr=0.01"):
        words += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["seg-train", *words])
        with pytest.raises(SystemExit) as ended:
            MAINS["seg-train"]()
    assert ended.value.code in (0, None)
    return folder / "run"


def test_evaluate_writes_scores_and_a_report(call: Call, run_folder: Path, shard_set: Path, tmp_path: Path) -> None:
    words = ("seg-eval", "--run", run_folder, "--shards", shard_set, "--split", "val")
    code, out, _ = call(*words, "--json", tmp_path / "new" / "scores.json")
    assert code == 0
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    commonest = 0.5 / 4  # the share of the commonest class, over four classes
    assert scores["miou"] > commonest
    assert scores.keys() >= {
        "miou", "pixel_accuracy", "mean_accuracy", "fwiou", "per_class", "iiou", "category_miou", "samples", "split",
        "run", "manifest_digest",
    }  # fmt: skip
    assert scores["samples"] == 5
    assert scores["manifest_digest"] == shards.load_manifest(shard_set).digest
    assert list(scores["per_class"]) == list(CLASSES.names)
    for word in ("road", "mean IoU", "iIoU", "5 images of scenes val", "index.html"):
        assert word in out
    report = run_folder / "report-val"
    assert (report / "index.html").is_file()
    assert len(list(report.glob("*.png"))) == 4 * 5


def test_views_limit_and_report_folder(call: Call, run_folder: Path, shard_set: Path, tmp_path: Path) -> None:
    words = ("seg-eval", "--run", run_folder, "--shards", shard_set, "--quiet", "--report", tmp_path / "report")
    code, out, _ = call(*words, "--scales", "0.75,1", "--flip", "--limit", "2", "--json", tmp_path / "e.json")
    assert (code, out) == (0, "")
    scores = json.loads((tmp_path / "e.json").read_text())
    assert (scores["samples"], scores["scales"], scores["flip"]) == (2, [0.75, 1.0], True)
    assert (tmp_path / "report" / "01-errors.png").is_file()


def test_input_scale_shows_the_network_another_image(
    call: Call, run_folder: Path, shard_set: Path, tmp_path: Path
) -> None:
    words = ("seg-eval", "--run", run_folder, "--shards", shard_set, "--quiet", "--report", tmp_path / "report")
    scores = {}
    for scale, option in {"1/2": (), "2/4": ("--input-scale", "2/4"), "1": ("--input-scale", "1")}.items():
        code, _, err = call(*words, *option, "--json", tmp_path / "e.json")
        assert code == 0, err
        scores[scale] = json.loads((tmp_path / "e.json").read_text())
    assert [scores[scale].pop("input_scale") for scale in ("1/2", "2/4", "1")] == ["1/2", "1/2", "1"]
    assert scores["2/4"] == scores["1/2"]
    assert scores["1"]["pixels"] == scores["1/2"]["pixels"]  # always the source's own
    assert scores["1"]["miou"] != scores["1/2"]["miou"]


@pytest.mark.parametrize("scale", ["abc", "1/999", "0", "2/3"])
def test_an_input_scale_that_cannot_be_shown_is_one_line(
    call: Call, run_folder: Path, shard_set: Path, tmp_path: Path, scale: str
) -> None:
    words = ("--run", run_folder, "--shards", shard_set, "--input-scale", scale, "--report", tmp_path / "report")
    code, out, err = call("seg-eval", *words)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert scale in err
    assert not (tmp_path / "report").exists()


def test_scores_are_not_taken_where_they_cannot_be_written(
    call: Call, run_folder: Path, shard_set: Path, tmp_path: Path
) -> None:
    code, out, err = call("seg-eval", "--run", run_folder, "--shards", shard_set, "--json", tmp_path)
    assert (code, out) == (2, "")
    assert "is a directory" in err


def test_predictions_of_a_box_run_keep_cells_over_their_pixels(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = open_run(run_folder), []
    Image.fromarray(scene(7, (45, 61)).image).save(tmp_path / "odd.png")
    monkeypatch.setattr(
        "train.predict.predict", lambda *args: seen.append(args) or torch.zeros(args[2], dtype=torch.int64)
    )
    predict_files(torch.nn.Identity(), run, [tmp_path / "odd.png"], tmp_path / "out", Views(), torch.device("cpu"))
    assert [seen[0][2], seen[0][5]] == [(45, 61), (46, 62)]


def test_other_classes_are_refused(call: Call, run_folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"val": [scene(0)]}, classes=ClassTable.make(("a", "b", "c", "d")))
    code, _, err = call("seg-eval", "--run", run_folder, "--shards", other)
    assert code == 2
    assert "no class in common: found road, wall, car, person; a, b, c, d; expected" in err


def test_a_cut_checkpoint_is_named(call: Call, run_folder: Path, shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "checkpoint.pt"):
        (tmp_path / "run" / name).write_bytes((run_folder / name).read_bytes()[: None if name == "run.json" else 5000])
    code, _, err = call("seg-eval", "--run", tmp_path / "run", "--shards", shard_set)
    assert code == 2
    assert "checkpoint.pt" in err
    assert len(err.strip().splitlines()) == 1


def test_predict_any_image_and_go_on_after_a_bad_one(call: Call, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    made = {"a.png": (64, 96), "b.jpg": (50, 71), "c.webp": (33, 40)}
    for name, size in made.items():
        Image.fromarray(scene(7, size).image).save(tmp_path / "in" / name)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not an image")
    images = [tmp_path / "in" / name for name in ("a.png", "bad.jpg", "missing.png", "b.jpg", "c.webp")]
    code, out, err = call("seg-predict", "--run", run_folder, "--out", tmp_path / "out", *images)
    assert code == 1
    assert "3 of 5 images predicted" in out
    said = [line.removeprefix("error: ").partition(":")[0] for line in err.strip().splitlines()]
    assert said == [str(images[1]), str(images[2])]
    for name, size in made.items():
        stem = name.partition(".")[0]
        with Image.open(tmp_path / "out" / f"{stem}.label.png") as label, Image.open(tmp_path / "in" / name) as source:
            ids = np.asarray(label)
            assert (label.mode, ids.shape) == ("P", size)
            assert label.getpalette()[:3] == list(CLASSES.colours[0])
            image = np.asarray(source.convert("RGB"))
        with Image.open(tmp_path / "out" / f"{stem}.overlay.png") as over:
            difference = np.abs(np.asarray(over).astype(int) - overlay(image, ids.astype(np.uint16), CLASSES))
        assert difference.max() <= (0 if name.endswith("png") else 6)  # JPEG decoders differ by a little
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_nothing_that_can_be_predicted_is_refused(call: Call, run_folder: Path, tmp_path: Path) -> None:
    code, _, err = call("seg-predict", "--run", run_folder, "--out", tmp_path / "out", tmp_path / "missing.png")
    assert code == 2
    assert err == f"error: {tmp_path / 'missing.png'}: No such file or directory; expected an image file\n"


def test_predictions_do_not_overwrite_each_other(call: Call, run_folder: Path, tmp_path: Path) -> None:
    code, _, err = call("seg-predict", "--run", run_folder, "--out", tmp_path, "a/x.png", "b/x.jpg")
    assert code == 2
    assert "two images are named 'x'" in err


def test_many_classes_are_16_bits(tmp_path: Path) -> None:
    many = ClassTable.make([f"c{i}" for i in range(400)])
    label_image(np.array([[0, 399]], np.uint16), many).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image).tolist() == [[0, 399]]


def test_too_little_memory_is_one_line(
    call: Call, run_folder: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    Image.fromarray(scene(7).image).save(tmp_path / "a.png")
    monkeypatch.setattr("train.evaluate.predict", none_left)
    monkeypatch.setattr("train.predict.predict", none_left)
    for words in (
        ("seg-eval", "--run", run_folder, "--shards", shard_set, "--report", tmp_path / "r", "--quiet"),
        ("seg-predict", "--run", run_folder, "--out", tmp_path / "out", tmp_path / "a.png"),
    ):
        code, _, err = call(*words)
        assert code == 2
        assert err.count("\n") == 1
        assert "out of memory: use smaller" in err


def test_a_run_without_its_checkpoint_says_that_it_starts_again(call: Call, shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    base = ("--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--out", tmp_path / "run")
    assert call("seg-train", *base, "--set", "loop.steps=2")[0] == 0
    (tmp_path / "run" / "checkpoint.pt").unlink()
    code, out, _ = call("seg-train", *base, "--set", "loop.steps=2", "--resume")
    assert code == 0
    assert f"no checkpoint.pt in {tmp_path / 'run'}: starting at step 0" in out


def test_predictions_stand_upright(call: Call, run_folder: Path, tmp_path: Path) -> None:
    upright = scene(7).image
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(upright).save(tmp_path / "plain.png")
    Image.fromarray(upright[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    out = tmp_path / "out"
    assert call("seg-predict", "--run", run_folder, "--out", out, *sorted(tmp_path.glob("*.png")))[0] == 0
    for kind in ("label", "overlay"):
        with Image.open(out / f"plain.{kind}.png") as plain, Image.open(out / f"turned.{kind}.png") as turned:
            np.testing.assert_array_equal(np.asarray(plain), np.asarray(turned))
