"""A run's network as one file that needs none of this project: ONNX, or a torch.export program (.pt2).

    written = export_run(open_run(folder), Path("model.onnx"), Export())
    written.check.difference                                  # the largest one from the network itself

The graph takes images [B, 3, H, W], RGB in 0..255, uint8 (or float32); normalising, padding, the network and resizing
to the input's size are inside (train/deployed.py). Batch and size are free, H and W from 32 up, unless `fixed`; a .pt2
of some encoders (ConvNeXt) takes 33 and more, which its description says ("smallest_side").

What is written is run before it is published: ONNX by onnxruntime, .pt2 by torch, both read back from the file, at
batches and sizes other than the traced ones, and compared with the run's own network. A file that differs is not
published. What else a reader must know (class names, input, output, recipe) is inside the file and in FILE.json.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from shards.errors import SettingsError, UserError
from shards.manifest import publish_bytes, sync_folder
from train import checkpoint
from train.deployed import Deployed, Output, deployed, whole_padding
from train.export_check import Check, compare, need
from train.inference import load_model
from train.run import Run

Format = Literal["onnx", "torch-export"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch-export"}
CARD = "segshards.json"  # the description's name inside a .pt2 archive
EXAMPLE = (200, 328)  # (H, W) that is traced where sizes are free: whole multiples of few strides
SMALLEST, LARGEST, MOST = 32, 65535, 4096  # sides, and images a batch
ONNX_BYTES = 2**31 - 2**20  # protobuf's limit of one file, less the graph
OPSETS = (18, 23)


@dataclass(frozen=True)
class Export:
    """What is asked for.

    Args:
        format: None to go by the file's suffix.
        size: (H, W) that is traced and checked beside others; with `fixed`, the only one.
        fixed: one image of one size, all shapes constants.
        output: what the graph gives.
        floating: the input is float32 instead of uint8; in 0..255 nevertheless.
        opset: of ONNX; None for the exporter's own.
        check: run the file and compare.
        exact_norms: take the BatchNorm statistics of seg-norms where they are of the last checkpoint.
    """

    format: Format | None = None
    size: tuple[int, int] | None = None
    fixed: bool = False
    output: Output = "logits"
    floating: bool = False
    opset: int | None = None
    check: bool = True
    exact_norms: bool = True


@dataclass(frozen=True)
class Written:
    """What was published, and how far its output is from the network's (None: not checked)."""

    path: Path
    card: Path
    bytes: int
    check: Check | None


def export_run(run: Run, out: Path, asked: Export) -> Written:
    """Export a run's network to `out`, with a description `out`.json.

    Raises:
        SettingsError: settings that do not fit each other or the file's name.
        UserError: `out` is taken, a package is missing, the network cannot be traced or its file differs from it.
        FormatError: the run has no checkpoint, or a broken one.
    """
    kind, card_path = check_settings(out, asked), out.with_name(out.name + ".json")
    for package in ("onnx", "onnxscript") if kind == "onnx" else ():
        need(package)
    if kind == "onnx" and asked.check:
        need("onnxruntime", " or give --no-check")
    for path in (out, card_path):
        if path.exists():
            raise UserError(f"{path} exists already; delete it, or give another --out")
    model, step = load_model(run, torch.device("cpu"), asked.exact_norms)
    card = describe(run, model, step, asked)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".seg-export-", dir=out.parent) as place, torch.no_grad():
        partial = Path(place) / f"model{'.onnx' if kind == 'onnx' else '.pt2'}"
        program = trace(deployed(model, asked.output), asked)
        smallest = SMALLEST if kind == "onnx" else _least_side(program)
        card["input"]["smallest_side"] = smallest
        (write_onnx if kind == "onnx" else write_program)(program, partial, card, asked)
        given = (asked.output, asked.floating, asked.size, asked.fixed, smallest)
        found = compare(model, partial, *given) if asked.check else None
        publish_bytes(card_path, json.dumps(card, indent=1, ensure_ascii=False).encode() + b"\n")
        partial.replace(out)
    sync_folder(out.parent)
    return Written(out, card_path, out.stat().st_size, found)


def check_settings(out: Path, asked: Export) -> Format:
    """The format to write; raises SettingsError for settings that do not fit."""
    kind = asked.format or SUFFIXES.get(out.suffix)
    if kind is None:
        raise SettingsError(
            f"--out {out}: expected a name that ends in .onnx or .pt2 (torch.export; TorchScript is deprecated), "
            f"or --format {' or '.join(FORMATS)}"
        )
    if asked.size is not None and not SMALLEST <= min(asked.size) <= max(asked.size) <= LARGEST:
        height, width = asked.size
        raise SettingsError(f"--size {height},{width}: expected a height and a width from {SMALLEST} to {LARGEST}")
    if asked.fixed and asked.size is None:
        raise SettingsError("--fixed: expected --size H,W beside it")
    if asked.opset is not None and kind != "onnx":
        raise SettingsError(f"--opset {asked.opset}: expected with ONNX alone; leave it out")
    if asked.opset is not None and not OPSETS[0] <= asked.opset <= OPSETS[1]:
        raise SettingsError(f"--opset {asked.opset}: expected {OPSETS[0]} to {OPSETS[1]}, or leave it out")
    return kind


