"""Some samples, splits or scales of a shard set, as a set of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec import decode_hard, decode_meta, decode_soft
from shards.dataset import ShardDataset, weak_labels
from shards.errors import SettingsError
from shards.manifest import Manifest
from shards.order import generator
from shards.scale import Scale
from shards.sets.plan import OpenSet, Part, SetPlan, SplitPlan, origin
from shards.sets.summary import count_set
from shards.sets.write import write_set

I64 = npt.NDArray[np.int64]
Advance = Callable[[], None]


@dataclass(frozen=True)
class Choice:
    """What to keep; every condition must hold.

    Args:
        splits: names, () for all.
        scales: () for all.
        keys: keys, None for all.
        classes: names; only samples that show one of them. () for all samples.
        first: the first so many samples of each split.
        drawn: so many samples of each split, drawn by `seed`.
        seed: of the draw: the same set, number and seed give the same samples.
    """

    splits: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    keys: tuple[str, ...] | None = None
    classes: tuple[str, ...] = ()
    first: int | None = None
    drawn: int | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What was chosen, as JSON values; keys as their number."""
        found: dict[str, Any] = {
            "splits": list(self.splits),
            "scales": list(self.scales),
            "keys": None if self.keys is None else len(self.keys),
            "classes": list(self.classes),
            "first": self.first,
            "drawn": self.drawn,
        }
        seed = {} if self.drawn is None else {"seed": self.seed}
        return {name: value for name, value in found.items() if value not in (None, [])} | seed


def plan_subset(source: OpenSet, choice: Choice, limit: int, advance: Advance = lambda: None) -> SetPlan:
    """Find the samples.

    Args:
        limit: most bytes of a shard.
        advance: called once a sample whose label was looked at (`choice.classes`).

    Raises:
        SettingsError: a split, scale, class or key that the set does not hold, or a choice that leaves a split empty.
    """
    manifest = source.manifest
    names = _known(choice.splits, list(manifest.splits), "split") or list(manifest.splits)
    scales = _known(choice.scales, manifest.scales, "scale") or list(manifest.scales)
    ids = [manifest.class_table.names.index(n) for n in _known(choice.classes, manifest.class_table.names, "class")]
    found = {name: _samples(source, name, choice, ids, advance) for name in names}
    _check_keys(source, choice, names)
    kept = {name: indices for name, indices in found.items() if len(indices)}
    if not kept:
        raise SettingsError(f"no sample of {source.store.name} is left by this choice: expected one at least")
    splits = [
        SplitPlan(name, manifest.splits[name].labelled, (Part(source, name, indices),))
        for name, indices in kept.items()
    ]
    settings = {"subset": choice.to_dict(), "of": origin(source)}
    ordered = [scale for scale in manifest.scales if scale in scales]
    return SetPlan(manifest, manifest.format, ordered, splits, settings, limit)


def subset(plan: SetPlan, out: Path, advance: Advance = lambda: None) -> Manifest:
    """Write the subset to the new folder `out`; raises as `write_set`. Labels are counted anew: `advance` is called
    twice a sample and scale."""
    return write_set(plan, out, lambda folder, draft: count_set(folder, draft, b"", advance), advance)


def _samples(source: OpenSet, split: str, choice: Choice, classes: Sequence[int], advance: Advance) -> I64:
    """The chosen samples of a split, int64 [n], rising."""
    indices = np.arange(source.manifest.splits[split].samples, dtype=np.int64)
    if choice.keys is not None:
        wanted = set(choice.keys)
        indices = np.array([i for i, key in enumerate(source.keys(split)) if key in wanted], np.int64)
    if classes:
        dataset = source.split(split, source.manifest.scales[0])
        indices = np.array([i for i in indices if _shows(dataset, int(i), classes, advance)], np.int64)
    if choice.first is not None:
        indices = indices[: choice.first]
    if choice.drawn is not None and choice.drawn < len(indices):
        random = generator("subset", source.manifest.digest, split, choice.seed)
        indices = np.sort(random.choice(indices, choice.drawn, replace=False))
    return indices


def _shows(dataset: ShardDataset, i: int, classes: Sequence[int], advance: Advance) -> bool:
    """Whether a sample's label, or else its image-level label, holds one of the classes."""
    advance()
    members, count = dataset.members(i), len(dataset.classes)
    where = dataset.where(i)
    if "seg.png" in members:
        shown: npt.NDArray[Any] = decode_hard(members["seg.png"], count, f"{where} [seg.png]")
    elif "soft.npz" in members:
        soft = decode_soft(members["soft.npz"], f"{where} [soft.npz]")
        shown = np.concatenate([soft.base.ravel(), soft.ids])
    else:
        tags = weak_labels(decode_meta(members.get("json", b""), f"{where} [json]"), count, where)
        shown = np.zeros(0, np.int64) if tags is None else tags
    return bool(np.isin(classes, shown).any())


def _known(asked: Sequence[str], there: Sequence[str], what: str) -> list[str]:
    """What was asked for, each once; SettingsError for what is not there."""
    names = [str(Scale.parse(name)) for name in asked] if what == "scale" else list(asked)
    for name in names:
        if name not in there:
            shown = ", ".join(there[:20]) + (" ..." if len(there) > 20 else "")
            raise SettingsError(f"{what} {name!r} not found: the set holds {shown}")
    return list(dict.fromkeys(names))


def _check_keys(source: OpenSet, choice: Choice, splits: Sequence[str]) -> None:
    """SettingsError for a key that none of the splits holds."""
    if choice.keys is None:
        return
    there = {key for split in splits for key in source.keys(split)}
    missing = [key for key in choice.keys if key not in there]
    if missing:
        raise SettingsError(
            f"key {missing[0]!r} not found in {source.store.name} ({len(missing)} such keys): "
            f"seg-shards ls {source.store.name} --keys lists them"
        )
