"""The whole road of an embedding head: shards, training, scores, pictures, likeliest classes, embeddings as files."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from shards.classes import ClassTable
from tests.train.conftest import MAINS, Call
from tests.train.shardset import CLASSES, scene, write
from tests.train.test_cli import RECIPE
from train import checkpoint
from train.embeddings import ClassVectors, neighbour_rows, picture, principal_axes

SETTINGS = ("loop.steps=40", "loop.batch=4", "optim.name=adamw", "optim.lr=0.01")
EMBEDDING = ("model.head=embedding", "model.embedding_dim=3", "loss.k=2")


def words(shard_set: Path, folder: Path, name: str, *settings: str) -> list[str]:
    given = ["--shards", str(shard_set), "--recipe", str(folder / "tiny.toml"), "--out", str(folder / name), "--quiet"]
    return ["seg-train", *given, *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture(scope="module")
def runs(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs "nearest", "exact" and "dense"."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "tiny.toml").write_text(RECIPE)
    own: dict[str, tuple[str, ...]] = {"nearest": EMBEDDING, "exact": (*EMBEDDING, "loss.mode=exact"), "dense": ()}
    for name, settings in own.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words(shard_set, folder, name, *SETTINGS, *settings))
            with pytest.raises(SystemExit) as ended:
                MAINS["seg-train"]()
        assert ended.value.code in (0, None)
    return folder


@pytest.mark.parametrize("mode", ["nearest", "exact"])
def test_trained_then_scored_better_than_the_commonest_class(
    call: Call, runs: Path, shard_set: Path, tmp_path: Path, mode: str
) -> None:
    given = ("--run", runs / mode, "--shards", shard_set, "--quiet", "--report", tmp_path / "report")
    assert call("seg-eval", *given, "--json", tmp_path / "s.json")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["miou"] > 0.5 / 4
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_dry_run_tells_the_plan(call: Call, runs: Path, shard_set: Path) -> None:
    code, out, _ = call(*words(shard_set, runs, "none", *EMBEDDING)[:-1], EMBEDDING[-1], "--dry-run")
    assert code == 0
    assert "parameters" in out
    given = words(shard_set, runs, "none", *EMBEDDING, "loss.lvis_negatives=true")
    code, _, err = call(*given, "--dry-run")
    assert (code, err.count("\n")) == (2, 1)
    assert "expected the 1,203 of LVIS v1" in err


def test_resumed_weights_are_the_same(call: Call, runs: Path, shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    given = words(shard_set, tmp_path, "run", *SETTINGS, *EMBEDDING, "loop.checkpoint_every=15")
    with pytest.MonkeyPatch.context() as patch:
        saved: list[int] = []
        whole = checkpoint.save

        def save(path: Path, state: Any) -> None:
            saved.append(state.step)
            whole(path, state)
            if state.step == 15:
                raise KeyboardInterrupt

        patch.setattr("train.checkpoint.save", save)
        assert call(*given)[0] == 1
    assert saved == [15]
    assert call(*given, "--resume")[0] == 0
    one, two = (checkpoint.load(folder / checkpoint.NAME).model for folder in (runs / "nearest", tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)


def test_a_search_that_is_not_there_leaves_no_run(
    call: Call, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused at the first search would leave a folder that only --resume with the same search can use."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    for module in ("faiss", "train.neighbors.faiss_search"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    given = words(shard_set, tmp_path, "run", *EMBEDDING, "loop.steps=1")
    for backend, says in (("faiss", "FAISS is not installed"), ("triton", "search backend triton")):
        code, _, err = call(*given, "--set", f"loss.search={backend}", "--device", "cpu")
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
        assert not (tmp_path / "run").exists()
    assert call(*given)[0] == 0


def test_a_run_goes_on_with_another_search(call: Call, runs: Path, shard_set: Path) -> None:
    """Backends agree to the index, so a run may move to a machine that has others."""
    given = words(shard_set, runs, "nearest", *SETTINGS, *EMBEDDING)
    assert call(*given, "--resume", "--set", "loss.search=torch")[0] == 0
    code, _, err = call(*given, "--resume", "--set", "loss.k=3")
    assert code == 2
    assert "loss.k was 2, is 3" in err


@pytest.mark.parametrize("mode", ["nearest", "dense"])
def test_the_likeliest_classes_are_written(call: Call, runs: Path, tmp_path: Path, mode: str) -> None:
    Image.fromarray(scene(7, (51, 71)).image).save(tmp_path / "a.png")  # the last cells reach beyond it
    given = ("--run", runs / mode, "--out", tmp_path / "out", tmp_path / "a.png", "--quiet", "--flip")
    assert call("seg-predict", *given, "--top", "4", "--scales", "0.75,1")[0] == 0
    with np.load(tmp_path / "out" / "a.top.npz", allow_pickle=False) as stored:
        ids, shares, names = stored["ids"], stored["confidences"], stored["names"]
    assert (ids.shape, ids.dtype, shares.shape, shares.dtype) == ((4, 51, 71), np.uint16, (4, 51, 71), np.float16)
    assert names.tolist() == list(CLASSES.names)
    assert (np.sort(ids, axis=0) == np.arange(4)[:, None, None]).all()
    assert (np.diff(shares.astype(float), axis=0) <= 0).all()
    np.testing.assert_allclose(shares.astype(float).sum(0), 1, atol=5e-3)
    with Image.open(tmp_path / "out" / "a.label.png") as label:
        first = np.asarray(label)
        np.testing.assert_array_equal(first, ids[0])
    assert call("seg-predict", *given, "--scales", "0.75,1")[0] == 0
    with Image.open(tmp_path / "out" / "a.label.png") as label:
        assert (np.asarray(label) == first).mean() > 0.999
    code, _, err = call("seg-predict", *given, "--top", "5")
    assert code == 2
    assert "--top 5: found 4 classes" in err


def test_embeddings_as_files(call: Call, runs: Path, tmp_path: Path) -> None:
    code, out, err = call("seg-embeddings", "--run", runs / "nearest", "--out", tmp_path / "e", "--neighbours", "2")
    assert code == 0, err
    assert f"4 class embeddings of 3 numbers, step 40: {tmp_path / 'e'}" in out
    weight = checkpoint.load(runs / "nearest" / checkpoint.NAME).model["classes.weight"].double().numpy()
    wanted = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    with np.load(tmp_path / "e" / "embeddings.npz", allow_pickle=False) as stored:
        np.testing.assert_allclose(stored["embeddings"], wanted, atol=1e-6)
        assert stored["names"].tolist() == list(CLASSES.names)
        assert stored["wnids"].tolist() == [""] * 4
    with safe_open(str(tmp_path / "e" / "embeddings.safetensors"), "np") as stored:
        np.testing.assert_allclose(stored.get_tensor("embeddings"), wanted, atol=1e-6)
        metadata = stored.metadata()
    assert json.loads(metadata["names"]) == list(CLASSES.names)
    assert (metadata["step"], metadata["classes_digest"]) == ("40", CLASSES.digest)
    with open(tmp_path / "e" / "neighbours.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    apart = np.linalg.norm(wanted[:, None] - wanted[None], axis=2)
    order = np.argsort(apart + 9 * np.eye(4), axis=1)[:, :2]
    assert [int(row["neighbour_id"]) for row in rows] == order.flatten().tolist()
    assert [row["name"] for row in rows] == [name for name in CLASSES.names for _ in range(2)]
    np.testing.assert_allclose(
        [float(r["distance"]) for r in rows], np.sort(apart, axis=1)[:, 1:3].flatten(), atol=1e-5
    )
    with Image.open(tmp_path / "e" / "projection.png") as drawn:
        assert len(drawn.convert("RGB").getcolors(1 << 22)) > 5


def test_a_dense_run_has_no_class_embeddings(call: Call, runs: Path, tmp_path: Path) -> None:
    code, _, err = call("seg-embeddings", "--run", runs / "dense", "--out", tmp_path / "e")
    assert code == 2
    assert err.count("\n") == 1
    assert 'model.head = "dense", without class embeddings' in err
    assert not (tmp_path / "e").exists()


def test_embeddings_of_a_run_that_has_diverged_are_refused(call: Call, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "nearest", tmp_path / "run")
    place = tmp_path / "run" / checkpoint.NAME
    saved = checkpoint.load(place)
    saved.model["classes.weight"][1] = float("inf")
    checkpoint.save(place, saved)
    code, _, err = call("seg-embeddings", "--run", tmp_path / "run", "--out", tmp_path / "e")
    assert (code, err.count("\n")) == (2, 1)
    assert "the embedding of class 'wall' is not finite (1 such classes)" in err
    assert not (tmp_path / "e").exists()


def test_embeddings_need_a_folder(call: Call, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "e").write_text("mine")
    code, _, err = call("seg-embeddings", "--run", runs / "nearest", "--out", tmp_path / "e")
    assert (code, err.count("\n")) == (2, 1)
    assert "is a file; expected a folder" in err
    assert (tmp_path / "e").read_text() == "mine"


def test_the_projection_keeps_what_lies_on_two_axes() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(30, 2)) * [3, 1]
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]
    found, shares = principal_axes((plane @ axes).astype(np.float32))
    plane -= plane.mean(0)
    distances, wanted = (np.linalg.norm(p[:, None] - p[None], axis=2) for p in (found, plane))
    np.testing.assert_allclose(distances, wanted, atol=1e-5)
    assert found[:, 0].std() > found[:, 1].std()
    assert sum(shares) == pytest.approx(1)


def test_names_stay_inside_the_picture() -> None:
    """The two ends of the first axis: the right one's name would run over the edge."""
    found = ClassVectors(np.float32([[1, 0], [-1, 0]]), ClassTable.make(["w" * 30, "v" * 30]))
    drawn = np.asarray(picture(found)).min(2)
    assert (drawn[:, -2:] == 255).all()
    assert (drawn[:, :800] < 100).any(0).sum() > 150
    assert (drawn[:, 800:] < 100).any(0).sum() > 150


