"""`seg-norms`: exact BatchNorm statistics for a trained run. Parses, calls `train.norm_statistics`, prints."""

from __future__ import annotations

from pathlib import Path

import click

from shards.errors import UserError
from shards.store import Place, as_place
from shards.terminal import Progress, main_of, say
from train.cli_eval import DEVICES
from train.threads import yield_cores

EPILOG = """\b
Example:
  seg-norms --run runs/camvid
  seg-eval --run runs/camvid --shards data/camvid --split val
  torchrun --nproc-per-node 4 --no-python seg-norms --run runs/camvid
"""


@click.command(epilog=EPILOG)
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option(
    "--shards",
    "paths",
    multiple=True,
    type=as_place,
    metavar="DIR|URL",
    help="The shard sets that it was trained on, in their order. Default: where the run found them.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES)
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, paths: tuple[Place, ...], device: str, quiet: bool) -> None:
    """Take BatchNorm statistics anew, as exact averages over the training set, once a run is trained.

    Writes checkpoint-norms.pt beside the run's checkpoint; seg-eval and seg-predict take it from then on. Stopped and
    called again, it goes on where it was.
    """
    yield_cores()
    from train.distributed import enough_memory, join  # torch takes a second to import
    from train.norm_statistics import exact_norms
    from train.run import open_run
    from train.sources import open_sources
    from train.stream import Stream

    run = open_run(folder)
    if run.recipe.mixture is not None:
        raise UserError(f"run {folder} has a mixture of sources: seg-norms takes runs of one source; leave it out")
    sources = open_sources(paths or [as_place(source["path"]) for source in run.sources], run.recipe)
    if [source["digest"] for source in sources.describe()] != run.digests:
        raise UserError(
            f"run {folder} was trained on other shard sets (their digests differ); give its own as --shards"
        )
    with join(device) as world, enough_memory("use --device cpu"):
        silent = quiet or not world.first
        with Progress(None, "batches", silent) as progress:

            def watch(done: int, of: int) -> None:
                progress.set(of=of)
                progress.advance(1)

            path, samples = exact_norms(run, Stream(sources, run.recipe), world, watch)
    say(f"BatchNorm statistics: exact averages over {samples} training samples: {path}", silent)


main = main_of(command)

if __name__ == "__main__":
    main()
