"""``seg-shards``: look into a shard set, in a folder or at a URL (ls, cat, verify, stats), or make others of it.

seg-shards ls data/camvid
seg-shards cat data/camvid --split val --scale 1/4 --key 0016E5_07959 --save /tmp/look
seg-shards verify data/camvid
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import numpy as np

from shards.codec import ImageFormat, encode_image
from shards.dataset import Sample, ShardDataset, open_split
from shards.errors import UserError
from shards.manifest import Manifest, load_manifest
from shards.picture import blend, colourise, entropy_map, overlay
from shards.sets.cli import COMMANDS
from shards.softlabel import SoftLabel
from shards.statistics import LabelCounts, class_mass, count_labels
from shards.store import Place, as_place, open_store
from shards.terminal import LocalPath, Progress, main_of, say
from shards.verify import count_steps, verify

_UNFIT = re.compile(r"[\x00-\x1f\x7f/\\]")  # in a file name; what a sample says of its key is not checked
MANY_CLASSES = 200  # of more, only those that occur are printed
PLACE = click.argument("out", type=as_place, metavar="OUT")
QUIET = click.option("--quiet", is_flag=True, help="Print results only.")


@click.group(epilog="Example: seg-shards cat data/camvid --split val --scale 1/4 --save /tmp/look")
def command() -> None:
    """Look into a shard set that seg-prep built, make others of it, or compare two."""


for _more in COMMANDS:
    command.add_command(_more)


@command.command(epilog="Example: seg-shards ls data/camvid --keys --split val")
@PLACE
@click.option("--keys", is_flag=True, help="List the keys, one a line.")
@click.option("--split", help="Only this split.")
@QUIET
def ls(out: Place, keys: bool, split: str | None, quiet: bool) -> None:  # all it prints is results
    """What is in it: splits, scales, samples, bytes."""
    manifest = load_manifest(out)
    splits = [open_split(out, split, manifest.scales[0]).split] if split else list(manifest.splits)
    if keys:
        for name in splits:
            click.echo("\n".join(open_split(out, name, manifest.scales[0]).keys()))
        return
    click.echo(f"{manifest.dataset}: {len(manifest.class_table)} classes, {manifest.format}, filter {manifest.filter}")
    for name in splits:
        for scale in manifest.scales:
            click.echo(_ls_line(manifest, name, scale))


def _ls_line(manifest: Manifest, name: str, scale: str) -> str:
    split = manifest.splits[name]
    part = split.scales[scale]
    files = part.shards or part.files
    label = "labelled" if split.labelled else "no pixel labels"
    size = sum(f.bytes for f in files) / 1e6
    return f"{name:10} {scale:>5}  {split.samples:7} samples  {len(files):5} files  {size:10.1f} MB  {label}"


@command.command(epilog="Example: seg-shards cat data/camvid --split val --key 0016E5_07959 --save /tmp/look")
@PLACE
@click.option("--split", help="Which split; the first that holds the key without it.")
@click.option("--scale", help="Which scale; the largest stored without it.")
@click.option("--key", help="Which sample; the first without it.")
@click.option("--save", type=LocalPath(), help="Write image, colourised label and entropy map here.")
@QUIET
def cat(out: Place, split: str | None, scale: str | None, key: str | None, save: Path | None, quiet: bool) -> None:
    """Print one sample; with --save write pictures of it."""
    dataset = _find(out, split, scale, key)
    i = dataset.position(key) if key else dataset.position(0)
    sample = dataset[i]
    for line in _describe(sample, dataset, dataset.members(i)):
        click.echo(line)
    if save is not None:
        for path in _save(sample, dataset, save, _soft_label(sample, dataset, i, exact=scale is not None)):
            say(f"wrote {path}", quiet)


def _soft_label(sample: Sample, dataset: ShardDataset, i: int, exact: bool) -> SoftLabel | None:
    """The sample's soft label; where no scale was asked for and this one holds none, that of the next scale."""
    smaller = [] if exact or sample.soft is not None else [s for s in dataset.manifest.scales if s != dataset.scale]
    for scale in smaller:
        return open_split(dataset.store, dataset.split, scale)[i].soft
    return sample.soft


def _find(out: Place, split: str | None, scale: str | None, key: str | None) -> ShardDataset:
    """The split asked for, or the first that holds the key."""
    manifest = load_manifest(out)
    wanted = scale or manifest.scales[0]
    names = [split] if split else list(manifest.splits)
    datasets = [open_split(out, name, wanted) for name in names]
    if key is None and not any(map(len, datasets)):
        raise UserError(f"no sample found in {datasets[0].folder} ({', '.join(names)}): these splits are empty")
    found = next((d for d in datasets if (len(d) if key is None else key in d.keys())), None)  # noqa: SIM118  # no dict
    if found is None:
        where = datasets[0].folder
        raise UserError(
            f"key {key!r} not found in {where} ({', '.join(names)}); seg-shards ls {where} --keys lists them"
        )
    return found


