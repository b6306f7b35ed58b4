"""`seg-ladder`: how a trained ladder sees. Parses, calls `train.pruning` and `train.strides`, prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from shards.errors import SettingsError
from shards.manifest import publish_bytes
from shards.store import Place, as_place
from shards.terminal import LocalPath, Progress, main_of, say
from train.cli_eval import DEVICES
from train.threads import yield_cores

if TYPE_CHECKING:
    from torch import Tensor

    from shards.classes import ClassTable
    from train.evaluate import Example, Split
    from train.run import Run

WIDEST = 10  # columns of scores beside each other
REMEDY = "give --device cpu, or a shard set of smaller images"
EPILOG = """\b
Example:
  seg-ladder prune --run runs/ldn --shards data/camvid --split val --units 0,4,8,16 --plot pruned.svg
  seg-ladder strides --run runs/ldn --shards data/camvid --out pictures --scores
"""
PRUNE_EPILOG = "Example: seg-ladder prune --run runs/ldn --shards data/camvid --units all --json pruned.json"
STRIDES_EPILOG = "Example: seg-ladder strides --run runs/ldn --shards data/camvid --split test --count 8 --out pictures"
FILE = LocalPath(dir_okay=False)
SHARED = (
    click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder."),
    click.option("--shards", "shard_set", required=True, type=as_place, metavar="DIR|URL", help="A shard set."),
    click.option("--split", default="val", show_default=True, help="Which split to look at."),
)
COMPUTING = (
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES
    ),
    click.option("--moving-norms", is_flag=True, help="Leave aside the BatchNorm statistics that seg-norms has made."),
    click.option("--limit", type=click.IntRange(1), help="Score the first so many samples only."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order that --help shows."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(epilog=EPILOG)
def command() -> None:
    """How a trained ladder network sees: with the tail of its encoder silent, and rung by rung."""


@command.command(epilog=PRUNE_EPILOG)
@_options(*SHARED)
@click.option("--units", help='How many of the last units are silenced: 0,2,4,8 or "all". Default: 0, 1, 2, 4, 8 ...')
@click.option("--json", "json_file", type=FILE, help="Write the scores here.")
@click.option("--plot", "plot_file", type=FILE, help="Draw IoU over silenced units here, as SVG.")
@_options(*COMPUTING)
def prune(
    folder: Path,
    shard_set: Place,
    split: str,
    units: str | None,
    json_file: Path | None,
    plot_file: Path | None,
    device: str,
    moving_norms: bool,
    limit: int | None,
    quiet: bool,
) -> None:
    """Silence the last units of the encoder, score the split, and print IoU by class.

    A unit is one of DenseNet's layers (its new channels become zero) or a block of a ResNet, RegNet or DPN (its
    residual branch does). Nothing is trained again, and the run stays as it is.
    """
    wanted = parse_units(units)
    if plot_file is not None and plot_file.suffix.lower() != ".svg":
        raise SettingsError(f"--plot {plot_file}: expected a name that ends in .svg")
    yield_cores()
    from train.distributed import enough_memory, join  # torch takes a second to import: --help does without
    from train.evaluate import facts_of
    from train.inference import load_model, views_of
    from train.pruning import counts_of, score_pruned, units_of

    run, target = _open(folder, shard_set, split)
    with join(device) as world, enough_memory(REMEDY):
        model, step = load_model(run, world.device, not moving_norms)
        names = [name for name, _ in units_of(model)]
        counts, views = counts_of(wanted, len(names)), views_of(run.recipe, world.device)
        samples = min(limit or target.samples, target.samples)
        mine = len(range(world.rank, samples, world.size))
        with Progress(len(counts) * mine, "images", quiet or not world.first) as progress:
            found = score_pruned(model, counts, target, views, world, limit, lambda *_: progress.advance(1))
    if world.first:
        facts = facts_of(run, target, step, samples, not moving_norms)
        say(_table("silent units", {str(scores["units"]): scores for scores in found}), quiet)
        say(f"{len(names)} units, from the tail: {_blocks(names)}\n{_told(facts)}", quiet)
        _write_json(
            json_file, {**facts, "scales": list(views.scales), "flip": views.flip, "tail": names, "pruned": found}
        )
        if plot_file is not None:
            _publish(plot_file, _curves(found, facts, run.classes))


@command.command(epilog=STRIDES_EPILOG)
@_options(*SHARED)
@click.option("--count", type=click.IntRange(1), default=4, show_default=True, help="How many pictures.")
@click.option("--out", required=True, type=LocalPath(file_okay=False), help="Folder for the pictures.")
@click.option("--scores", is_flag=True, help="Score every rung on the whole split, and print IoU by stride.")
@click.option("--json", "json_file", type=FILE, help="Write the scores here; with --scores.")
@_options(*COMPUTING)
def strides(
    folder: Path,
    shard_set: Place,
    split: str,
    count: int,
    out: Path,
    scores: bool,
    json_file: Path | None,
    device: str,
    moving_norms: bool,
    limit: int | None,
    quiet: bool,
) -> None:
    """Draw what each rung of a ladder says of some images of a split, coarsest first.

    One picture an image, evenly spaced over the split: image, label, the predictions of the auxiliary heads on each
    step's input, and the final one. Needs a run with model.auxiliary.
    """
    if json_file is not None and not scores:
        raise SettingsError("--json without --scores: there are no scores to write; add --scores")
    yield_cores()
    from train.distributed import enough_memory, join  # torch takes a second to import: --help does without
    from train.evaluate import facts_of
    from train.inference import load_model, views_of
    from train.models.ladder import LadderModel
    from train.strides import draw, score_strides, spread, strides_of

    run, target = _open(folder, shard_set, split)
    rungs = strides_of(run.recipe)
    with join(device) as world, enough_memory(REMEDY):
        model, step = load_model(run, world.device, not moving_norms)
        assert isinstance(model, LadderModel)
        samples = min(limit or target.samples, target.samples)
        drawn = spread(samples, count)
        indices = range(samples) if scores else drawn
        views = views_of(run.recipe, world.device)
        with Progress(len(indices[world.rank :: world.size]), "images", quiet or not world.first) as progress:

            def watch(index: int, example: Example, labels: dict[int, Tensor]) -> None:
                progress.advance(1)
                if index in drawn:
                    draw(out, example, labels, run.classes)

            found = score_strides(model, rungs, target, indices, views, world, watch)
    if world.first:
        if scores:
            facts = facts_of(run, target, step, samples, not moving_norms)
            say(f"{_table('stride', {str(s): found[s] for s in rungs})}\n{_told(facts)}", quiet)
            _write_json(json_file, {**facts, "strides": [{"stride": s, **found[s]} for s in rungs]})
        say(f"pictures of {len(drawn)} samples, strides {', '.join(map(str, rungs))}: {out}", quiet)


def parse_units(text: str | None) -> list[int] | Literal["all"] | None:
    """ "0,4,8" as numbers, "all" as itself; raises SettingsError."""
    if text is None:
        return None
    if text == "all":
        return "all"
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise SettingsError(f'--units {text!r}: expected whole numbers from 0 such as 0,4,8, or "all"')
    return [int(part) for part in parts]


def _open(folder: Path, shard_set: Place, split: str) -> tuple[Run, Split]:
    from train.evaluate import open_for_scoring
    from train.run import open_run

    run = open_run(folder)
    shown, check = run.recipe.eval.input_scale, run.recipe.data.check
    return run, open_for_scoring(shard_set, split, shown, run.classes, f"run {folder}", check=check)


def _told(facts: Mapping[str, Any]) -> str:
    images = f"{facts['samples']} images of {facts['dataset']} {facts['split']}"
    return f"{images}; BatchNorm statistics: {facts['norms']}"


def _table(what: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """IoU of each class and the means, a column for each of `columns`; of many, some beside each other at a time."""
    from train.report import per_cent

    names = list(columns)
    groups = [names[first : first + WIDEST] for first in range(0, len(names), WIDEST)]
    parts = []
    for group in groups:
        scores = [columns[name] for name in group]
        rows = {what: group}
        rows |= {name: [per_cent(found["per_class"][name]) for found in scores] for name in scores[0]["per_class"]}
        rows |= {"mean IoU": [per_cent(found["miou"]) for found in scores]}
        rows |= {"pixel accuracy": [per_cent(found["pixel_accuracy"]) for found in scores]}
        width = max(map(len, rows))
        parts += ["\n".join(f"{row:<{width}}{''.join(f'  {v:>6}' for v in values)}" for row, values in rows.items())]
    return "\n\n".join(parts)


def _blocks(names: list[str]) -> str:
    """How many units each part of the encoder has, in the order of `names`."""
    parts = groupby(names, lambda name: name.rpartition(".")[0].removesuffix(".units"))
    return ", ".join(f"{len(list(units))} in {part}" for part, units in parts)


def _curves(found: list[dict[str, Any]], facts: Mapping[str, Any], classes: ClassTable) -> str:
    """IoU of each class and their mean over the number of silent units, as SVG."""
    from train.curves import Curve, plot

    mean = Curve("mean", "#000", [(scores["units"], scores["miou"]) for scores in found], bold=True)
    of_classes = [
        Curve(name, f"rgb{tuple(colour)}", [(scores["units"], scores["per_class"][name]) for scores in found])
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]
    title = f"{facts['recipe']} on {facts['dataset']} {facts['split']}"
    return plot([mean, *of_classes], title, "silent units, from the encoder's tail", "IoU (%)")


def _write_json(path: Path | None, values: Mapping[str, Any]) -> None:
    if path is not None:
        _publish(path, json.dumps(values, indent=1) + "\n")


def _publish(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, text.encode())


main = main_of(command)

if __name__ == "__main__":
    main()
