"""`seg-eval`: score a run on a split of a shard set. Parses, calls `train.evaluate`, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.errors import SettingsError
from shards.terminal import Progress, main_of, say
from train.threads import yield_cores

if TYPE_CHECKING:
    from train.distributed import World
    from train.evaluate import Split
    from train.inference import Views
    from train.run import Run

DEVICES = "Where to compute; auto takes CUDA where there is one."
EPILOG = """\b
Example:
  seg-eval --run runs/demo --shards data/demo --split val
  seg-eval --run runs/demo --shards data/demo --split val --scales 0.75,1,1.25 --flip --json scores.json
"""


def parse_scales(text: str | None) -> tuple[float, ...] | None:
    """ "0.5,0.75,1" as numbers; raises SettingsError."""
    if text is None:
        return None
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise SettingsError(f"--scales {text!r}: expected numbers above 0 and at most 8 such as 0.5,0.75,1")
    return scales


@click.command(epilog=EPILOG)
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--shards", "shard_set", required=True, type=click.Path(path_type=Path), help="A shard set.")
@click.option("--split", default="val", show_default=True, help="Which split to score.")
@click.option("--scales", help="Factors on the input, averaged: 0.5,0.75,1. Default: the recipe's.")
@click.option("--flip", is_flag=True, help="Average with the mirror image.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the scores here.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder of the report. Default: RUN/report-SPLIT.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES)
@click.option("--input-scale", help="Scale of the image that the network is shown: 1, 1/4. Default: the recipe's.")
@click.option("--moving-norms", is_flag=True, help="Leave aside the BatchNorm statistics that seg-norms has made.")
@click.option("--limit", type=click.IntRange(1), help="Score the first so many samples only.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    folder: Path,
    shard_set: Path,
    split: str,
    scales: str | None,
    flip: bool,
    json_file: Path | None,
    report: Path | None,
    device: str,
    input_scale: str | None,
    moving_norms: bool,
    limit: int | None,
    quiet: bool,
) -> None:
    """Score a run on a split, at full source resolution; print a table and write a report with pictures."""
    factors = parse_scales(scales)
    yield_cores()
    from train.distributed import enough_memory, join  # torch takes a second to import: --help does without
    from train.evaluate import open_for_scoring
    from train.inference import views_of
    from train.run import open_run

    run = open_run(folder)
    shown = input_scale or run.recipe.eval.input_scale
    target = open_for_scoring(shard_set, split, shown, run.classes, f"run {folder}")
    with join(device) as world, enough_memory("use smaller --scales or --input-scale, or --device cpu"):
        views = views_of(run.recipe, world.device, factors, flip)
        place = report or folder / f"report-{split}"
        result, page = _evaluate(run, target, views, world, place, limit, quiet, not moving_norms)
        if not world.first:
            return
        say(_table(result), quiet)
        say(f"BatchNorm statistics: {result['norms']}", quiet)
        say(f"report: {page}", quiet)
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _evaluate(
    run: Run,
    target: Split,
    views: Views,
    world: World,
    folder: Path,
    limit: int | None,
    quiet: bool,
    exact_norms: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Score, and write the report on rank 0."""
    from train.checkpoint import norms_of
    from train.evaluate import Example, evaluate
    from train.inference import load_model
    from train.report import Gallery, write_report
    from train.runlog import read_log

    model, step = load_model(run, world.device, exact_norms)
    total = min(limit or target.samples, target.samples)
    mine = len(range(world.rank, total, world.size))
    gallery = Gallery(folder, run.classes, mine) if world.first else None
    with Progress(mine, "images", quiet or not world.first) as progress:

        def watch(example: Example, prediction: Any) -> None:
            progress.advance(1)
            if gallery is not None:
                gallery.watch(example, prediction)

        scores, samples = evaluate(model, target, views, world, limit, watch)
    result = {
        **scores,
        "samples": samples,
        "split": target.name,
        "run": str(run.folder),
        "recipe": run.recipe.name,
        "step": step,
        "norms": norms_of(run.folder, exact_norms),
        "shards": str(target.path),
        "dataset": target.manifest.dataset,
        "manifest_digest": target.manifest.digest,
        "scales": list(views.scales),
        "flip": views.flip,
        "input_scale": target.input_scale,
    }
    if gallery is None:
        return result, folder
    title = f"{run.recipe.name} on {target.manifest.dataset} {target.name}"
    return result, write_report(folder, title, result, run.classes, gallery.keys, read_log(run.folder))


def _table(result: dict[str, Any]) -> str:
    """IoU of each class and the means, for people."""
    from train.report import per_cent

    width = max(14, *(len(name) for name in result["per_class"]))
    lines = [f"{'class':<{width}}     IoU"]
    lines += [f"{name:<{width}}  {per_cent(score):>6}" for name, score in result["per_class"].items()]
    for name, text in (
        ("miou", "mean IoU"),
        ("pixel_accuracy", "pixel accuracy"),
        ("mean_accuracy", "mean accuracy"),
        ("fwiou", "fw IoU"),
        ("category_miou", "category IoU"),
        ("iiou", "iIoU"),
        ("category_iiou", "category iIoU"),
    ):
        if name in result:
            lines.append(f"{text:<{width}}  {per_cent(result[name]):>6}")
    return "\n".join([*lines, f"{result['samples']} images of {result['dataset']} {result['split']}"])


main = main_of(command)

if __name__ == "__main__":
    main()
