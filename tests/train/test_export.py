"""Exported networks: what ONNX and .pt2 files compute at other sizes than the traced one, say of themselves, refuse."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.models.densenet import DenseNet
from torch import nn

from shards.classes import ClassTable
from shards.errors import UserError
from tests.train.conftest import Call
from tests.train.shardset import CLASSES, scene
from tests.train.test_cli import RECIPE
from train import checkpoint, deployed, export, export_check
from train.config import from_dict
from train.inference import load_model
from train.models import Cosined, build_model
from train.models.ladder.spp import SpatialPyramid, grids
from train.run import Run, create, open_run

onnx = pytest.importorskip("onnx", reason="ONNX is not installed: pip install segshards[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install segshards[export]")

# None is traced or looked at by seg-export's own check: 1:8 both ways, odd, one cell of stride 64, square
SIZES = ((1, 41, 328), (2, 330, 35), (3, 75, 53), (1, 64, 64), (2, 32, 33))
MODELS: dict[str, dict[str, Any]] = {
    "linear": {"arch": "linear", "encoder": "test_resnet", "output_stride": 32},
    "deeplabv3plus": {"arch": "deeplabv3plus", "encoder": "test_resnet", "decoder_channels": 16},
    "segformer": {"arch": "segformer", "encoder": "mit_b0", "decoder_channels": 16},
    "hrnet": {"arch": "hrnet", "encoder": "test_resnet", "decoder_channels": 16},
    "ladder": {"arch": "ladder", "encoder": "densenet121", "down": 64, "segments": "unit+stem+td+tu"},
    "ladder-resnet": {"arch": "ladder", "encoder": "test_resnet", "down": 32},
    "embedding": {"arch": "linear", "encoder": "test_resnet", "output_stride": 32, "head": "embedding"},
    "embedding-inside": {
        "arch": "deeplabv3plus", "encoder": "test_resnet", "decoder_channels": 16, "head": "embedding",
        "renormalise": False,
    },
    "cosine": {"arch": "deeplabv3plus", "encoder": "test_resnet", "decoder_channels": 16, "head": "cosine"},
    "cosine-scaled": {"arch": "linear", "encoder": "test_vit", "output_stride": 16, "head": "cosine",
                      "score": "scaled", "score_scale": 7.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """DenseNet-121 and MiT-B0 with a few layers: exporters take their time by the layer."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pages that pytest would keep
    real = timm.create_model

    def create_model(name: str, **options: Any) -> nn.Module:
        if name == "densenet121":
            return DenseNet(growth_rate=8, block_config=(1, 1, 2, 1))
        made: nn.Module = real(name, **options)
        return made

    monkeypatch.setattr("train.models.ladder.densenet.timm.create_model", create_model)
    monkeypatch.setitem(smp.encoders.encoders["mit_b0"]["params"], "depths", [1, 1, 1, 1])


def random_run(folder: Path, model: dict[str, Any], classes: ClassTable = CLASSES, **loss: Any) -> Run:
    """A run whose network has random weights and statistics, without any training."""
    recipe = from_dict({"name": "random", "description": "for tests", "model": model, "loss": loss})
    run = Run(folder, recipe, classes, ({"path": "x", "dataset": "scenes", "digest": "0" * 64, "filter": "box"},))
    create(run)
    torch.manual_seed(0)
    save(run, folder / checkpoint.NAME)
    return run


def save(run: Run, path: Path, versions: dict[str, str] | None = None) -> None:
    network = build_model(run.recipe.model, len(run.classes), run.recipe.loss)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
    recipe, classes = run.recipe.to_dict(), run.classes.to_dict()
    state = checkpoint.Checkpoint(
        network.state_dict(), {}, 7, recipe, classes, run.classes.digest, run.digests, versions or {}
    )
    checkpoint.save(path, state)


