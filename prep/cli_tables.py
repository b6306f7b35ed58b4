"""`seg-prep map` and `seg-prep union`: class tables of several datasets brought together. Parses, calls, prints.

seg-prep map imagenet21k ade20k --out data/i150.tsv
seg-prep union cocostuff ade20k --out data/c171-ade150.tsv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from prep.mapping import (
    describe_mapping,
    describe_union,
    map_classes,
    review_path,
    unite,
    write_mapping,
    write_maps,
    write_union,
)
from prep.mapping.matching import WAYS
from prep.mapping.union import Union
from shards.errors import SettingsError
from shards.terminal import LocalPath, say

_OUT = click.option("--out", type=LocalPath(), metavar="FILE", help="Write the table here, as TSV.")
_QUIET = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
_CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.command("map", epilog="Example: seg-prep map imagenet21k ade20k --out i150.tsv", context_settings=_CONTEXT)
@click.argument("source")
@click.argument("target")
@click.option("--descendants", is_flag=True, help="Also all kinds of a mapped synset: every breed of dog is a dog.")
@_OUT
@_QUIET
def map_command(source: str, target: str, descendants: bool, out: Path | None, quiet: bool) -> int:
    """Map the WordNet synsets of SOURCE (imagenet21k) to the classes of TARGET: a dataset, or a file of names.

    With --out FILE, what a person should look at goes into a second file, FILE with .review before its suffix.
    """
    mapping = map_classes(source, target, descendants=descendants)
    if out is not None:
        _check_place(out, (target,), (out, review_path(out)))
        write_mapping(mapping, out)
    say(describe_mapping(mapping), quiet)
    return 0


@click.command("union", epilog="Example: seg-prep union cocostuff ade20k --out union.tsv", context_settings=_CONTEXT)
@click.argument("tables", nargs=-1, required=True)
@click.option("--way", type=click.Choice(WAYS), help="How classes are matched.  [default: by the tables' own rule]")
@_OUT
@click.option("--maps", type=LocalPath(), metavar="DIR", help="Write a --classes file for each table here.")
@_QUIET
def union_command(tables: tuple[str, ...], way: str | None, out: Path | None, maps: Path | None, quiet: bool) -> int:
    """One class table for a mixture of the datasets TABLES; the first of them is the base.

    With --maps DIR, `seg-prep DATASET ... --classes DIR/TABLE.tsv` gives each dataset the names of the union.
    """
    union = unite(list(tables), way)
    if out is not None:
        _check_place(out, tables, (out,))
        write_union(union, out)
    if maps is not None:
        _write_maps(union, maps, tables)
    say(describe_union(union), quiet)
    return 0


def _write_maps(union: Union, folder: Path, read: Sequence[str]) -> None:
    """A --classes file for each table of a union, none of them over one that was read, or over another."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--maps {folder} is a file: expected a folder")
    stems = [Path(table).stem for table in union.tables]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise SettingsError(f"--maps: two tables are called {twice[0]}, and so would their files: rename one")
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        _check_place(folder / f"{stem}.tsv", read, (folder / f"{stem}.tsv",))
    write_maps(union, folder)


def _check_place(out: Path, read: Sequence[str], written: Sequence[Path]) -> None:
    """SettingsError where a file cannot be put there, or would take the place of one that was read."""
    if out.is_dir() or not out.parent.is_dir():
        found = "is a folder" if out.is_dir() else f"lies in {out.parent}, which is not a folder"
        raise SettingsError(f"--out {out} {found}: expected the path of a file in an existing folder")
    for path in (Path(name) for name in read if Path(name).is_file()):
        if any(place.exists() and place.samefile(path) for place in written):
            raise SettingsError(f"--out {out} would overwrite {path}, which is read: expected another path")


TOOLS = {"map": map_command, "union": union_command}
