"""`seg-train`: train a recipe on shard sets. Parses, calls `train.loop`, prints.

    seg-train --shards data/demo --recipe demo --out runs/demo

Under torchrun, one process a device.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.errors import UserError
from shards.terminal import LocalPath, main_of, say
from train.cli_eval import DEVICES
from train.threads import yield_cores

if TYPE_CHECKING:
    from train.config import Recipe
    from train.loop import Summary, Trainer
    from train.run import Run
    from train.sources import MixedSources, Sources
    from train.start import Start

EPILOG = """\b
Example:
  seg-train --list
  seg-train --shards data/demo --recipe demo --out runs/demo --dry-run
  seg-train --shards data/demo --recipe demo --out runs/demo --set optim.lr=0.01 --set loop.steps=500
  seg-train --shards data/demo --out runs/demo --resume
  seg-train --shards data/mine --recipe demo --out runs/mine --start runs/demo
  seg-train --shards pixels=data/cocostuff --shards tags=data/ade20k --recipe larvseg-wa150 --out runs/larvseg
  torchrun --nproc-per-node 4 --no-python seg-train --shards data/demo --recipe demo --out runs/demo
"""
MEMORY = "use a smaller model or batch, or score later (--set loop.eval_every=0, then seg-eval); --resume goes on"
SHARDS = (
    "A shard set, in a folder or at a URL; may be repeated. A recipe with a mixture: NAME=DIR, NAME one of its sources."
)


@click.command(epilog=EPILOG)
@click.option("--shards", "words", multiple=True, metavar="[NAME=]DIR", help=SHARDS)
@click.option("--recipe", "recipe_name", help="A recipe's name (see --list) or a TOML file.")
@click.option("--out", type=LocalPath(), help="The run's folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting of the recipe.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=DEVICES)
@click.option("--start", "place", type=click.Path(path_type=Path), help="Begin from the network of another run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped.")
@click.option("--list", "listing", is_flag=True, help="List the recipes and exit.")
@click.option("--dry-run", is_flag=True, help="Print the plan (model, cost, memory, samples) and exit.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    words: tuple[str, ...],
    recipe_name: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    device: str,
    place: Path | None,
    resume: bool,
    listing: bool,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Train a network on one or several shard sets, as a recipe says."""
    if listing:
        return _list()
    if not words:
        raise click.UsageError("Missing option '--shards': a folder that seg-prep has made.")
    if out is None and not dry_run:
        raise click.UsageError("Missing option '--out': the folder of the run.")
    if recipe_name is None and not resume:
        raise click.UsageError("Missing option '--recipe': a name of --list or a TOML file.")
    yield_cores()
    from train.run import Run  # torch takes a second to import: --help does without
    from train.sources import open_all

    old = _existing(out) if resume and out is not None else None
    recipe = _recipe(recipe_name, overrides, old)
    sources = open_all(words, recipe)
    start = _start(place, old)
    setup = Run(out or Path("runs"), recipe, sources.classes, sources.describe(), _origin(start, old), sources.space)
    if dry_run:
        return _dry_run(setup, sources, start)
    summary = _train(setup, sources, device, old, start, quiet)
    return 0 if summary is None else _told(summary, setup, quiet)


def _list() -> int:
    from train.config import recipe_names, recipe_summary

    width = max(map(len, recipe_names()), default=0)
    for name in recipe_names():
        click.echo(f"{name:<{width}}  {recipe_summary(name)}")
    return 0


def _existing(out: Path) -> Run:
    """The run that --resume continues."""
    from train.run import NAME, open_run

    if not (out / NAME).is_file():
        raise UserError(f"no run to resume in {out}: leave out --resume to start one")
    return open_run(out)


def _recipe(name: str | None, overrides: tuple[str, ...], old: Run | None) -> Recipe:
    """The named recipe, or that of the run to resume."""
    from train.config import load_recipe

    if name is not None:
        return load_recipe(name, overrides)
    if overrides:
        raise UserError("--set without --recipe: a resumed run keeps its settings; leave out --set")
    if old is None:
        raise UserError("no recipe given; expected --recipe NAME")
    return old.recipe