def images_of(batch: int, height: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(256, (batch, 3, height, width), generator=draw, dtype=torch.uint8)


Answers = Callable[[torch.Tensor], torch.Tensor]


def opened(path: Path) -> tuple[Answers, torch.export.ExportedProgram | None]:
    """What answers images, by the runtime's own ways, and the program of a .pt2 file, whose loading takes seconds."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (name,) = [given.name for given in session.get_inputs()]
        return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]), None
    program = program_of(path)
    return program.module(), program


def ran(path: Path, images: torch.Tensor) -> torch.Tensor:
    """The file's output."""
    return opened(path)[0](images)


def program_of(path: Path, **options: Any) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # torch's own reader
        return torch.export.load(path, **options)


def expected(run: Run, images: torch.Tensor) -> torch.Tensor:
    """The network's logits; of an embedding head -distance / tau by the definition, class by class, in float64."""
    network, _ = load_model(run, torch.device("cpu"))
    with torch.inference_mode():
        found = network(images)
    if isinstance(found, torch.Tensor):
        return found.double()
    if isinstance(found, Cosined):
        return cosines(found, run.recipe.model.score == "standardised")
    pixels, loss = found.pixels.double(), run.recipe.loss
    apart = torch.stack([(pixels - e[:, None, None]).square().sum(1) for e in found.table.double()], 1)
    return -(apart if loss.distance == "squared" else apart.sqrt()) / float(found.tau)


def cosines(found: Cosined, standardised: bool) -> torch.Tensor:
    """Cosines of every cell and class by torch's own function, over their deviation or times the scale, resized."""
    cells, rows = found.features.double()[:, None], found.table.double()[None, :, :, None, None]
    scores = F.cosine_similarity(cells, rows, dim=2)  # [B, C, h, w]
    spread = (scores.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    scores = scores / spread if standardised else scores * 7
    whole = tuple(-(-side // 16) * 16 for side in found.size)
    return F.interpolate(scores, size=whole, mode="bilinear", align_corners=False)[
        ..., : found.size[0], : found.size[1]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, "onnx") for name in ("deeplabv3plus", "segformer", "hrnet", "ladder", "embedding-inside", "cosine-scaled")]
    + [(name, "pt2") for name in ("linear", "ladder-resnet", "embedding", "cosine")],  # an export takes its time
)
def test_any_batch_and_size_gives_the_networks_output(call: Call, tmp_path: Path, name: str, suffix: str) -> None:
    loss = {"distance": "plain", "learn_tau": True} if name == "embedding-inside" else {}
    run = random_run(tmp_path / "run", MODELS[name], **loss)
    out = tmp_path / f"model.{suffix}"
    once = name == "ladder-resnet"  # its program takes seconds to load: here alone, and not by seg-export's check too
    code, said, err = call("seg-export", "--run", run.folder, "--out", out, *(["--no-check"] if once else []))
    assert (code, err) == (0, "")
    assert ("not checked" if once else "largest difference") in said
    answers, program = opened(out)
    for size in SIZES:
        images = images_of(*size)
        logits, found = expected(run, images), answers(images)
        assert found.dtype == torch.float32
        assert found.shape == (size[0], 4, *size[1:])
        assert (found - logits).abs().max() <= 1e-3 * logits.abs().max(), size
        assert logits.std() > 1e-3 * logits.abs().max()
    if name == "ladder-resnet":
        nothing_of_training_is_in(program)


def nothing_of_training_is_in(program: torch.export.ExportedProgram | None) -> None:
    """No segment that backward recomputes, no auxiliary heads."""
    assert program is not None
    assert not [node for node in program.graph.nodes if "checkpoint" in str(node.target)]
    assert any("decoder.head" in name for name in program.state_dict)
    assert not [name for name in program.state_dict if "step_heads" in name or "pool_heads" in name]


def test_a_trained_run_predicts_as_seg_predict_does(call: Call, shard_set: Path, tmp_path: Path) -> None:
    """The whole road: shards, training, ONNX, a picture of a size that no shard has."""
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("mobilenetv3_small_050", "test_resnet"))
    given = ("--shards", shard_set, "--recipe", tmp_path / "tiny.toml", "--out", tmp_path / "run", "--quiet")
    settings = ("optim.name=adamw", "optim.lr=0.01", "loop.steps=30", "data.scales=1", "eval.input_scale=1")
    assert call("seg-train", *given, *(word for each in settings for word in ("--set", each)))[0] == 0
    out = tmp_path / "made" / "model.onnx"
    assert call("seg-export", "--run", tmp_path / "run", "--out", out, "--output", "classes", "--quiet")[:2] == (0, "")
    picture = scene(3, (150, 86)).image
    Image.fromarray(picture).save(tmp_path / "a.png")
    words = ("--run", tmp_path / "run", "--out", tmp_path / "seen", "--quiet")
    assert call("seg-predict", *words, tmp_path / "a.png")[0] == 0
    found = ran(out, torch.from_numpy(picture).permute(2, 0, 1)[None])
    assert found.dtype == torch.uint8
    labels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "seen").glob("a*.png"))]
    (label,) = [each for each in labels if each.shape == (150, 86)]
    assert len(np.unique(label)) > 1
    assert (found[0].numpy() == label).mean() > 0.999


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return random_run(tmp_path / "run", MODELS["linear"])


