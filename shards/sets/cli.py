"""``seg-shards convert``, ``merge``, ``subset``, ``diff``: parse, call, print.

seg-shards convert data/camvid --out data/camvid-zarr
seg-shards merge data/cityscapes data/kitti --out data/roads --prefix
seg-shards subset data/camvid --out data/small --split train --draw 50
seg-shards diff data/camvid data/camvid-new
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from shards.errors import SettingsError, UserError, naming
from shards.manifest import Manifest
from shards.sets.convert import convert, plan_conversion
from shards.sets.diff import Difference, common_samples, diff
from shards.sets.merge import merge, plan_merge
from shards.sets.newset import check_new
from shards.sets.plan import Format, OpenSet
from shards.sets.subset import Choice, plan_subset, subset
from shards.store import Place, as_place
from shards.terminal import LocalPath, Progress, say

MB = 1_000_000
MOST_MB = 1_000_000  # of a shard
OUT = click.option("--out", type=LocalPath(), required=True, metavar="DIR", help="The new shard set.")
QUIET = click.option("--quiet", is_flag=True, help="Print results only.")
FORMAT = click.option("--format", "format_", type=click.Choice(("webdataset", "zarr")), help="How it is stored.")
SOURCE = click.argument("source", type=as_place, metavar="DIR|URL")


@click.command("convert", epilog="Example: seg-shards convert data/camvid --out data/camvid-zarr")
@SOURCE
@OUT
@FORMAT
@QUIET
def convert_command(source: Place, out: Path, format_: Format | None, quiet: bool) -> None:
    """The same samples as Zarr, or as tar shards, without any loss."""
    check_new(out)
    opened = OpenSet.at(source)
    plan = plan_conversion(opened, format_)
    with Progress(plan.steps, "samples", quiet) as progress:
        manifest = convert(opened, plan, out, progress.advance)
    say(_made(manifest, out), quiet)


@click.command("merge", epilog="Example: seg-shards merge data/cityscapes data/kitti --out data/roads --prefix")
@click.argument("sources", type=as_place, nargs=-1, metavar="DIR|URL ...")
@OUT
@click.option("--name", help="Of the new set; without it the sets' names, joined.")
@click.option("--prefix", is_flag=True, help="Put each set's name before its keys.")
@FORMAT
@QUIET
def merge_command(
    sources: tuple[Place, ...], out: Path, name: str | None, prefix: bool, format_: Format | None, quiet: bool
) -> None:
    """Several sets with equal classes, scales and filter as one."""
    check_new(out)
    opened = [OpenSet.at(source) for source in sources]
    plan = plan_merge(opened, name, prefix, format_)
    with Progress(2 * plan.steps, "samples", quiet) as progress:
        manifest = merge(opened, plan, out, progress.advance)
    say(_made(manifest, out), quiet)


@click.command("subset", epilog="Example: seg-shards subset data/camvid --out data/small --split train --draw 50")
@SOURCE
@OUT
@click.option("--split", "splits", multiple=True, help="Only this split; can be given several times.")
@click.option("--scales", help="Only these scales, such as 1/2,1/4.")
@click.option("--keys", type=click.Path(path_type=Path), help="A file of keys, one a line.")
@click.option("--class", "classes", multiple=True, help="Only samples that show this class, or another one given.")
@click.option("--first", type=click.IntRange(1), metavar="N", help="The first N samples of each split.")
@click.option("--draw", type=click.IntRange(1), metavar="N", help="N samples of each split, drawn by --seed.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--shard-size", type=float, default=256, show_default=True, metavar="MB")
@QUIET
def subset_command(
    source: Place,
    out: Path,
    splits: tuple[str, ...],
    scales: str | None,
    keys: Path | None,
    classes: tuple[str, ...],
    first: int | None,
    draw: int | None,
    seed: int,
    shard_size: float,
    quiet: bool,
) -> None:
    """Some samples, splits or scales as a set of its own."""
    check_new(out)
    wanted = None if keys is None else _read_keys(keys)
    if not 0 < shard_size <= MOST_MB:  # nor is NaN
        raise SettingsError(f"--shard-size {shard_size:g} found: expected more than 0 and at most {MOST_MB:,} MB")
    limit = round(shard_size * MB) or 1
    choice = Choice(splits, tuple(scales.split(",")) if scales else (), wanted, classes, first, draw, seed)
    opened = OpenSet.at(source)
    with Progress(None, "samples looked at", quiet or not classes) as progress:
        plan = plan_subset(opened, choice, limit, progress.advance)
    with Progress(2 * plan.steps, "samples", quiet) as progress:
        manifest = subset(plan, out, progress.advance)
    left = [name for name in choice.splits or opened.manifest.splits if name not in manifest.splits]
    if left:
        say(f"left out, for no sample of theirs was chosen: {', '.join(left)}", quiet)
    say(_made(manifest, out), quiet)


@click.command("diff", epilog="Example: seg-shards diff data/camvid data/camvid-new")
@click.argument("first", type=as_place, metavar="DIR|URL")
@click.argument("second", type=as_place, metavar="DIR|URL")
@click.option("--bytes", "exact", is_flag=True, help="Count stored bytes that differ and decode to the same.")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="Print so many differences.")
@click.option("--json", "target", type=LocalPath(), help="Write all of them here.")
@QUIET
def diff_command(first: Place, second: Place, exact: bool, limit: int, target: Path | None, quiet: bool) -> int:
    """Which samples and pixels of two sets differ; exit 1 where any does."""
    a, b = OpenSet.at(first), OpenSet.at(second)
    found: list[Difference] = []
    with Progress(common_samples(a, b), "samples", quiet) as progress:
        for difference in diff(a, b, exact, progress.advance):
            if len(found) < limit:
                click.echo(str(difference))
            found.append(difference)
    if target is not None:
        with naming(target):
            target.write_text(json.dumps([vars(one) for one in found], indent=1) + "\n")
    more = f" ({len(found) - limit} not printed)" if len(found) > limit else ""
    click.echo(f"{len(found)} differences{more}" if found else "no difference")
    return int(bool(found))


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        keys = tuple(dict.fromkeys(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as a list of keys ({error}): expected UTF-8 text, a key a line"
        ) from error
    if not keys:
        raise SettingsError(f"{path} holds no key: expected one a line")
    return keys


def _made(manifest: Manifest, out: Path) -> str:
    splits = ", ".join(f"{name} {split.samples}" for name, split in manifest.splits.items())
    return f"{out}: {manifest.format}, {splits} samples at {', '.join(manifest.scales)}"


COMMANDS = (convert_command, merge_command, subset_command, diff_command)