@pytest.mark.parametrize("seed", range(4))
def test_an_axis_points_where_its_largest_entry_is_positive(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(20, 5)).astype(np.float32)
    axes = np.linalg.lstsq(vectors - vectors.mean(0), principal_axes(vectors)[0], rcond=None)[0]  # [5, 2]
    assert (np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) > 0).all()


@pytest.mark.parametrize("count", [1, 2])
def test_few_classes_and_equal_ones_have_files_too(count: int) -> None:
    table = ClassTable.make([f"c{index}" for index in range(count)])
    found = ClassVectors(np.tile(np.float32([0.6, 0.8]), (count, 1)), table)
    assert picture(found).size == (1600, 1600)
    rows = list(neighbour_rows(found, 10))
    both = [("0", "c0", "1", "1", "c1", "0.000000"), ("1", "c1", "1", "0", "c0", "0.000000")]
    assert rows[1:] == (both if count == 2 else [])


def test_cocolvis_runs_on_a_cpu(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete system on a tiny shard set of 1,284 classes, with what LVIS checked in the meta."""
    meta = {"lvis": True, "pos_classes": [0, 1, 2, 3], "neg_classes": [9]}
    monkeypatch.setattr("tests.train.shardset.encode_meta", lambda own: json.dumps({**own, **meta}).encode())
    table = ClassTable.make([f"c{index}" for index in range(1284)])
    raws = {"train": [scene(i) for i in range(4)], "val": [scene(9)]}
    path, run = write(tmp_path / "s", raws, scales=("1",), classes=table), tmp_path / "run"
    small = ("model.weights=none", "augment.crop=[32, 32]", "loop.batch=2", "loop.steps=2", "data.workers=0")
    for recipe, more in (
        ("essnet-resnet50-cocolvis", ("loss.lvis_negatives=true",)),
        ("essnet-resnet50-cocolvis-gn", ()),
    ):
        given = ["--shards", path, "--recipe", recipe, "--out", run / recipe, "--quiet"]
        given += [word for setting in (*small, "loop.image_every=2", *more) for word in ("--set", setting)]
        code, _, err = call("seg-train", *given)
        assert code == 0, err
    given = ["--run", run / "essnet-resnet50-cocolvis", "--shards", path, "--quiet", "--json", tmp_path / "s.json"]
    assert call("seg-eval", *given)[0] == 0
    assert 0 <= json.loads((tmp_path / "s.json").read_text())["fwiou"] <= 1
    assert call("seg-embeddings", "--run", run / "essnet-resnet50-cocolvis", "--out", tmp_path / "e", "--quiet")[0] == 0
