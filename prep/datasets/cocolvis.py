"""COCO + LVIS: LVIS v1 instances over COCO stuff, 1,284 classes, straight from the published JSON files.

    seg-prep cocolvis --root /data/coco --out data/cocolvis [--protocol essnet|coco2017] [--overlap first|...]

Jain et al., "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU" (ESSNet), ICCV 2021.

Protocols. `essnet` (default: the paper's figures are of it): train = LVIS v1 train less image 429995 (100,169), val =
LVIS v1 val (19,809, of which 15,000 lie in train2017: a network pretrained on COCO train2017 has seen those).
`coco2017`: train = every image of train2017, val = every image of val2017, with the annotations of both LVIS files.
3,117 and 191 of them are in neither LVIS file: they keep their stuff labels, their objects are void, and their meta
says `"lvis": false`.

Meta. LVIS checked only some classes on each image: `pos_classes` are outlined, `neg_classes` are absent,
`not_exhaustive_classes` are outlined in part, and of all other LVIS classes nothing is known: a trainer must not take
a pixel as evidence against those.

Overlaps. `smallest` by default: where masks of real COCO and LVIS samples overlap, the smallest has the class of the
panoptic mask on 100.0 % of the pixels (first 73.5 %, largest 0.0 %; two COCO images) and the class that a person sees
on 98.3 % (68.4 %, 1.6 %; eight images): tests/bench/overlap_study.py. A headlight lies on its scooter, a glass on its
table. `first` is the published rule.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from prep.coco.annotation import Annotation, parse_annotations
from prep.coco.audit import NO_LABEL, NO_LVIS, NO_STUFF, describe_merge
from prep.coco.index import Index, load_index
from prep.coco.merge import OVERLAPS, TABLE, merge
from prep.raw import BaseReader, DecodedLabel, RawSample, clean_key
from prep.taxonomy import load_classes, rows
from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError, SettingsError

_PROTOCOLS, _LABELS = ("essnet", "coco2017"), ("ours", "essnet-published")
_LEFT_OUT = 429995  # of train, by the release of ESSNet: the image has no annotation
_SPLITS = ("train", "val")
_PLACE = re.compile(r"(?:train|val)2017/[A-Za-z0-9_-]+\.jpg")
_LVIS_CLASSES = 1203
_CHECKED = ("neg_classes", "not_exhaustive_classes")
_META = (
    "pos_classes: outlined by LVIS on the image; neg_classes: checked and absent; not_exhaustive_classes: outlined in "
    "part; LVIS did not check any other of classes 0 to 1202 there, so no pixel is evidence against those; "
    "lvis false: it checked none"
)
# The annotation files that each split of each protocol needs: LVIS's and the stuff files, by split.
_NEEDS = {
    ("essnet", "train"): (("train",), ("train",)),
    ("essnet", "val"): (("val",), ("train", "val")),
    ("coco2017", "train"): (("train", "val"), ("train",)),
    ("coco2017", "val"): (("val",), ("val",)),
}


class Facts(NamedTuple):
    """What decoding needs to know of an image.

    Attributes:
        lvis, stuff: numbers of annotations, -1 where the image has no record in LVIS's or the stuff files.
    """

    image: int
    height: int
    width: int
    lvis: int
    stuff: int


@dataclass(frozen=True)
class CocoLvis(BaseReader):
    """Reader of one COCO root.

    Attributes:
        overlap: who keeps a contested pixel.
        images: "essnet" or "coco2017".
        labels: "ours", or "essnet-published" with the errors of the published label maps.
    """

    overlap: str = OVERLAPS[0]
    images: str = "essnet"
    labels: str = "ours"
    protocol: Mapping[str, Any] = field(default_factory=lambda: _describe(_PROTOCOLS[0], OVERLAPS[0], _LABELS[0]))

    name = "cocolvis"
    options = ("labels", "overlap", "protocol")
    layout = """\
