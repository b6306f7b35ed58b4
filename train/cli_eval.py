"""`seg-eval`: score a run on a split of a shard set. Parses, calls `train.evaluate`, prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.errors import SettingsError
from shards.store import Place, as_place
from shards.terminal import LocalPath, Progress, main_of, say
from train.threads import yield_cores

if TYPE_CHECKING:
    from train.class_match import Missing
    from train.distributed import World
    from train.evaluate import Split
    from train.inference import Views
    from train.run import Run

DEVICES = "Where to compute; auto takes CUDA where there is one."
EPILOG = """\b
Example:
  seg-eval --run runs/demo --shards data/demo --split val
  seg-eval --run runs/demo --shards data/demo --split val --scales 0.75,1,1.25 --flip --json scores.json
  seg-eval --run runs/larvseg --shards data/ade20k --base data/cocostuff
"""
CLASSES = (
    "What may be answered: shards, classes that the shard set has (by name); run, all of the run's, where others than "
    "the shard set's are wrong; or the classes of another shard set, or of a file with one name a line."
)
MISSING = (
    "Classes of the shard set that cannot be answered: refuse to score; count their pixels as wrong; or leave-out "
    "their pixels and them."
)
BASE = (
    "Base classes, for scores of base and novel ones: a file with one name a line, or a shard set. Default: the run's."
)
WINDOW = "Look at the image in windows of HEIGHT,WIDTH pixels (or one number); none: at once. Default: the recipe's."
STRIDE = "From one window to the next, DOWN,RIGHT (or one number). Default: the window's size."
MAP = "Further pairs of classes, run to shard set: a TSV of wnid and class (seg-prep map), or of from and to."


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


def parse_windows(window: str | None, stride: str | None) -> dict[str, Any]:
    """ "512,512" or "512" and a stride as fields of `Views`; {} of nothing: the recipe's stay.

    Raises:
        SettingsError: neither one nor two whole numbers, a stride alone, or one that leaves gaps.
    """
    if window is None:
        if stride is not None:
            raise SettingsError(f"--stride {stride!r}: expected --window as well")
        return {}
    if window == "none":
        return {"window": None, "stride": None}
    size, step = _pair(window, "--window"), None if stride is None else _pair(stride, "--stride")
    if min(size) < 32:
        raise SettingsError(f"--window {window!r}: expected at least 32 pixels a side")
    if step is not None and not (1 <= step[0] <= size[0] and 1 <= step[1] <= size[1]):
        raise SettingsError(f"--stride {stride!r}: expected 1 to the window's own size, {size[0]},{size[1]}")
    return {"window": size, "stride": step}


def _pair(text: str, option: str) -> tuple[int, int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 2) or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise SettingsError(f"{option} {text!r}: expected pixels such as 512 or 512,768 (height, width)")
    return int(parts[0]), int(parts[-1])


@click.command(epilog=EPILOG)
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--shards", "shard_set", required=True, type=as_place, metavar="DIR|URL", help="A shard set.")
@click.option("--split", default="val", show_default=True, help="Which split to score.")
@click.option("--scales", help="Factors on the input, averaged: 0.5,0.75,1. Default: the recipe's.")
@click.option("--flip", is_flag=True, help="Average with the mirror image.")
@click.option("--json", "json_file", type=LocalPath(dir_okay=False), help="Write the scores here.")
@click.option("--report", type=LocalPath(), help="Folder of the report. Default: RUN/report-SPLIT.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES)
@click.option("--input-scale", help="Scale of the image that the network is shown: 1, 1/4. Default: the recipe's.")
@click.option("--moving-norms", is_flag=True, help="Leave aside the BatchNorm statistics that seg-norms has made.")
@click.option("--classes", default="shards", show_default=True, metavar="shards|run|PATH", help=CLASSES)
@click.option("--missing", type=click.Choice(["refuse", "count", "leave-out"]), default="refuse", help=MISSING)
@click.option("--map", "mapping", type=click.Path(path_type=Path), help=MAP)
@click.option("--base", metavar="PATH", help=BASE)
@click.option("--window", help=WINDOW)
@click.option("--stride", help=STRIDE)
@click.option("--limit", type=click.IntRange(1), help="Score the first so many samples only.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    folder: Path,
    shard_set: Place,
    split: str,
    scales: str | None,
    flip: bool,
    json_file: Path | None,
    report: Path | None,
    device: str,
    input_scale: str | None,
    moving_norms: bool,
    classes: str,
    missing: Missing,
    mapping: Path | None,
    base: str | None,
    window: str | None,
    stride: str | None,
    limit: int | None,
    quiet: bool,
) -> None:
    """Score a run on a split, at full source resolution; print a table and write a report with pictures.

    The shard set may have other classes than the run; they are matched by name.
    """
    factors, windows = parse_scales(scales), parse_windows(window, stride)
    yield_cores()
    from train.distributed import enough_memory, join  # torch takes a second to import: --help does without
    from train.inference import views_of
    from train.run import open_run
    from train.targets import Choice, facts_of, open_target, told

    run = open_run(folder)
    shown = input_scale or run.recipe.eval.input_scale
    choice = Choice(classes, missing, mapping, base)
    target = open_target(run, shard_set, split, shown, choice)
    with join(device) as world, enough_memory("use smaller --scales or --input-scale, or --device cpu"):
        views = replace(views_of(run.recipe, world.device, factors, flip), **windows)
        place = report or folder / f"report-{split}"
        facts = facts_of(target, run.classes, choice)
        result, page = _evaluate(run, target, views, world, place, limit, quiet, not moving_norms, facts)
        if not world.first:
            return
        say(_table(result), quiet)
        say("\n".join([*told(target, run.classes, choice), f"BatchNorm statistics: {result['norms']}"]), quiet)
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
    facts: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Score, and write the report on rank 0; the result also holds `facts`."""
    from train.evaluate import Example, evaluate, facts_of
    from train.inference import load_model
    from train.report import Gallery, write_report
    from train.runlog import read_log

    model, step = load_model(run, world.device, exact_norms)
    total = min(limit or target.samples, target.samples)
    mine = len(range(world.rank, total, world.size))
    gallery = Gallery(folder, target.classes, mine) if world.first else None
    with Progress(mine, "images", quiet or not world.first) as progress:

        def watch(example: Example, prediction: Any) -> None:
            progress.advance(1)
            if gallery is not None:
                gallery.watch(example, prediction)

        scores, samples = evaluate(model, target, views, world, limit, watch)
    result = {
        **scores,
        **facts_of(run, target, step, samples, exact_norms),
        "scales": list(views.scales),
        "flip": views.flip,
        **({"window": list(views.window), "stride": list(views.steps)} if views.window else {}),
        **(facts or {}),
    }
    if gallery is None:
        return result, folder
    title = f"{run.recipe.name} on {target.manifest.dataset} {target.name}"
    return result, write_report(folder, title, result, target.classes, gallery.keys, read_log(run.folder))


def _table(result: dict[str, Any]) -> str:
    """IoU of each class and the means, for people."""
    from train.report import per_cent

    width = max(14 + ("miou_novel" in result), *(len(name) for name in result["per_class"]))
    group = {name: f"  {which}" for name, which in result.get("per_class_group", {}).items()}
    lines = [f"{'class':<{width}}     IoU"]
    for name, score in result["per_class"].items():
        lines.append(f"{name:<{width}}  {per_cent(score):>6}{group.get(name, '')}")
    for name, text in (
        ("miou", "mean IoU"),
        ("miou_base", "mean IoU, base"),
        ("miou_novel", "mean IoU, novel"),
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
