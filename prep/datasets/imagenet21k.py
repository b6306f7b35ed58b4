"""ImageNet-21K and its relatives: images known by the wnid of their folder or tar, stored as image-level labels.

    seg-prep imagenet21k --root /data/imagenet21k --out data/imagenet21k
    seg-prep imagenet21k --root /data/imagenet21k --out data/i124 --map-to ade20k

Deng et al., "ImageNet: A Large-Scale Hierarchical Image Database", CVPR 2009. Which variant lies under the root is
recognised by the set of its wnids and goes into the manifest. Classes are keyed by wnid: names repeat in ImageNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prep.raw import BaseReader, RawSample, clean_key
from prep.taxonomy import load_classes
from prep.wnids.mapped import Mapped, load_mapping
from prep.wnids.roots import Root, find_root
from prep.wnids.variants import FALL11, classes_of, fingerprint, recognise
from shards.classes import ClassTable
from shards.errors import SettingsError

_SHOWN = 10  # ignored files that the manifest names


@dataclass(frozen=True)
class ImageNet21k(BaseReader):
    """Reader of folders and tars of wnids.

    Attributes:
        title, protocol: as the manifest holds them.
        table: the classes, or None before `bind`: the 21,841 of fall11.
        weak: {wnid: class indices}; images of other wnids are left out.
    """

    title: str = "ImageNet-21K and its relatives, image-level labels, 21,841 classes"
    protocol: Mapping[str, Any] = field(default_factory=dict)
    table: ClassTable | None = None
    weak: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    name = "imagenet21k"
    layout = """\
ROOT/<wnid>/*.JPEG    or ROOT/<wnid>.tar, or ROOT/fall11_whole.tar, which holds such tars: split "train"
ROOT/{train,val}/<wnid>/*.JPEG    ImageNet-1k; imagenet21k_train and imagenet21k_val of ImageNet-21K-P are read as well
ROOT/ILSVRC/Data/CLS-LOC/{train/<wnid>,val}/*.JPEG    ImageNet-1k of Kaggle, with ROOT/LOC_val_solution.csv
ROOT/train/<wnid>/images/*.JPEG    ROOT/val/images/*.JPEG    ROOT/val/val_annotations.txt    Tiny ImageNet"""
    source = "https://image-net.org (fall11_whole.tar, ILSVRC2012); http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    terms = "ImageNet terms of access: non-commercial research and education; registration needed"
    options = ("descendants", "map-to")
    default_scales = "1"

    @property
    def classes(self) -> ClassTable:
        return self.table or load_classes(FALL11)

    @property
    def possible(self) -> tuple[str, ...]:  # type: ignore[override]
        """All names of ImageNet-21K, where nothing was mapped."""
        return () if "map_to" in self.protocol else load_classes(FALL11).names

    def bind(self, root: Path, options: Mapping[str, str]) -> ImageNet21k:
        """Recognise the variant, and settle the classes by it or by `map-to`."""
        found = find_root(root)
        wnids, target = found.wnids, options.get("map-to")
        if target is None and "descendants" in options:
            raise SettingsError("--descendants found without --map-to: expected both, or neither; say what to map to")
        if target is None:
            table = classes_of(wnids)
            mapped = Mapped(table, {wnid: (index,) for index, wnid in enumerate(sorted(wnids))})
        else:
            mapped = load_mapping(target, wnids, "descendants" in options)
        count = len(mapped.classes)
        return replace(
            self,
            title=f"{_describe(wnids, mapped)}, image-level labels, {count:,} class{'es' if count > 1 else ''}",
            protocol=_protocol(found, mapped),
            table=mapped.classes,
            weak=mapped.weak,
        )

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(find_root(root).splits)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        reader = self if self.weak else self.bind(root, {})
        for image in find_root(root).splits[split].images(reader.weak):
            yield RawSample(
                key=f"{image.wnid}/{clean_key(image.stem)}" if image.wnid else clean_key(image.stem),
                image=image.place,
                weak=reader.weak.get(image.wnid, ()),
                problem=image.problem,
            )


def _describe(wnids: set[str], mapped: Mapped) -> str:
    variant = recognise(wnids)
    name = variant.name if variant.known else f"ImageNet, {len(wnids):,} {variant.name}"
    if not mapped.target:
        return name
    return (
        f"{name}, mapped to {mapped.target}: {len(mapped.weak):,} of {len(wnids):,} wnids, "
        f"{len(wnids) - len(mapped.weak):,} left out"
    )


def _protocol(found: Root, mapped: Mapped) -> dict[str, Any]:
    """What the manifest says of the source: its variant, what was left out."""
    wnids = found.wnids
    variant = recognise(wnids)
    facts: dict[str, Any] = {
        "variant": variant.name if variant.known else f"{len(wnids)} {variant.name}",
        "wnids": len(wnids),
        "fingerprint": fingerprint(wnids),
    }
    if mapped.target:
        facts |= {"map_to": mapped.target, "mapped_wnids": len(mapped.weak), "left_out": len(wnids) - len(mapped.weak)}
    if found.ignored:
        facts["ignored"] = {"count": len(found.ignored), "first": sorted(found.ignored)[:_SHOWN]}
    return facts


READER = ImageNet21k()
