"""seg-prep: a raw dataset becomes a shard set. Parses, calls `prep.pipeline`, prints.

seg-prep camvid --root /data/CamVid --out data/camvid
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from prep.build.plan import check_root
from prep.build.settings import FORMATS, MB, Settings
from prep.cli_tables import TOOLS
from prep.datasets import dataset_names, load_reader
from prep.overview import describe_datasets, describe_outcome, describe_plan
from prep.pipeline import build, make_checked_plan
from prep.raw import Reader
from prep.remapped import remapped
from shards.errors import SettingsError
from shards.scale import FILTERS, Scale
from shards.terminal import LocalPath, main_of, say

READER_OPTIONS = ("aug", "descendants", "labels", "map-to", "overlap", "protocol", "release")
F = TypeVar("F", bound=Callable[..., Any])

EXAMPLE = """\b
Example:
  seg-prep cityscapes --root /data/cityscapes --out data/cityscapes
  seg-prep camvid --root /data/CamVid --out data/camvid --split val --scales 1,1/2

An interrupted build continues when the same command is run again. Exit codes: 0 done; 1 stopped, or more bad samples
than --max-bad (the rest is published); 2 refused."""


def _source_options(command: F) -> F:
    """Options that say what is read."""
    for option in (
        click.option("--limit", type=int, metavar="N", help="First N samples of each split.  [default: all]"),
        click.option(
            "--split", "splits", multiple=True, metavar="NAME", help="A split; may be repeated.  [default: all]"
        ),
        click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the raw dataset."),
    ):
        command = option(command)
    return command


def _label_options(command: F) -> F:
    """Options that say which labels are made of the source's."""
    for option in (
        click.option(
            "--descendants",
            is_flag=True,
            default=None,
            help="imagenet21k, with --map-to: also all kinds of a mapped synset, such as every breed of dog.",
        ),
        click.option("--map-to", metavar="NAME|FILE", help="imagenet21k: the classes of another dataset."),
        click.option("--labels", metavar="WHICH", help="cocolvis: ours, or essnet-published with its known errors."),
        click.option("--protocol", metavar="NAME", help="cocolvis: which images are train and val."),
        click.option("--overlap", metavar="RULE", help="cocolvis: who keeps a contested pixel."),
        click.option("--release", metavar="VERSION", help="vistas: v1.2 or v2.0."),
        click.option("--aug", is_flag=True, default=None, help="voc: train on SBD's labels as well."),
        click.option(
            "--weak-crop",
            type=int,
            metavar="N",
            help="With --weak: cut images into windows of N x N pixels, each with its own classes.",
        ),
        click.option("--weak", is_flag=True, help="Store which classes an image shows, and no pixel labels."),
        click.option(
            "--classes", metavar="FILE|NAME", help="Other classes: your own table (TSV), or one that ships with us."
        ),
    ):
        command = option(command)
    return command


def _shard_options(command: F) -> F:
    """Options that say what is written."""
    for option in (
        click.option(
            "--image-format",
            default="keep",
            show_default=True,
            metavar="keep|jpeg:Q|png|webp",
            help="keep stores JPEG, PNG and WebP sources byte for byte at scale 1.",
        ),
        click.option(
            "--shard-size",
            type=float,
            default=256,
            show_default=True,
            metavar="MB",
            help="Most MB in a shard; 5/8 of it in the mean, since shards end where their contents say.",
        ),
        click.option(
            "--format",
            "format_",
            type=click.Choice(FORMATS),
            default="webdataset",
            show_default=True,
            help="Tar shards, or one Zarr v3 store a split and scale.",
        ),
        click.option(
            "--filter",
            "filter_",
            type=click.Choice(FILTERS),
            default="box",
            show_default=True,
            help="How images and labels are resized, both alike.",
        ),
        click.option(
            "--scales",
            metavar="LIST",
            help="Stored shares of the source size.  [default: 1,1/2,1/4,1/8; 1 for image-level labels]",
        ),
        click.option("--out", type=LocalPath(), metavar="DIR", help="Folder of the shard set."),
    ):
        command = option(command)
    return command


