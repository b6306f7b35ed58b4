"""`seg-grouping`: what a network's features put together. Parses, calls `train.grouping`, draws, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from shards.errors import SettingsError, UserError
from shards.manifest import publish_bytes
from shards.store import Place, as_place
from shards.terminal import LocalPath, Progress, main_of, say
from train.cli_eval import BASE, DEVICES
from train.threads import yield_cores

if TYPE_CHECKING:
    from train.models.segmentation import SegmentationModel

REMEDY = "give --device cpu, or smaller images"
EPILOG = """\b
Example:
  seg-grouping score --run runs/pixels --shards data/ade20k --split val --classes novel
  seg-grouping click --run runs/pixels --image sofa.jpg --at 120,80 --at 30,200 --out sofa.png
  seg-grouping attention --run runs/larvseg --image room.jpg --tag sofa --tag lamp --out room.png
"""
SCORE_EPILOG = "Example: seg-grouping score --run runs/pixels --shards data/ade20k --classes novel --repeats 3"
CLICK_EPILOG = "Example: seg-grouping click --run runs/pixels --image sofa.jpg --at 120,80 --out sofa.png"
ATTENTION_EPILOG = "Example: seg-grouping attention --run runs/larvseg --image room.jpg --tag sofa --out room.png"
RUN = click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES
)
QUIET = click.option("--quiet", is_flag=True, help="Print errors only.")
FILE = LocalPath(dir_okay=False)
RIVALS = "Which categories of an image compete: all that are present, or those that are scored."


@click.group(epilog=EPILOG)
def command() -> None:
    """Do pixels of one category lie together in a network's features? (LarvSeg, section 3.2)"""


@command.command(epilog=SCORE_EPILOG)
@RUN
@click.option("--shards", "shard_set", required=True, type=as_place, metavar="DIR|URL", help="A shard set.")
@click.option("--split", default="val", show_default=True, help="Which split to score.")
@click.option(
    "--classes",
    type=click.Choice(["all", "base", "novel"]),
    default="all",
    show_default=True,
    help="Which categories are scored; base are those that the run has seen with pixel labels.",
)
@click.option("--base", metavar="PATH", help=BASE)
@click.option("--rivals", type=click.Choice(["present", "scored"]), default="present", show_default=True, help=RIVALS)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the pixels that are drawn.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=1, show_default=True, help="Draws, each scored.")
@click.option("--input-scale", help="Scale of the image that the network is shown. Default: the recipe's.")
@click.option("--json", "json_file", type=FILE, help="Write the scores here.")
@DEVICE
@click.option("--limit", type=click.IntRange(1), help="Look at the first so many samples only.")
@QUIET
def score(
    folder: Path,
    shard_set: Place,
    split: str,
    classes: str,
    base: str | None,
    rivals: str,
    seed: int,
    repeats: int,
    input_scale: str | None,
    json_file: Path | None,
    device: str,
    limit: int | None,
    quiet: bool,
) -> None:
    """Score how well one pixel stands for its category.

    In each image one pixel is drawn from each category's mask; every pixel goes to the category whose drawn pixel's
    feature is the nearest by cosine. The shard set's categories need not be the run's.
    """
    yield_cores()
    from train.distributed import enough_memory, join  # torch takes a second to import: --help does without
    from train.grouping import named_features, score_groups
    from train.inference import load_model, views_of
    from train.run import open_run
    from train.targets import chosen_classes, open_categories

    run = open_run(folder)
    target = open_categories(run, shard_set, split, input_scale or run.recipe.eval.input_scale, base)
    chosen = chosen_classes(target, classes)
    with join(device) as world, enough_memory(REMEDY):
        model, step = load_model(run, world.device)
        samples = min(limit or target.samples, target.samples)
        with Progress(len(range(world.rank, samples, world.size)), "images", quiet or not world.first) as progress:
            views = views_of(run.recipe, world.device)
            found = score_groups(
                cast("SegmentationModel", model), target, views, world, chosen, rivals, seed, repeats, limit,
                lambda _: progress.advance(1),
            )  # fmt: skip
        if not world.first:
            return
        features = named_features(model)
        say(_table(found), quiet)
        say(f"{found['categories']} categories ({classes}) in {found['images']} images; features: {features}", quiet)
        if json_file is not None:
            facts = {"run": str(folder), "step": step, "shards": str(shard_set), "split": split, "classes": classes}
            facts |= {"rivals": rivals, "seed": seed, "repeats": repeats, "features": features}
            facts |= {"input_scale": target.input_scale, "samples": samples}
            _publish(json_file, (json.dumps({**found, **facts}, indent=1) + "\n").encode())