def _start(place: Path | None, old: Run | None) -> Start | None:
    """What --start names; a resumed run has its own checkpoint and looks there no more."""
    from train.start import read_start

    return read_start(place) if place is not None and old is None else None


def _origin(start: Start | None, old: Run | None) -> dict[str, str] | None:
    """What run.json keeps of where the network comes from."""
    if old is not None:
        return old.start
    return start.describe() if start is not None else None


def _dry_run(setup: Run, sources: Sources | MixedSources, start: Start | None) -> int:
    from train import mixture
    from train.mixed_stream import make_stream
    from train.objective_mixed import remembered
    from train.plan import make_plan
    from train.start import check

    recipe, ranks = setup.recipe, int(os.environ.get("WORLD_SIZE", "1"))
    mixture.check(recipe, ranks)
    make_stream(sources, recipe)  # refuses what the run would refuse
    if start is not None:
        check(start, recipe, setup.classes)
    if os.environ.get("RANK", "0") == "0":
        kept, size = remembered(recipe, setup.space), sources.largest(recipe)
        plan = make_plan(recipe, len(setup.classes), sources.counts, size, ranks, kept)
        click.echo("\n".join(plan.lines()))
    return 0


def _train(
    setup: Run, sources: Sources | MixedSources, device: str, old: Run | None, start: Start | None, quiet: bool
) -> Summary | None:
    """Open or create the run's folder and train; None where a resumed run has no step left."""
    from train.distributed import enough_memory, join
    from train.loop import Trainer
    from train.mixed_stream import make_stream
    from train.run import alone, check_free, check_same

    with join(device) as world, enough_memory(MEMORY), ExitStack() as held:
        if old is not None:
            check_same(old, setup)
            held.enter_context(alone(setup.folder) if world.first else nullcontext())
        elif world.first:  # before the network, whose weights may have to be fetched
            check_free(setup.folder)
        trainer = Trainer(setup, make_stream(sources, setup.recipe), world, quiet)
        if old is not None:
            trainer.load()
        else:
            _begin(trainer, start)
            held.enter_context(alone(setup.folder) if world.first else nullcontext())
        world.wait()
        if old is not None and trainer.step >= setup.recipe.loop.steps:  # its log keeps the summary it has
            say(f"{setup.folder} is finished: step {trainer.step}, nothing left to do", quiet or not world.first)
            return None
        if world.first:
            where = f"from step {trainer.step}" if trainer.step else f"{len(sources)} samples"
            say(f"training {setup.recipe.name} on {world.device}, {where}, to step {setup.recipe.loop.steps}", quiet)
        return trainer.run()


def _begin(trainer: Trainer, start: Start | None) -> None:
    """The network to begin from, where one is given, and the run's folder."""
    from train.run import create
    from train.start import begin

    setup, first = trainer.setup, trainer.world.first
    if start is not None:
        say(begin(trainer.model, start, setup.recipe, setup.classes), trainer.quiet or not first)
    if first:
        create(setup)
        if start is not None:
            trainer.save()  # a run that is stopped early goes on from here


def _told(summary: Summary, setup: Run, quiet: bool) -> int:
    """Say how it ended; the exit code."""
    if os.environ.get("RANK", "0") != "0":
        return 0 if summary.finished else 1
    if not summary.finished:
        click.echo(f"stopped after step {summary.step}, saved; run the same command with --resume to go on", err=True)
        return 1
    loss = "no labelled cell seen" if summary.loss is None else f"loss {summary.loss:.4f}"
    speed = f"{summary.seconds:.0f} s, {summary.samples_per_second:.1f} samples/s"
    say(f"done: step {summary.step}, {loss} (mean of the last 20 steps), {speed}; run: {setup.folder}", quiet)
    return 0


main = main_of(command, "run the same command again, with --resume if it has begun to train, to go on")

if __name__ == "__main__":
    main()
