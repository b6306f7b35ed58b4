"""Runs that begin from another run's network: what is taken, what starts anew, what is refused, what is kept."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shards.classes import ClassTable
from shards.errors import FormatError, SettingsError, UserError
from tests.train.conftest import Call, recipe
from tests.train.shardset import CLASSES, scene, write
from tests.train.test_ladder_training import ladder
from tests.train.test_loop import equal, trainer, weights
from train import checkpoint, run
from train.checkpoint import Checkpoint
from train.config import Recipe
from train.models import build_model
from train.start import begin, check, read_start

TOML = """
description = "for tests"
[data]
scales = ["1/2"]
workers = 0
[model]
arch = "linear"
encoder = "mobilenetv3_small_050"
output_stride = 8
[loop]
steps = {steps}
batch = 2
image_every = 0
[eval]
input_scale = "1/2"
"""
SIX = ClassTable.make(("road", "wall", "car", "person", "pole", "sign"))
SWAPPED = ClassTable.make(("wall", "road", "car", "person"))
PAINTED = ClassTable.make(CLASSES.names, colours=[(1, 2, 3), (4, 5, 6), (7, 8, 9), (9, 9, 9)])


def saved_network(path: Path, config: Recipe, classes: ClassTable = CLASSES, seed: int = 7) -> dict[str, Tensor]:
    """Publish a checkpoint of a random network at `path`; its state dict."""
    torch.manual_seed(seed)
    model = build_model(config.model, len(classes), config.loss).state_dict()
    checkpoint.save(path, Checkpoint(model, {}, 5, config.to_dict(), classes.to_dict(), classes.digest, [], {}))
    return model


def begun(path: Path, config: Recipe, classes: ClassTable) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """State dicts of a network before and after it began from the checkpoint at `path`, and what was said."""
    torch.manual_seed(8)
    model = build_model(config.model, len(classes), config.loss)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = begin(model, read_start(path), config, classes)
    return before, model.state_dict(), said


@pytest.fixture(scope="module")
def first(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps on four classes."""
    folder = tmp_path_factory.mktemp("first") / "run"
    assert trainer(shard_set, folder, recipe(loop={"steps": 3})).run().finished
    return folder


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of six classes."""
    return write(
        tmp_path_factory.mktemp("six") / "set", {"train": [scene(i, classes=6) for i in range(4)]}, classes=SIX
    )


HEADS = {f"{kind}_heads.{i}" for kind, count in (("step", 3), ("pool", 4)) for i in range(count)} | {"head"}
KINDS: dict[str, tuple[Recipe, set[str]]] = {
    "linear": (recipe(), {"decoder.classify"}),
    "deeplabv3plus": (
        recipe(model={"arch": "deeplabv3plus", "output_stride": 16, "decoder_channels": 16}),
        {"decoder.1.0"},
    ),
    "ladder": (ladder(), {f"decoder.{name}.conv" for name in HEADS}),
    "embedding": (recipe(model={"head": "embedding", "embedding_dim": 5}, loss={"search_every": 2}), {"classes"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_start_their_own_layers_anew_and_say_which(tmp_path: Path, kind: str) -> None:
    config, layers = KINDS[kind]
    given = saved_network(tmp_path / "a.pt", config)
    before, after, said = begun(tmp_path / "a.pt", config, SIX)
    new = {name for name in after if any(name.startswith(f"{layer}.") for layer in layers)}
    assert new
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if name in new else given[name]), name
    assert said.startswith(f"starting from the network of {tmp_path / 'a.pt'}, step 5: {len(after) - len(new)} tensors")
    assert set(said.rpartition("anew: ")[2].split(", ")) == layers
    assert "\n" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_equal_classes_take_every_tensor(tmp_path: Path, kind: str) -> None:
    config, _ = KINDS[kind]
    given = saved_network(tmp_path / "a.pt", config)
    for classes in (CLASSES, PAINTED):  # colours are not learnt
        _, after, said = begun(tmp_path / "a.pt", config, classes)
        assert all(torch.equal(tensor, given[name]) for name, tensor in after.items())
        assert "anew" not in said


def test_classes_in_another_order_are_other_classes(tmp_path: Path) -> None:
    config, _ = KINDS["linear"]
    given = saved_network(tmp_path / "a.pt", config)
    before, after, said = begun(tmp_path / "a.pt", config, SWAPPED)
    assert "anew: decoder.classify" in said
    assert torch.equal(after["decoder.classify.weight"], before["decoder.classify.weight"])
    assert not torch.equal(after["decoder.classify.weight"], given["decoder.classify.weight"])


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another encoder": (
        {"encoder": "mobilenetv3_small_075", "dropout": 0.5},
        {},
        r"encoder\.\S+ found \[16, 16, 1, 1\], expected \[8, 16, 1, 1\] \(model\.encoder was 'mobilenetv3_small_075', "
        r"is 'mobilenetv3_small_050'\)",
    ),
    "another decoder": (
        {"arch": "deeplabv3plus", "output_stride": 16},
        {},
        r"decoder\.\S+ found \[256, 288, 1, 1\], expected none \(model\.arch was 'deeplabv3plus', is 'linear'",
    ),
    "group norm": (
        {},
        {"norm": "group"},
        r"\S+running_mean found \[16\], expected none \(model\.norm was 'batch', is 'group'\)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_of_another_architecture_are_one_line(tmp_path: Path, case: str) -> None:
    old, new, expected = MISFITS[case]
    saved_network(tmp_path / "a.pt", recipe(model=old))
    config = recipe(model=new)
    model = build_model(config.model, 6, config.loss)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = read_start(tmp_path / "a.pt")
    with pytest.raises(SettingsError, match="weights of another architecture: " + expected) as raised:
        begin(model, start, config, SIX)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(SettingsError, match=re.escape(str(raised.value))):
        check(start, config, SIX)


def test_other_numbers_of_classes_do_not_hide_another_width(tmp_path: Path) -> None:
    """The class table [C, d] starts anew with other classes; the layers that make d numbers a pixel do not."""
    embedding = {"head": "embedding", "embedding_dim": 5}
    saved_network(tmp_path / "a.pt", recipe(model=embedding))
    config = recipe(model={**embedding, "embedding_dim": 6})
    with pytest.raises(
        SettingsError, match=r"decoder\.classify\.weight found \[5, .*expected \[6, .*embedding_dim was 5"
    ):
        begun(tmp_path / "a.pt", config, SIX)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda t: t.half(), r"found \[4, 288, 1, 1\] float16, expected \[4, 288, 1, 1\];"),
        (lambda t: t.to_sparse(), r"found \[4, 288, 1, 1\] sparse_coo, expected \[4, 288, 1, 1\];"),
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, spoil: Any, found: str) -> None:
    config, _ = KINDS["linear"]
    saved_network(tmp_path / "a.pt", config)
    start, name = read_start(tmp_path / "a.pt"), "decoder.classify.weight"
    spoilt = {**start.saved.model, name: spoil(start.saved.model[name])}
    with pytest.raises(SettingsError, match=found):
        check(replace(start, saved=replace(start.saved, model=spoilt)), config, CLASSES)


def test_a_broken_class_table_names_the_file(tmp_path: Path) -> None:
    config, _ = KINDS["linear"]
    saved_network(tmp_path / "a.pt", config)
    checkpoint.save(tmp_path / "b.pt", replace(checkpoint.load(tmp_path / "a.pt"), classes={"names": 3}))
    with pytest.raises(FormatError, match=r"b\.pt"):
        begun(tmp_path / "b.pt", config, CLASSES)


def test_a_folder_gives_its_exact_statistics_only_where_they_are_of_its_last_step(first: Path, tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "run.json"):
        (tmp_path / name).write_bytes((first / name).read_bytes())
    assert read_start(tmp_path).path == tmp_path / "checkpoint.pt"
    saved = checkpoint.load(first / "checkpoint.pt")
    of = {**saved.versions, checkpoint.NORMS_OF: checkpoint.digest(tmp_path / "checkpoint.pt")}
    checkpoint.save(tmp_path / checkpoint.NORMS, replace(saved, versions=of))
    assert read_start(tmp_path).path == tmp_path / checkpoint.NORMS
    assert read_start(tmp_path / "checkpoint.pt").path == tmp_path / "checkpoint.pt"
    assert read_start(tmp_path).digest == checkpoint.digest(tmp_path / checkpoint.NORMS)
    checkpoint.save(tmp_path / checkpoint.NORMS, replace(saved, versions={**of, checkpoint.NORMS_OF: "another"}))
    assert read_start(tmp_path).path == tmp_path / "checkpoint.pt"


def test_from_another_run_to_other_classes_and_resumed(call: Call, first: Path, six: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOML.format(steps=3))
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("checkpoint.pt", "run.json"):
        (moved / name).write_bytes((first / name).read_bytes())
    digest = checkpoint.digest(moved / "checkpoint.pt")
    words = ("seg-train", "--shards", six, "--recipe", tmp_path / "tiny.toml", "--start", moved, "--device", "cpu")
    code, out, err = call(*words, "--out", tmp_path / "run")
    assert code == 0, err
    assert f"starting from the network of {moved / 'checkpoint.pt'}, step 3: " in out
    assert "anew: decoder.classify\n" in out
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["start"] == {"path": str(moved / "checkpoint.pt"), "digest": digest}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "summary" not in line] == [1, 2, 3]
    finished = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert finished.step == 3

    config = run.open_run(tmp_path / "run").recipe
    again = trainer(six, tmp_path / "again", config, resume=False)  # the same by hand
    begin(again.model, read_start(first), config, SIX)
    again.run()
    assert equal(weights(tmp_path / "again"), finished.model)

    (moved / "checkpoint.pt").unlink()  # a resumed run does not look there
    code, out, err = call(*words, "--out", tmp_path / "run", "--resume")
    assert code == 0, err
    assert "nothing left to do" in out
    code, _, err = call(*words, "--out", tmp_path / "fresh")
    assert code == 2
    assert "no checkpoint here" in err
    assert not (tmp_path / "fresh").exists()


def test_stopped_before_its_first_step_it_goes_on_from_the_same_network(
    call: Call, first: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(TOML.format(steps=2))
    words = ("seg-train", "--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--start", first, "--quiet")
    assert call(*words, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("train.loop.Trainer.run", lambda self: (_ for _ in ()).throw(UserError("killed")))
        assert call(*words, "--out", tmp_path / "cut")[0] == 2
    assert checkpoint.load(tmp_path / "cut" / "checkpoint.pt").step == 0
    monkeypatch.setattr("train.start.read_start", lambda place: pytest.fail("looked at the start again"))
    assert call(*words, "--out", tmp_path / "cut", "--resume")[0] == 0
    assert run.open_run(tmp_path / "cut").start == run.open_run(tmp_path / "whole").start
    cut, whole = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("cut", "whole"))
    assert equal(cut.model, whole.model)

    (tmp_path / "cut" / "checkpoint.pt").unlink()  # never from random numbers instead
    code, _, err = call(*words, "--out", tmp_path / "cut", "--resume")
    assert code == 2
    assert "delete the folder and give --start again" in err


def test_nothing_is_fetched_that_the_start_replaces(
    call: Call, first: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(TOML.format(steps=1))
    seen: list[str] = []
    monkeypatch.setattr(
        "train.loop.build_model", lambda config, *rest: seen.append(config.weights) or build_model(config, *rest)
    )
    words = ("seg-train", "--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--set", "model.weights=timm")
    assert call(*words, "--start", first, "--out", tmp_path / "run", "--quiet")[0] == 0
    assert seen == ["none"]
    assert run.open_run(tmp_path / "run").recipe.model.weights == "timm"  # the recipe is kept as it was given


def test_a_dry_run_refuses_what_the_run_would(call: Call, first: Path, shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOML.format(steps=1))
    words = ("seg-train", "--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--start", first)
    assert call(*words, "--dry-run")[0] == 0
    for last in (("--dry-run",), ("--out", tmp_path / "run")):
        code, _, err = call(*words, "--set", "model.encoder=mobilenetv3_small_075", *last)
        assert code == 2
        assert "weights of another architecture" in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_runs_from_scratch_are_kept_as_before(first: Path) -> None:
    assert "start" not in json.loads((first / "run.json").read_text())
    assert run.open_run(first).start is None


@pytest.mark.parametrize("start", [3, {"path": "x"}, "x", None])
def test_a_spoilt_start_in_run_json_is_one_line(first: Path, tmp_path: Path, start: object) -> None:
    values = json.loads((first / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**values, "start": start}))
    with pytest.raises(FormatError, match="not a readable run file"):
        run.open_run(tmp_path)
