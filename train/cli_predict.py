"""`seg-predict`: label maps and overlays of image files. Parses, calls `train.predict`, prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from shards.terminal import LocalPath, main_of, say
from train.cli_eval import DEVICES, STRIDE, WINDOW, parse_scales, parse_windows
from train.threads import yield_cores

EPILOG = """\b
Example:
  seg-predict --run runs/demo --out pictures street.jpg another.png
  seg-predict --run runs/demo --out pictures --top 5 street.jpg
  seg-predict --run runs/larvseg --out pictures --legend --classes data/ade20k --window 512 room.jpg
"""
CLASSES = "What may be answered: run, all of its classes; or those of a shard set, or of a file with one name a line."
LEGEND = "Write NAME.legend.png too: the overlay with its classes named, novel ones marked."


@click.command(epilog=EPILOG)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--out", required=True, type=LocalPath(), help="Folder for the results.")
@click.option("--scales", help="Factors on the input, averaged: 0.5,0.75,1. Default: the recipe's.")
@click.option("--flip", is_flag=True, help="Average with the mirror image.")
@click.option("--top", type=click.IntRange(1), help="Write the K likeliest classes too, to NAME.top.npz.", metavar="K")
@click.option("--legend", is_flag=True, help=LEGEND)
@click.option("--classes", default="run", show_default=True, metavar="run|PATH", help=CLASSES)
@click.option("--window", help=WINDOW)
@click.option("--stride", help=STRIDE)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES)
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    images: tuple[Path, ...],
    folder: Path,
    out: Path,
    scales: str | None,
    flip: bool,
    top: int | None,
    legend: bool,
    classes: str,
    window: str | None,
    stride: str | None,
    device: str,
    quiet: bool,
) -> int:
    """Write NAME.label.png (class ids, coloured by a palette) and NAME.overlay.png for each IMAGE.

    With --top also NAME.top.npz: ids and confidences, [K, height, width], and the names of all classes.
    """
    factors, windows = parse_scales(scales), parse_windows(window, stride)
    yield_cores()
    from train.distributed import choose_device, enough_memory  # torch takes a second to import: --help does without
    from train.inference import load_model, views_of
    from train.predict import predict_files
    from train.run import open_run
    from train.targets import classes_to_answer

    run, chosen = open_run(folder), choose_device(device)
    answers = classes_to_answer(run, classes)
    model, _ = load_model(run, chosen)
    with enough_memory("use smaller images or --scales, or --device cpu; finished images stay"):
        views = replace(views_of(run.recipe, chosen, factors, flip), **windows)
        problems = predict_files(model, run, images, out, views, chosen, top or 0, answers, legend)
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    say(f"{len(images) - len(problems)} of {len(images)} images predicted: {out}", quiet)
    return 0 if not problems else 1 if len(problems) < len(images) else 2


main = main_of(command)

if __name__ == "__main__":
    main()
