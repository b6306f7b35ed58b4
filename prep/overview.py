"""What seg-prep prints: the datasets, a plan, how a build ended."""

from __future__ import annotations

import textwrap
from fractions import Fraction
from pathlib import Path

from prep.build.encode import FULL
from prep.build.plan import Plan
from prep.build.settings import MB
from prep.build.update import SplitChange
from prep.datasets import dataset_names, load_reader
from prep.pipeline import Outcome
from prep.raw import Reader

OWN = "folder"
_SHOWN = 10  # quarantined samples that are printed; quarantine.jsonl holds all


def describe_datasets() -> str:
    """Every dataset, people's own first: title with its class count, layout, source and terms."""
    names = sorted(dataset_names(), key=lambda name: (name != OWN, name))
    return "\n\n".join(_describe_dataset(load_reader(name)) for name in names)


def _describe_dataset(reader: Reader) -> str:
    return (
        f"{reader.name}: {reader.title}\n"
        f"{textwrap.indent(reader.layout, '    ')}\n"
        f"    source: {reader.source}\n    terms:  {reader.terms}"
    )


def describe_plan(plan: Plan) -> str:
    """The plan of a build, for --dry-run."""
    settings, reader = plan.settings, plan.reader
    lines = [f"{reader.title} under {settings.root}"]
    for split in plan.splits:
        kind = "labelled" if split.labelled else "image-level labels of pixel labels"
        labels = kind if split.has_labels else "without pixel labels"
        lines.append(
            f"  split {split.name}: {split.samples} samples, {labels}" + (f", {split.bad} bad" if split.bad else "")
        )
    lines += [
        f"  classes: {len(reader.classes)}",
        f"  scales: {', '.join(str(scale) for scale in settings.scales)} (filter {settings.filter})",
        f"  written as: {settings.format}, image format {settings.image_format}, "
        f"shards of at most {settings.shard_size / MB:g} MB",
        f"  source: {_size(plan.source_bytes)}; estimated output: about {_size(estimate_bytes(plan))}",
    ]
    return "\n".join(lines)


def estimate_bytes(plan: Plan) -> int:
    """A rough size of the output: bytes scale with area, and a little worse for small images."""
    share = Fraction(0)
    for scale in plan.settings.scales:
        share += 1 if scale == FULL else scale.ratio**2 * Fraction(3, 2)
    return int(plan.source_bytes * share)


def describe_outcome(outcome: Outcome, out: Path, max_bad: int) -> str:
    """How a build ended, quarantined samples included."""
    manifest, state = outcome.manifest, outcome.state
    splits = ", ".join(f"{name} {split.samples}" for name, split in manifest.splits.items())
    if state is None:
        state_of = "is up to date with its source" if outcome.changes else "is complete with these settings"
        lines = [f"{out} {state_of} ({splits} samples); nothing to do"]
    else:
        size = sum(file.bytes for file in manifest.all_files())
        rate = sum(split.samples for split in manifest.splits.values()) / max(state.seconds, 1e-9)
        lines = [f"{out}: {splits} samples, {_size(size)}, {state.seconds:.1f} s ({rate:.1f} samples/s)"]
        lines += [_describe_change(name, change, manifest.format) for name, change in outcome.changes.items()]
    if outcome.bad:
        lines += [f"  {bad.split} {bad.key}: {bad.reason}" for bad in outcome.bad[:_SHOWN]]
        if len(outcome.bad) > _SHOWN:
            lines.append(f"  ... and {len(outcome.bad) - _SHOWN} more")
        verdict = "more than" if len(outcome.bad) > max_bad else "within"
        lines.append(
            f"{len(outcome.bad)} samples quarantined, {verdict} --max-bad {max_bad}: see {out / 'quarantine.jsonl'}; "
            "to take them in, mend the source and build again with --update"
        )
    return "\n".join(lines)


def _describe_change(split: str, change: SplitChange, format_: str) -> str:
    files = "stores" if format_ == "zarr" else "shards"
    return (
        f"  {split}: {change.unchanged} samples unchanged, {change.added} added, {change.changed} changed, "
        f"{change.removed} removed; {change.kept} {files} kept, {change.rewritten} rewritten"
    )


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