def test_the_file_says_what_a_reader_must_know(run: Run, tmp_path: Path) -> None:
    written = [export.export_run(run, tmp_path / f"m.{suffix}", export.Export()) for suffix in ("onnx", "pt2")]
    card = json.loads((tmp_path / "m.onnx.json").read_text())
    assert [each.path.name for each in written] == ["m.onnx", "m.pt2"]
    assert card["class_names"] == list(CLASSES.names)
    assert ClassTable.from_dict(card["classes"]).digest == CLASSES.digest
    assert (card["recipe"], card["step"], card["norms"]) == ("random", 7, "moving averages")
    assert card["input"]["shape"] == ["batch", 3, "height", "width"]
    assert card["input"]["mean"] == pytest.approx(timm.models.get_pretrained_cfg("test_resnet").mean, abs=1e-6)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (taken,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (answer.name, answer.shape) == ("logits", ["batch", 4, "height", "width"])
    inside = session.get_modelmeta().custom_metadata_map
    assert {k: v if isinstance(card[k], str) else json.loads(v) for k, v in inside.items()} == card
    extra = {export.CARD: ""}
    program_of(tmp_path / "m.pt2", extra_files=extra)
    assert json.loads(extra[export.CARD]) == json.loads((tmp_path / "m.pt2.json").read_text()) == card


def test_one_size_in_float_with_a_softmax(call: Call, run: Run, tmp_path: Path) -> None:
    words = ("--fixed", "--size", "40,57", "--input", "float32", "--output", "softmax", "--opset", "20")
    assert call("seg-export", "--run", run.folder, "--out", tmp_path / "m.onnx", *words)[0] == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 40, 57]
    images = images_of(1, 40, 57)
    found = ran(tmp_path / "m.onnx", images.float())
    torch.testing.assert_close(found.double(), expected(run, images).softmax(1), atol=1e-5, rtol=0)
    assert [each.version for each in onnx.load(tmp_path / "m.onnx").opset_import if not each.domain] == [20]
    network, _ = load_model(run, torch.device("cpu"))
    with pytest.raises(UserError, match="cannot be run"):  # so the check finds constant shapes
        export_check.compare(network, tmp_path / "m.onnx", "softmax", True)


def test_more_classes_than_a_byte_holds(tmp_path: Path) -> None:
    many = ClassTable.make(tuple(f"class {i}" for i in range(300)))
    run = random_run(tmp_path / "run", MODELS["linear"], many)
    saved = checkpoint.load(run.folder / checkpoint.NAME)
    saved.model["decoder.classify.bias"][280] = 1.0
    checkpoint.save(run.folder / checkpoint.NAME, saved)
    export.export_run(run, tmp_path / "m.onnx", export.Export(output="classes"))
    images = images_of(2, 64, 96)
    logits, found = expected(run, images), ran(tmp_path / "m.onnx", images)
    assert found.dtype == torch.uint16
    chosen = logits.gather(1, found[:, None].long())
    assert (logits.amax(1, keepdim=True) - chosen).max() <= 1e-5
    assert found.int().max() == 280


def test_the_network_itself_is_not_touched() -> None:
    recipe = from_dict({"name": "x", "description": "x", "model": MODELS["ladder"]})
    network = build_model(recipe.model, 4).eval()
    before = set(network.state_dict())
    copy = deployed.deployed(network)
    assert set(network.state_dict()) == before
    assert isinstance(network.decoder.spp, SpatialPyramid)
    assert isinstance(copy.network.decoder.spp, deployed.AnyGrid)
    for batch, height, width in SIZES:
        images = images_of(batch, height, width)
        with torch.no_grad():
            torch.testing.assert_close(copy(images), network(images), atol=1e-4, rtol=1e-4)