ROOT/{train,val}2017/<12 digits>.jpg                       or ROOT/images/{train,val}2017/
ROOT/annotations/lvis_v1_{train,val}.json                  LVIS v1 (1,203 categories), not v0.5
ROOT/annotations/stuff_{train,val}2017.json                COCO stuff annotations"""
    source = (
        "https://cocodataset.org (train2017.zip, val2017.zip, stuff_annotations_trainval2017.zip) and "
        "https://www.lvisdataset.org (lvis_v1_train.json.zip, lvis_v1_val.json.zip)"
    )
    terms = "LVIS and COCO-Stuff annotations: CC BY 4.0; images: Flickr terms of use, a licence each"

    @property
    def title(self) -> str:
        wrong = ", labels as published with ESSNet, known errors included: for comparison only"
        return "COCO + LVIS v1, 1,284 classes" + (wrong if self.labels == "essnet-published" else "")

    @property
    def classes(self) -> ClassTable:
        return load_classes("cocolvis-1284")

    def bind(self, root: Path, options: Mapping[str, str]) -> CocoLvis:
        labels = _choice(options, "labels", _LABELS)
        overlap = _choice(options, "overlap", OVERLAPS)
        if labels == "essnet-published":
            overlap = options.get("overlap", "first")
            if overlap != "first":
                raise SettingsError(
                    f"--overlap {overlap} found with --labels essnet-published: expected first, the published rule; "
                    "leave --overlap out"
                )
        images = _choice(options, "protocol", _PROTOCOLS)
        protocol = _describe(images, overlap, labels)
        return replace(self, overlap=overlap, labels=labels, images=images, protocol=protocol)

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(
            split for split in _SPLITS if any(path.is_file() for path in (_lvis(root, split), _stuff(root, split)))
        )
        if not found:
            raise LayoutError(
                f"neither annotations/lvis_v1_train.json nor any of its kind found under {root}: expected the "
                "COCO layout with LVIS v1 and stuff annotations; point --root at the folder that holds annotations/"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        lvis_splits, stuff_splits = _NEEDS[self.images, split]
        lvis = [_checked(_lvis(root, part), "lvis-v1") for part in lvis_splits]
        stuff = {f"{part}2017": _checked(_stuff(root, part), "cocostuff") for part in stuff_splits}
        base, folder = _image_root(root, f"{split}2017"), f"{split}2017"
        if self.images == "essnet":
            for image in sorted(set(lvis[0].images.ids) - {_LEFT_OUT}):
                yield _sample(base, image, lvis, stuff)
            return
        listed = set()
        for image in sorted(_ids_of_folder(folder, lvis, stuff[folder])):
            sample = _sample(base, image, lvis, stuff)
            listed.add(sample.key)
            yield sample
        yield from _unlisted(base / folder, listed)

    def decode_label(self, data: bytes, where: str, facts: Facts) -> DecodedLabel:
        annotations = parse_annotations(data, where)
        lvis, stuff = max(facts.lvis, 0), max(facts.stuff, 0)
        if len(annotations) != lvis + stuff:
            raise SampleError(f"{where}: {len(annotations)} annotations; expected {lvis + stuff}, as were indexed")
        _check_ids(annotations[:lvis], f"{where}: LVIS")
        _check_ids(annotations[lvis:], f"{where}: stuff")
        published = self.labels == "essnet-published"
        size = (facts.height, facts.width)
        label = merge(annotations, lvis, size, where, self.overlap, published)
        tally = Counter(label.tally)
        tally["images"] = 1
        tally[NO_LVIS] += facts.lvis < 0
        tally[NO_STUFF] += facts.stuff < 0
        tally[f"{NO_LABEL}|{facts.image}"] += bool((label.hard == IGNORE).all())
        return DecodedLabel(label.hard, +tally)

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        audit = {split: describe_merge(tally) for split, tally in tallies.items()}
        return {"merge-audit.json": {"protocol": dict(self.protocol), "splits": audit}}


def _check_ids(annotations: Sequence[Annotation], where: str) -> None:
    """SampleError where an image's annotations of one file hold an id twice: a claim would be counted twice."""
    id, count = Counter(annotation.id for annotation in annotations).most_common(1)[0] if annotations else (0, 1)
    if count > 1:
        raise SampleError(f"{where} annotation {id}: stands there {count} times; expected ids that are unique")


def _describe(images: str, overlap: str, labels: str) -> dict[str, Any]:
    """What evaluation, the manifest and the card say of a build."""
    found: dict[str, Any] = {"name": images, "overlap": overlap, "labels": labels, "meta": _META}
    if images == "essnet":
        found["left_out"] = [_LEFT_OUT]
    if labels == "essnet-published":
        found["label_errors"] = (
            "reproduces the published label maps for comparison only: stuff ids were remapped in place and chain "
            "(cabinet is window-other, blanket is desk-stuff), and ids wrap at 256 on images with one stuff annotation"
        )
    return found