def _run_options(command: F) -> F:
    """Options that change nothing in the bytes."""
    for option in (
        click.option("--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--fresh", is_flag=True, help="Remove the build that is in --out and start over."),
        click.option(
            "--update",
            is_flag=True,
            help="Bring the finished set in --out up to date with its source; only shards that change are rewritten.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
        click.option(
            "--max-bad",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            metavar="N",
            help="Exit with 1 where more than N samples had to be quarantined.",
        ),
        click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes.  [default: all CPU cores]"),
        click.option("--list", "list_", is_flag=True, help="Print the datasets, their layouts, sources and terms."),
    ):
        command = option(command)
    return command


class _WithTools(click.Command):
    """The command itself, and beside it the tools that read no dataset: `seg-prep map`, `seg-prep union`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in TOOLS:
            return TOOLS[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command("seg-prep", cls=_WithTools, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", required=False)
@_source_options
@_label_options
@_shard_options
@_run_options
def command(
    dataset: str | None, root: Path | None, out: Path | None, list_: bool, dry_run: bool, **options: Any
) -> int:
    """Turn the raw dataset DATASET under --root into a shard set in --out.

    Beside it: `seg-prep map SOURCE TARGET` maps ImageNet's synsets to a dataset's classes, `seg-prep union A B ...`
    makes one class table of several.
    """
    if list_:
        say(describe_datasets())
        return 0
    if dataset is None or root is None or (out is None and not dry_run):
        raise SettingsError(
            f"DATASET, --root and --out are needed: expected one of {', '.join(dataset_names())} and two folders; "
            "seg-prep --help shows an example"
        )
    reader = _bound_reader(dataset, root, options)
    settings = _settings(reader, root, options)
    if dry_run or out is None:
        say(describe_plan(make_checked_plan(reader, settings, out)))
        return 0
    workers = options["workers"] or os.cpu_count() or 1
    run = {name: options[name] for name in ("fresh", "update", "quiet")}
    outcome = build(reader, settings, out, workers=workers, **run)
    text = describe_outcome(outcome, out, options["max_bad"])
    if outcome.bad:
        click.echo(text, err=True)
    else:
        say(text, options["quiet"])
    return 1 if len(outcome.bad) > options["max_bad"] else 0


def _bound_reader(dataset: str, root: Path, options: dict[str, Any]) -> Reader:
    """The reader for what lies under the root, with the options that it takes; SettingsError for those of others."""
    reader = load_reader(dataset)
    check_root(reader, root)
    reader = reader.bind(root, dict(_reader_options(reader, options)))
    return reader if options["classes"] is None else remapped(reader, options["classes"])


def _reader_options(reader: Reader, options: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The given options that only some readers take, as (name, value), sorted."""
    given = {}
    for name in READER_OPTIONS:
        value = options[name.replace("-", "_")]
        if value is None:
            continue
        if name not in reader.options:
            takes = ", ".join(f"--{option}" for option in reader.options) or "none of its own"
            raise SettingsError(f"--{name} found: expected an option that {reader.name} takes ({takes}); leave it out")
        given[name] = "yes" if value is True else str(value)
    return tuple(sorted(given.items()))


def _settings(reader: Reader, root: Path, options: dict[str, Any]) -> Settings:
    scales = options["scales"]
    if scales is None:
        scales = "1" if options["weak"] else reader.default_scales
    return Settings(
        dataset=reader.name,
        root=root,
        splits=tuple(dict.fromkeys(options["splits"])),
        scales=Scale.parse_many(scales),
        filter=options["filter_"],
        format=options["format_"],
        shard_size=_shard_bytes(options["shard_size"]),
        image_format=options["image_format"],
        limit=options["limit"],
        options=_reader_options(reader, options),
        weak=options["weak"],
        weak_crop=options["weak_crop"],
    )


def _shard_bytes(megabytes: float) -> int:
    if not 0 < megabytes <= 1_000_000:  # also refuses nan and inf
        raise SettingsError(f"shard size of {megabytes:g} MB found: expected more than 0 and at most 1,000,000")
    return round(megabytes * MB) or 1


main = main_of(command)

if __name__ == "__main__":
    main()