def test_exact_statistics_are_taken_unless_told(run: Run, tmp_path: Path) -> None:
    last = run.folder / checkpoint.NAME
    made_of = {checkpoint.NORMS_OF: checkpoint.digest(last), checkpoint.NORMS_SAMPLES: "11"}
    save(run, run.folder / checkpoint.NORMS, made_of)
    images, norms = images_of(1, 48, 64), []
    for name, exact in (("exact", True), ("moving", False)):
        export.export_run(run, tmp_path / f"{name}.pt2", export.Export(exact_norms=exact))
        network, _ = load_model(run, torch.device("cpu"), exact)
        with torch.inference_mode():
            torch.testing.assert_close(ran(tmp_path / f"{name}.pt2", images), network(images))
        norms.append(json.loads((tmp_path / f"{name}.pt2.json").read_text())["norms"])
    assert norms == ["exact averages over 11 training samples", "moving averages"]


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_columns_are_those_of_the_pyramid(height: int, width: int) -> None:
    assert [(rows, deployed.columns(height, width, rows)) for rows in (8, 4, 2, 1)] == grids(height, width)


@pytest.mark.parametrize(("width", "height"), [(3, 16), (5, 16), (7, 16), (9, 2), (1, 1), (1, 8), (31, 4), (3, 2)])
def test_halves_go_to_the_even_neighbour(width: int, height: int) -> None:
    assert [(rows, deployed.columns(height, width, rows)) for rows in (8, 4, 2, 1)] == grids(height, width)


def test_a_graph_that_differs_is_not_published(
    call: Call, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed, "_padded", lambda network, images: F.pad(images, (0, 32, 0, 32)))
    code, _, err = call("seg-export", "--run", run.folder, "--out", tmp_path / "made" / "m.pt2")
    assert (code, err.count("\n")) == (2, 1)
    assert "differs from the network by" in err
    assert list((tmp_path / "made").iterdir()) == []
    given = ("--run", run.folder, "--out", tmp_path / "made" / "m.pt2", "--no-check")
    assert "not checked" in call("seg-export", *given)[1]


def test_a_network_that_gives_no_numbers_is_not_published(run: Run, tmp_path: Path) -> None:
    saved = checkpoint.load(run.folder / checkpoint.NAME)
    for name, value in saved.model.items():
        if name.endswith("classify.weight"):
            value.fill_(float("nan"))
    checkpoint.save(run.folder / checkpoint.NAME, saved)
    with pytest.raises(UserError, match="nothing was written"):
        export.export_run(run, tmp_path / "m.pt2", export.Export())
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--out", "m.pt"), "ends in .onnx or .pt2"),
        (("--out", "m.onnx", "--size", "31,64"), "from 32 to 65535"),
        (("--out", "m.onnx", "--size", "64"), "such as 1024,2048"),
        (("--out", "m.onnx", "--fixed"), "expected --size"),
        (("--out", "m.onnx", "--opset", "3"), "expected 18 to 23"),
        (("--out", "m.pt2", "--opset", "18"), "ONNX alone"),
        (("--out", "taken.onnx"), "delete it, or give another --out"),
        (("--out", "told.onnx"), "told.onnx.json exists already"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    call: Call, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.onnx").write_text("mine")
    Path("told.onnx.json").write_text("mine")
    before = sorted(tmp_path.iterdir())
    code, out, err = call("seg-export", "--run", run.folder, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert sorted(tmp_path.iterdir()) == before
    assert Path("taken.onnx").read_text() == "mine"


def test_a_run_that_is_not_there_or_has_no_checkpoint(call: Call, run: Run, tmp_path: Path) -> None:
    code, _, err = call("seg-export", "--run", tmp_path / "none", "--out", tmp_path / "m.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "no run in" in err
    (run.folder / checkpoint.NAME).unlink()
    code, _, err = call("seg-export", "--run", run.folder, "--out", tmp_path / "m.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "no checkpoint here" in err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(
    call: Call, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = call("seg-export", "--run", run.folder, "--out", tmp_path / "m.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert f"package {package} is not installed: pip install 'segshards[export]'" in err


def test_a_program_needs_none_of_them(call: Call, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    assert call("seg-export", "--run", run.folder, "--out", tmp_path / "m.pt2")[0] == 0


def test_a_network_that_no_tracer_follows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Module, images: torch.Tensor) -> torch.Tensor:
        if images.float().sum() > 0:
            return images
        raise RuntimeError

    monkeypatch.setattr(deployed.Deployed, "forward", forward)
    with pytest.raises(UserError, match=r"cannot be exported so .*--fixed --size") as caught:
        export.export_run(open_run(run.folder), tmp_path / "m.pt2", export.Export())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*.pt2*")) == []