def _choice(options: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = options.get(name, known[0])
    if value not in known:
        raise SettingsError(f"--{name} {value} found: expected one of {', '.join(known)}; choose among these")
    return value


def _lvis(root: Path, split: str) -> Path:
    return root / "annotations" / f"lvis_v1_{split}.json"


def _stuff(root: Path, split: str) -> Path:
    return root / "annotations" / f"stuff_{split}2017.json"


def _image_root(root: Path, folder: str) -> Path:
    """The folder that holds train2017/ and val2017/."""
    for base in (root, root / "images"):
        if (base / folder).is_dir():
            return base
    raise LayoutError(
        f"neither {folder}/ nor images/{folder}/ found under {root}: expected the images of COCO 2017; "
        f"unpack {folder}.zip there"
    )


def _checked(path: Path, source: str) -> Index:
    """The index of a file whose categories are those of our table."""
    if not path.is_file():
        raise LayoutError(
            f"annotations/{path.name} not found under {path.parent.parent}: this split needs it; download it "
            "(seg-prep --list says where) or choose another --split or --protocol"
        )
    index = load_index(path)
    known = {int(row["source_id"]): row["name"] for row in rows(TABLE) if row["source"] == source}
    found = {category.id: category.name for category in index.categories}
    other = [id for id, name in found.items() if known.get(id) != name]
    if other or (source == "lvis-v1" and len(found) != _LVIS_CLASSES):
        example = f", e.g. {other[0]} '{found[other[0]][:40]}'" if other else ""
        expected = "the 1,203 of LVIS v1 (v0.5 has 1,230 others)" if source == "lvis-v1" else "COCO stuff's, 92 to 183"
        raise LayoutError(
            f"{path} lists {len(found)} categories, {len(other)} of them unknown{example}: expected {expected}; "
            f"put the unaltered {path.name} there"
        )
    return index


def _ids_of_folder(folder: str, lvis: list[Index], stuff: Index) -> set[int]:
    """Every image that the files place in a folder."""
    found = set(stuff.images.ids)
    for index in lvis:
        places = zip(index.images.ids, index.images.urls, strict=True)
        found.update(image for image, url in places if url.startswith(f"{folder}/"))
    return found


def _sample(base: Path, image: int, lvis: list[Index], stuff: dict[str, Index]) -> RawSample:
    """One image with what the files say of it; some file lists it."""
    listing = [index for index in (*lvis, *stuff.values()) if image in index.images.positions]
    things = next((index for index in lvis if image in index.images.positions), None)
    folder, ground = next(
        ((name, index) for name, index in stuff.items() if image in index.images.positions), ("", None)
    )
    places = [things.images.url(image)] if things else []
    places += [f"{folder}/{ground.images.name(image)}"] if ground else []
    parts = [index.parts(image) if index else () for index in (things, ground)]
    counts = [len(found) if index else -1 for found, index in zip(parts, (things, ground), strict=True)]
    size = listing[0].images.size(image)
    meta = _meta(image, things)
    return RawSample(
        key=clean_key(Path(places[0]).stem or f"{image:012d}"),
        image=base / places[0],
        label=(*parts[0], *parts[1]),
        meta=meta,
        facts=Facts(image, *size, *counts),
        problem=_problem(image, places, listing, meta),
    )


def _problem(image: int, places: list[str], listing: list[Index], meta: Mapping[str, Any]) -> str | None:
    """Why an image cannot be used: what the files say of it is impossible, or they contradict each other."""
    sizes = [index.images.size(image) for index in listing]
    beyond = [to for name, found in meta.items() if name in _CHECKED for to in found if not 0 <= to < _LVIS_CLASSES]
    if not _PLACE.fullmatch(places[0]):
        return f"image {image}: no place in train2017 or val2017 ('{places[0][:80]}')"
    if len(listing) > len(places):
        return f"image {image}: listed by {' and '.join(index.path.name for index in listing)}; expected one of a kind"
    if len(set(sizes)) > 1:
        return f"image {image}: height and width are {sizes[0]} in the LVIS file and {sizes[1]} in the stuff file"
    if len(set(places)) > 1:
        return f"image {image}: its place is {places[0]} in the LVIS file and {places[1][:80]} in the stuff file"
    if beyond:
        return f"image {image}: unknown category id {beyond[0] + 1} in what LVIS checked; cocolvis defines 1 to 1203"
    return None


def _meta(image: int, lvis: Index | None) -> dict[str, Any]:
    """What LVIS checked on an image, as class indices."""
    if lvis is None:
        return {"lvis": False}
    at = lvis.images.positions[image]
    ids = {
        "pos_classes": lvis.categories_of(image),
        "neg_classes": lvis.images.negative[at],
        "not_exhaustive_classes": lvis.images.not_exhaustive[at],
    }
    return {"lvis": True} | {name: sorted({id - 1 for id in found}) for name, found in ids.items()}


def _unlisted(folder: Path, listed: set[str]) -> Iterator[RawSample]:
    """Images of a folder that no annotation file lists: to be quarantined."""
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith((".jpg", ".jpeg"))):
        key = clean_key(Path(name).stem)
        if key not in listed:
            yield RawSample(key, folder / name, (), problem=f"{folder.name}/{name}: no annotation file lists it")


READER = CocoLvis()