@command.command("click", epilog=CLICK_EPILOG)
@RUN
@click.option("--image", "image_file", required=True, type=click.Path(path_type=Path), help="An image file.")
@click.option(
    "--at", "points", required=True, multiple=True, metavar="X,Y", help="A pixel; give several for several maps."
)
@click.option("--out", required=True, type=FILE, help="The picture to write, .png.")
@DEVICE
@QUIET
def clicked(folder: Path, image_file: Path, points: tuple[str, ...], out: Path, device: str, quiet: bool) -> None:
    """Draw how near every pixel of an image lies to a clicked one.

    One map for each --at: the cosine of the clicked pixel's feature to all others, blue the least, red the most.
    """
    places = [parse_point(text) for text in points]
    _check_png(out)
    yield_cores()
    from train.distributed import choose_device, enough_memory  # torch takes a second to import: --help does without
    from train.grouping import draw_responses, named_features
    from train.inference import load_model, views_of
    from train.predict import read_image
    from train.run import open_run

    run, chosen, image = open_run(folder), choose_device(device), read_image(image_file)
    for x, y in places:
        if not (x < image.shape[1] and y < image.shape[0]):
            raise UserError(
                f"--at {x},{y}: outside of {image_file}, which is {image.shape[1]} x {image.shape[0]} pixels"
            )
    model, _ = load_model(run, chosen)
    with enough_memory(REMEDY):
        views, network = views_of(run.recipe, chosen), cast("SegmentationModel", model)
        picture = draw_responses(network, run, image, places, views, chosen)
    _write_picture(out, picture)
    say(f"{out}: {len(places)} maps; features: {named_features(model)}", quiet)


@command.command(epilog=ATTENTION_EPILOG)
@RUN
@click.option("--image", "image_file", required=True, type=click.Path(path_type=Path), help="An image file.")
@click.option("--tag", "tags", required=True, multiple=True, metavar="NAME", help="A class that it shows; give all.")
@click.option("--out", required=True, type=FILE, help="The picture to write, .png.")
@DEVICE
@QUIET
def attention(folder: Path, image_file: Path, tags: tuple[str, ...], out: Path, device: str, quiet: bool) -> None:
    """Draw where a run with a memory looks for the classes that an image is tagged with.

    One map for each --tag (LarvSeg's equation 4, as in training): blue 0, red 1. Novel classes are marked.
    """
    _check_png(out)
    yield_cores()
    from train.attention_pictures import attention_of, draw_attention, load_with_memory, tags_of
    from train.distributed import choose_device, enough_memory  # torch takes a second to import: --help does without
    from train.inference import views_of
    from train.predict import read_image
    from train.run import open_run

    run, chosen = open_run(folder), choose_device(device)
    classes, image = tags_of(run, tags), read_image(image_file)
    model = load_with_memory(run, chosen)
    with enough_memory(REMEDY):
        maps = attention_of(model, run, image, classes, views_of(run.recipe, chosen), chosen)
    unknown = [run.classes.names[klass] for klass in classes if klass not in maps]
    if not maps:
        raise UserError(
            f"the memory of run {folder} knows none of {', '.join(unknown)} yet: expected a longer training"
        )
    _write_picture(out, draw_attention(image, maps, run))
    if unknown:
        say(f"no map of {', '.join(unknown)}: the memory does not know them", quiet)
    say(f"{out}: {len(maps)} maps", quiet)


def parse_point(text: str) -> tuple[int, int]:
    """ "120,80" as (x, y); raises SettingsError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise SettingsError(f"--at {text!r}: expected a pixel as X,Y such as 120,80, from the upper left corner")
    return int(parts[0]), int(parts[1])


def _check_png(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise SettingsError(f"--out {out}: expected a name that ends in .png")


def _table(found: dict[str, Any]) -> str:
    from train.report import per_cent

    width = max(8, *(len(name) for name in found["per_class"]))
    lines = [f"{'category':<{width}}     IoU"]
    lines += [f"{name:<{width}}  {per_cent(value):>6}" for name, value in found["per_class"].items()]
    deviation = found["miou_deviation"]
    over = "" if deviation is None else f"  (deviation {per_cent(deviation)} over {len(found['mious'])} draws)"
    return "\n".join([*lines, f"{'mean IoU':<{width}}  {per_cent(found['miou']):>6}{over}"])


def _write_picture(out: Path, picture: Any) -> None:
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    _publish(out, data.getvalue())


def _publish(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, data)


main = main_of(command)

if __name__ == "__main__":
    main()