def _describe(sample: Sample, dataset: ShardDataset, members: dict[str, bytes]) -> list[str]:
    """Lines about a sample: members, shapes, what it shows."""
    lines = [f"key      {sample.key}  ({dataset.split}, scale {dataset.scale})"]
    lines += [f"member   {suffix}: {len(data)} bytes" for suffix, data in members.items()]
    lines.append(f"image    uint8 {list(sample.image.shape)}")
    soft = SoftLabel.from_hard(sample.hard) if sample.hard is not None else sample.soft
    if soft is not None:
        mixed = 100 * len(soft.cells) / soft.base.size
        cells = f"{list(soft.shape)} cells over {soft.denominator}"
        lines.append(f"label    {cells}, {mixed:.1f} % mixed, at most {soft.max_classes} classes a cell")
        mass = class_mass(soft, len(dataset.classes)) / soft.base.size
        names = (*dataset.classes.names, "void")
        lines += [f"  {100 * mass[c]:6.2f} %  {names[c]}" for c in np.argsort(-mass, kind="stable") if mass[c] > 0]
    if sample.weak is not None:
        lines.append(f"shows    {', '.join(dataset.classes.names[i] for i in sample.weak) or 'none of the classes'}")
    if sample.instances is not None:
        lines.append(f"instances {int(sample.instances.max(initial=0))}")
    return [*lines, f"meta     {json.dumps(sample.meta, sort_keys=True, ensure_ascii=False)}"]


def _save(sample: Sample, dataset: ShardDataset, folder: Path, soft: SoftLabel | None) -> list[Path]:
    """Write what there is as PNGs, with the entropy map of ``soft``; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"image": sample.image}
    if sample.hard is not None:
        pictures["label"] = colourise(sample.hard, dataset.classes)
        pictures["overlay"] = overlay(sample.image, sample.hard, dataset.classes)
    if sample.soft is not None:
        pictures["label"] = blend(sample.soft, dataset.classes)
        pictures["overlay"] = overlay(sample.image, sample.soft.harden(), dataset.classes)
    if soft is not None:
        pictures["entropy"] = entropy_map(soft)
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"{_UNFIT.sub('_', sample.key)}-{name}.png")
        paths[-1].write_bytes(encode_image(picture, ImageFormat("png")))
    return paths


@command.command("verify", epilog="Example: seg-shards verify data/camvid")
@PLACE
@QUIET
def verify_command(out: Place, quiet: bool) -> int:
    """Check every checksum, decode every member, test every invariant; exit 2 if anything is wrong."""
    problems = 0
    total = count_steps(out)
    with Progress(total, "files and samples", quiet) as progress:
        for problem in verify(out, progress.advance):
            click.echo(problem, err=True)
            problems += 1
    name = open_store(out).name
    say(f"{problems} problems found in {name}" if problems else f"{name} is sound", quiet and not problems)
    return 2 if problems else 0


@command.command(epilog="Example: seg-shards stats data/camvid --json /tmp/stats.json")
@PLACE
@click.option("--split", help="Only this split.")
@click.option("--json", "target", type=LocalPath(), help="Also write the figures here.")
@QUIET
def stats(out: Place, split: str | None, target: Path | None, quiet: bool) -> None:
    """Class statistics, counted from the stored labels."""
    manifest = load_manifest(out)
    names = [open_split(out, split, manifest.scales[0]).split] if split else list(manifest.splits)
    figures: dict[str, LabelCounts] = {}
    with Progress(sum(manifest.splits[n].samples * len(manifest.scales) for n in names), "samples", quiet) as progress:
        for name in names:
            for scale in manifest.scales:
                figures[f"{name} {scale}"] = count_labels(out, name, scale, progress.advance, manifest)
    class_names = manifest.class_table.names
    for title, counts in figures.items():
        click.echo("\n".join(_stats_lines(title, counts, class_names)))
    if target is not None:
        plain = {title: counts.to_dict(class_names) for title, counts in figures.items()}
        target.write_text(json.dumps(plain, indent=1) + "\n")


def _stats_lines(title: str, counts: LabelCounts, names: tuple[str, ...]) -> list[str]:
    """One split at one scale as text."""
    stored = f"{counts.image_bytes} image bytes, {counts.label_bytes} label bytes"
    lines = [f"{title}: {counts.samples} samples, {stored}"]
    if counts.cells:
        lines.append(f"  {counts.cells} cells, {100 * counts.mixed / counts.cells:.2f} % mixed")
    if counts.tagged:
        lines.append(f"  {counts.tagged} samples with image-level labels instead of pixel labels")
    if counts.cells or counts.tagged:
        rows = list(zip((*names, "void"), counts.mass, counts.images, strict=True))
        shown = [row for row in rows if row[2] or len(rows) <= MANY_CLASSES]
        for name, mass, images in shown:
            share = f"{100 * mass / counts.cells:7.3f} %" if counts.cells else ""
            lines.append(f"  {share}  {images:6} images  {name}")
        if len(shown) < len(rows):
            lines.append(f"  {len(rows) - len(shown)} classes that no image shows are not listed")
    return lines


main = main_of(command)

if __name__ == "__main__":
    main()
