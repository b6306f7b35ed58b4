"""Which samples and pixels of two shard sets differ; stored alike or not (tar against Zarr, JPEG against PNG)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.classes import ClassTable
from shards.dataset import Sample, ShardDataset, decode_sample
from shards.manifest import Manifest
from shards.sets.plan import OpenSet
from shards.softlabel import SoftLabel

Advance = Callable[[], None]


@dataclass(frozen=True)
class Difference:
    """One thing in which two sets differ.

    Args:
        what: for people.
        split, scale, key: where; "" where it concerns more.
    """

    what: str
    split: str = ""
    scale: str = ""
    key: str = ""

    def __str__(self) -> str:
        where = " ".join(word for word in (self.split, self.scale, self.key) if word)
        return f"{where}: {self.what}" if where else self.what


def diff(a: OpenSet, b: OpenSet, exact: bool = False, advance: Advance = lambda: None) -> Iterator[Difference]:
    """All differences; `advance` is called once a sample and scale that both sets hold.

    Args:
        exact: count stored bytes that differ and decode to the same.

    Raises:
        FormatError: a sample of either cannot be decoded.
    """
    yield from _heads(a.manifest, b.manifest)
    for split in a.manifest.splits:
        if split in b.manifest.splits:
            yield from _split(a, b, split, exact, advance)


def common_samples(a: OpenSet, b: OpenSet) -> int:
    """An upper bound of what `diff` compares, for progress."""
    scales = len(set(a.manifest.scales) & set(b.manifest.scales))
    shared = a.manifest.splits.keys() & b.manifest.splits.keys()
    return scales * sum(min(a.manifest.splits[name].samples, b.manifest.splits[name].samples) for name in shared)


def _heads(a: Manifest, b: Manifest) -> Iterator[Difference]:
    """What the manifests say of labels and sizes."""
    if a.classes_digest != b.classes_digest:
        yield Difference(f"class tables differ: {_tables(a.class_table, b.class_table)}")
    if a.filter != b.filter:
        yield Difference(f"filters differ: {a.filter} and {b.filter}")
    if a.protocol != b.protocol:
        keys = sorted(k for k in a.protocol.keys() | b.protocol.keys() if a.protocol.get(k) != b.protocol.get(k))
        yield Difference(f"protocols differ: {', '.join(keys)}")
    for what, one, two in (("scale", a.scales, b.scales), ("split", list(a.splits), list(b.splits))):
        for name in [name for name in one if name not in two]:
            yield Difference(f"{what} {name} is in the first set only")
        for name in [name for name in two if name not in one]:
            yield Difference(f"{what} {name} is in the second set only")


def _tables(a: ClassTable, b: ClassTable) -> str:
    """What differs first in two class tables."""
    place = next((i for i, (x, y) in enumerate(zip(a.names, b.names, strict=False)) if x != y), None)
    if place is not None:
        return f"class {place}: {a.names[place]!r} and {b.names[place]!r}"
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} classes"
    columns = ("colours", "wnids", "categories", "things")
    return f"equal names, other {', '.join(name for name in columns if getattr(a, name) != getattr(b, name))}"


def _split(a: OpenSet, b: OpenSet, split: str, exact: bool, advance: Advance) -> Iterator[Difference]:
    """Keys, then every sample that both hold, at every scale that both hold."""
    keys, others = a.keys(split), {key: i for i, key in enumerate(b.keys(split))}
    there = set(keys)
    for which, missing in (
        ("first", [key for key in keys if key not in others]),
        ("second", [key for key in others if key not in there]),
    ):
        for key in missing:
            yield Difference(f"in the {which} set only", split, key=key)
    common = [(i, others[key], key) for i, key in enumerate(keys) if key in others]
    if [place for _, place, _ in common] != sorted(place for _, place, _ in common):
        yield Difference("samples are stored in another order", split)
    if a.manifest.splits[split].labelled != b.manifest.splits[split].labelled:
        yield Difference("labelled in one of the sets only", split)
    for scale in [scale for scale in a.manifest.scales if scale in b.manifest.scales]:
        one, two = a.split(split, scale), b.split(split, scale)
        for i, j, key in common:
            for what in _sample(one, i, two, j, exact):
                yield Difference(what, split, scale, key)
            advance()


def _sample(a: ShardDataset, i: int, b: ShardDataset, j: int, exact: bool) -> Iterator[str]:
    """The differences of one sample at one scale."""
    stored, other = a.members(i), b.members(j)
    if stored == other:
        return
    one, two = _decoded(a, i, stored), _decoded(b, j, other)
    found = [*_images(one.image, two.image), *_labels(one, two), *_meta(one, two)]
    yield from found
    if exact and not found:
        names = sorted(n for n in stored.keys() | other.keys() if stored.get(n) != other.get(n))
        yield f"other bytes, equal when decoded: {', '.join(names)}"


def _decoded(dataset: ShardDataset, i: int, members: Mapping[str, bytes]) -> Sample:
    return decode_sample(members, len(dataset.classes), dataset.where(i))


def _images(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> Iterator[str]:
    if a.shape != b.shape:
        yield f"image: {_size(a.shape)} and {_size(b.shape)} pixels"
        return
    gap = np.abs(a.astype(np.int16) - b).max(2)
    if gap.any():
        yield f"image: {np.count_nonzero(gap)} of {gap.size} pixels differ, by {gap.max()} at most"


def _labels(a: Sample, b: Sample) -> Iterator[str]:
    for name, one, two in (("label", a.hard, b.hard), ("instances", a.instances, b.instances)):
        if one is not None and two is not None:
            yield from _maps(name, one, two)
        elif (one is None) != (two is None):
            yield f"{name}: in the {'second' if one is None else 'first'} set only"
    if a.soft is not None and b.soft is not None:
        yield from _soft(a.soft, b.soft)
    elif (a.soft is None) != (b.soft is None):
        yield f"soft label: in the {'second' if a.soft is None else 'first'} set only"
    if _tags(a) != _tags(b):
        yield f"image-level label: classes {_tags(a)} and {_tags(b)}"


def _tags(sample: Sample) -> list[int] | None:
    return None if sample.weak is None else [int(i) for i in sample.weak]


def _maps(name: str, a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16]) -> Iterator[str]:
    """Hard labels, or instance maps; the commonest change with them."""
    if a.shape != b.shape:
        yield f"{name}: {_size(a.shape)} and {_size(b.shape)} pixels"
        return
    changed = a != b
    if changed.any():
        pairs, counts = np.unique(np.stack([a[changed], b[changed]], 1), axis=0, return_counts=True)
        one, two = (int(i) for i in pairs[counts.argmax()])
        yield f"{name}: {changed.sum()} of {a.size} pixels differ, most of them {one} -> {two}"


def _soft(a: SoftLabel, b: SoftLabel) -> Iterator[str]:
    """Cells whose shares differ, and by how much at most."""
    if a.shape != b.shape:
        yield f"soft label: {_size(a.shape)} and {_size(b.shape)} cells"
        return
    gaps = share_gaps(a, b)
    if gaps.any():
        yield f"soft label: {np.count_nonzero(gaps)} of {gaps.size} cells differ, a share by {gaps.max():.4f} at most"


def share_gaps(a: SoftLabel, b: SoftLabel) -> npt.NDArray[np.float64]:
    """The largest difference of a class's share in each cell: float64 [h * w]; both of the same shape."""
    entries, shares = (np.concatenate(pair) for pair in zip(_entries(a, 1.0), _entries(b, -1.0), strict=True))
    order = np.argsort(entries, kind="stable")
    entries, shares = entries[order], shares[order]
    starts = np.flatnonzero(np.concatenate(([True], entries[1:] != entries[:-1])))
    gaps = np.zeros(a.base.size)
    np.maximum.at(gaps, entries[starts] >> 16, np.abs(np.add.reduceat(shares, starts)))
    return gaps


def _entries(soft: SoftLabel, sign: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(cell * 65536 + class, share) of all classes of all cells."""
    whole = np.ones(soft.base.size, np.bool_)
    whole[soft.cells] = False
    plain = np.flatnonzero(whole)
    mixed = np.repeat(soft.cells.astype(np.int64), np.diff(soft.starts))
    cells = np.concatenate([plain, mixed])
    ids = np.concatenate([soft.base.ravel()[plain], soft.ids]).astype(np.int64)
    shares = np.concatenate([np.ones(len(plain)), soft.weights / soft.denominator])
    return cells << 16 | ids, sign * shares


def _meta(a: Sample, b: Sample) -> Iterator[str]:
    ignored = {"weak"}  # told above
    names = sorted((a.meta.keys() | b.meta.keys()) - ignored)
    changed = [name for name in names if a.meta.get(name) != b.meta.get(name)]
    if changed:
        yield f"metadata: {', '.join(changed)}"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
