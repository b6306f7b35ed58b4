"""Several shard sets as one: splits of the same name are joined end to end, shards stay as they are cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shards.errors import SettingsError
from shards.manifest import NAME, Manifest
from shards.published import QUARANTINE
from shards.sets.plan import Format, OpenSet, Part, SetPlan, SplitPlan, every_sample, origin
from shards.sets.summary import count_set
from shards.sets.write import write_set
from shards.shardfile import UNCUT

Advance = Callable[[], None]


def plan_merge(sources: Sequence[OpenSet], name: str | None, prefix: bool, format: Format | None = None) -> SetPlan:
    """The union of some sets.

    Args:
        sources: two sets at least.
        name: of the new set; without it theirs, joined by "-".
        prefix: put each set's name and a "/" before its keys.
        format: how it is stored; that of the first one without it.

    Raises:
        SettingsError: they differ in class table, filter, scales or protocol, a split is labelled in some only, or no
            set can have that name.
    """
    if len(sources) < 2:
        raise SettingsError(f"{len(sources)} shard set found: expected two or more to merge")
    if name is not None and not re.fullmatch(NAME, name):
        raise SettingsError(
            f"--name {name!r} found; expected at most 64 letters, digits, _ and -, the first a letter or digit"
        )
    for other in sources[1:]:
        _check_alike(sources[0], other)
    names = list(dict.fromkeys(split for source in sources for split in source.manifest.splits))
    splits = [_joined(sources, split, prefix) for split in names]
    manifest = _manifest(sources, name)
    settings: dict[str, Any] = {"merged": [origin(source) for source in sources], "prefix": prefix}
    return SetPlan(manifest, format or manifest.format, list(manifest.scales), splits, settings, UNCUT)


def merge(sources: Sequence[OpenSet], plan: SetPlan, out: Path, advance: Advance = lambda: None) -> Manifest:
    """Write the union to the new folder `out`; raises as `write_set`. Labels are counted anew: `advance` is called
    twice a sample and scale."""
    quarantines = (f for s in sources for f in s.manifest.files if f.path == QUARANTINE)
    lost = b"".join(s.store.whole(f) for s, f in zip(_with_quarantine(sources), quarantines, strict=True))
    return write_set(plan, out, lambda folder, draft: count_set(folder, draft, lost, advance), advance)


def _with_quarantine(sources: Sequence[OpenSet]) -> list[OpenSet]:
    return [source for source in sources if any(file.path == QUARANTINE for file in source.manifest.files)]


def _check_alike(first: OpenSet, other: OpenSet) -> None:
    """SettingsError, naming what differs, unless both sets mean the same by their labels and sizes."""
    a, b = first.manifest, other.manifest
    found = {
        "class table": (_table(a), _table(b), a.classes_digest == b.classes_digest),
        "filter": (a.filter, b.filter, a.filter == b.filter),
        "scales": (", ".join(a.scales), ", ".join(b.scales), a.scales == b.scales),
        "protocol": (sorted(a.protocol), sorted(b.protocol), a.protocol == b.protocol),
    }
    for what, (one, two, alike) in found.items():
        if not alike:
            raise SettingsError(
                f"{first.store.name} and {other.store.name} differ in {what} ({one} against {two}): expected equal "
                "ones; build one of them again with the other's settings (seg-prep --classes, --filter, --scales)"
            )


def _table(manifest: Manifest) -> str:
    return f"{len(manifest.class_table)} classes, digest {manifest.classes_digest[:12]}"


def _joined(sources: Sequence[OpenSet], split: str, prefix: bool) -> SplitPlan:
    having = [source for source in sources if split in source.manifest.splits]
    labelled = {source.manifest.splits[split].labelled for source in having}
    if len(labelled) > 1:
        raise SettingsError(
            f"split {split!r} is labelled in some of the sets and not in others: expected all alike; leave it out of "
            "one of them with seg-shards subset --split"
        )
    parts = []
    for source in having:
        whole = every_sample(source, split)
        parts.append(Part(source, split, whole.indices, f"{source.manifest.dataset}/" if prefix else ""))
    groups = {
        scale: [size for source in having for size in source.manifest.splits[split].scales[scale].groups]
        for scale in sources[0].manifest.scales
    }
    return SplitPlan(split, labelled.pop(), tuple(parts), groups)


def _manifest(sources: Sequence[OpenSet], name: str | None) -> Manifest:
    """The first one's, with all names, sources and terms."""
    each = [source.manifest for source in sources]
    return each[0].model_copy(
        update={
            "dataset": name or "-".join(dict.fromkeys(m.dataset for m in each))[:64],
            "title": " + ".join(dict.fromkeys(m.title for m in each)),
            "source": "; ".join(dict.fromkeys(m.source for m in each)),
            "terms": "; ".join(dict.fromkeys(m.terms for m in each)),
        }
    )