def describe(run: Run, model: nn.Module, step: int, asked: Export) -> dict[str, Any]:
    """What a reader of the exported file must know, as plain values."""
    height, width = asked.size if asked.fixed and asked.size else ("height", "width")
    batch = 1 if asked.fixed else "batch"
    classes = run.classes.to_dict()
    answer = [batch, height, width] if asked.output == "classes" else [batch, len(run.classes), height, width]
    label = "uint8" if len(run.classes) <= 256 else "uint16"
    return {
        "format_version": 1,
        "made_by": f"segshards {_version('segshards')}, torch {torch.__version__}",
        "recipe": run.recipe.name,
        "step": step,
        "norms": checkpoint.norms_of(run.folder, asked.exact_norms),
        "class_names": classes["names"],
        "classes": classes,
        "classes_digest": run.classes.digest,
        "input": {
            "name": "images",
            "type": "float32" if asked.floating else "uint8",
            "shape": [batch, 3, height, width],
            "values": "RGB, 0 to 255; the mean and deviation below are applied inside",
            "mean": [value / 255 for value in _flat(model.mean)],
            "std": [value / 255 for value in _flat(model.std)],
            "smallest_side": SMALLEST,
            "scale": run.recipe.eval.input_scale,
        },
        "output": {
            "name": asked.output,
            "type": label if asked.output == "classes" else "float32",
            "shape": answer,
        },
    }


def trace(network: Deployed, asked: Export) -> torch.export.ExportedProgram:
    """The network as a program of torch.export, at free sizes unless `fixed`.

    Raises:
        UserError: it cannot be traced so.
    """
    height, width = asked.size or EXAMPLE
    images = torch.zeros(1 if asked.fixed else 2, 3, height, width, dtype=_type(asked))
    dim = torch.export.Dim
    side = dim.DYNAMIC(min=SMALLEST, max=LARGEST)
    free = None if asked.fixed else {0: dim.DYNAMIC(min=1, max=MOST), 2: side, 3: side}
    tracer: Any = torch.fx.experimental._config
    oblivious = tracer.patch(backed_size_oblivious=True)  # lengths of 1 are not special
    with _quiet(), _explained(asked), oblivious, whole_padding():
        program = torch.export.export(
            network, (images,), dynamic_shapes=(free,), prefer_deferred_runtime_asserts_over_guards=True
        )
    _forget_branches(program)
    return program


def write_program(program: torch.export.ExportedProgram, path: Path, card: dict[str, Any], asked: Export) -> None:
    """A .pt2 archive, the description inside as an extra file.

    Raises:
        UserError: torch has no words in the file for something in the program.
    """
    with _quiet(), _explained(asked):
        torch.export.save(program, path, extra_files={CARD: json.dumps(card, ensure_ascii=False)})


def write_onnx(program: torch.export.ExportedProgram, path: Path, card: dict[str, Any], asked: Export) -> None:
    """An ONNX file, weights inside, the description in its metadata: texts as they are, all else as JSON.

    Raises:
        UserError: more than 2 GB, or the exporter gives up.
    """
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > ONNX_BYTES:
        raise UserError(f"the weights take {size:,} bytes, one ONNX file holds 2 GB; expected --out with .pt2")
    with _quiet(), _explained(asked):
        made = torch.onnx.export(
            program, (), input_names=["images"], output_names=[asked.output], opset_version=asked.opset, verbose=False
        )
        assert made is not None
        model = made.model_proto
    _name_axes(model.graph, card)
    metadata_props = {key: value if isinstance(value, str) else _json(value) for key, value in card.items()}
    onnx.helper.set_model_props(model, metadata_props)
    model.producer_name = "segshards"
    with _explained(asked):
        onnx.checker.check_model(model, full_check=False)
    onnx.save_model(model, path)


def _name_axes(graph: Any, card: dict[str, Any]) -> None:
    """Call the free axes of input and output by their names, instead of the tracer's; forget those of maps between."""
    del graph.value_info[:]
    for value, key in ((graph.input[0], "input"), (graph.output[0], "output")):
        for axis, length in zip(value.type.tensor_type.shape.dim, card[key]["shape"], strict=True):
            if isinstance(length, str):
                axis.dim_param = length
            else:
                axis.dim_value = length


def _least_side(program: torch.export.ExportedProgram) -> int:
    """The least height and width that the program takes: of some encoders more than 32 (ConvNeXt: 33)."""
    return max([SMALLEST, *(int(limits.lower) for limits in program.range_constraints.values())])


def _forget_branches(program: torch.export.ExportedProgram) -> None:
    """Leave out what the tracer asserts of sizes between input and output.

    It writes down each comparison that its example decided ("the last map is not one pixel high", so that a product
    need not be broadcast). The operations it recorded work on either side of these; `compare` runs the file on both.
    What is asserted of the input itself stays.
    """
    for node in list(program.graph.nodes):
        if node.op == "call_function" and "assert" in str(node.target):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, what the exporters warn of in their own and the standard library's code goes unsaid."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
        yield


@contextmanager
def _explained(asked: Export) -> Iterator[None]:
    """Turn the exporters' errors, which run over pages, into one line."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "another --out format" if asked.fixed else "--fixed --size H,W for one size, or another format"
        raise UserError(f"this network cannot be exported so ({lines[0][:200]}); give {remedy}") from error


def _type(asked: Export) -> torch.dtype:
    return torch.float32 if asked.floating else torch.uint8


def _flat(values: Any) -> list[float]:
    numbers: list[float] = torch.as_tensor(values).flatten().double().tolist()
    return numbers


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"
