"""COCO panoptic, 133 classes: panoptic PNG + JSON -> one class a pixel.

    seg-prep coco-panoptic --root /data/coco --out data/coco-panoptic

Kirillov et al., "Panoptic Segmentation", CVPR 2019; format: https://cocodataset.org/#format-data. A pixel's segment is
R + 256 G + 65536 B, its class the segment's category in the JSON; 0 is void. Crowd segments carry their class like
any other. A segment of the JSON that has no pixel does no harm; one of the PNG that the JSON lacks is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from prep.decode import load_pixels, open_header, png_depth
from prep.pairs import first_folder
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, rows
from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_SPLITS = {"train": "train2017", "val": "val2017"}
_MAX_SEGMENT = (1 << 24) - 1
_MAX_JSON = 1 << 32
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}")
_ARCHIVE = "panoptic_annotations_trainval2017.zip"


class _Segment(msgspec.Struct, gc=False):
    id: int
    category_id: int


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    file_name: str
    segments_info: list[_Segment]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Panoptic(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


class CocoPanoptic(BaseReader):
    """Reader of the panoptic annotations; a sample's facts are (segment id, class index) pairs by ascending id."""

    name = "coco-panoptic"
    title = "COCO 2017 panoptic as semantic labels, 133 classes"
    layout = """\
ROOT/[images/]{train2017,val2017}/000000xxxxxx.jpg
ROOT/annotations/panoptic_{train2017,val2017}.json
ROOT/annotations/panoptic_{train2017,val2017}/000000xxxxxx.png   (unpacked from the zip inside the zip)"""
    source = f"https://cocodataset.org ({_ARCHIVE}, train2017.zip, val2017.zip)"
    terms = "annotations CC BY 4.0; images: Flickr terms of use, licence per image"

    @property
    def classes(self) -> ClassTable:
        return load_classes("coco-panoptic-133")

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(
            split for split, folder in _SPLITS.items() if _images(root, folder) or _json(root, folder).is_file()
        )
        if not found:
            raise LayoutError(
                f"neither train2017/ nor annotations/panoptic_train2017.json (nor those of val2017) found under "
                f"{root}: expected the COCO 2017 layout; point --root at the folder that holds annotations/"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        folder = _SPLITS[split]
        path, maps, images = _json(root, folder), _json(root, folder).with_suffix(""), _images(root, folder)
        leave = f"or leave {split} out with --split"
        for found, what, archive in (
            (images, f"{folder}/ or images/{folder}/", f"{folder}.zip"),
            (path.is_file(), f"annotations/{path.name}", _ARCHIVE),
            (maps.is_dir(), f"annotations/{maps.name}/", f"{maps.name}.zip (inside {_ARCHIVE})"),
        ):
            if not found:
                raise LayoutError(f"{what} not found under {root}: unpack {archive} there, {leave}")
        yield from _samples(_load(path), path, maps, images or root)

    def decode_label(self, data: bytes, where: str, facts: Any) -> UInt16:
        segments = _decode_segments(data, where)
        ids = np.array([0, *(segment for segment, _ in facts)], np.uint32)
        indices = np.array([IGNORE, *(index for _, index in facts)], np.uint16)
        position = np.searchsorted(ids, segments)
        position[position == len(ids)] = 0
        missing = ids[position] != segments
        if missing.any():
            y, x = (int(v) for v in np.argwhere(missing)[0])
            raise SampleError(
                f"{where}: unknown label id {int(segments[y, x])} at row {y}, column {x} ({int(missing.sum())} such "
                f"pixels); {self.name}: the JSON lists {len(facts)} segments for this image"
            )
        return indices[position]


def _images(root: Path, folder: str) -> Path | None:
    return first_folder(root, folder, f"images/{folder}")


def _json(root: Path, folder: str) -> Path:
    return root / "annotations" / f"panoptic_{folder}.json"


def _samples(panoptic: _Panoptic, path: Path, maps: Path, images: Path) -> Iterator[RawSample]:
    """Every annotation with its image, then the images without one, in the JSON's order."""
    names = {image.id: image.file_name for image in panoptic.images}
    left = dict(names)
    for annotation in panoptic.annotations:
        left.pop(annotation.image_id, None)
        image = names.get(annotation.image_id, "")
        problem = _problem(annotation, image)
        if problem:
            yield _unusable(path, images, image or annotation.file_name, problem)
        else:
            facts = sorted((segment.id, _indices()[segment.category_id]) for segment in annotation.segments_info)
            yield RawSample(
                clean_key(Path(image).stem), images / image, maps / annotation.file_name, facts=tuple(facts)
            )
    for image in left.values():
        yield _unusable(path, images, image, "image without an annotation")


def _unusable(path: Path, images: Path, name: str, problem: str) -> RawSample:
    """A sample for the quarantine; its name may be anything and becomes no path."""
    key = clean_key(Path(name).stem) or "unnamed"
    return RawSample(key, images / key, problem=f"{path.name}: {problem}")


def _problem(annotation: _Annotation, image: str) -> str | None:
    """Why an annotation cannot be used, as far as the JSON tells."""
    if not image:
        return f"annotation of image {annotation.image_id}, which is not among the JSON's images"
    for name in (image, annotation.file_name):
        if not _FILE_NAME.fullmatch(name) or name in (".", ".."):
            return f"file name '{name[:120]}' is a path or no name at all"
    for segment in annotation.segments_info:
        if segment.category_id not in _indices():
            return f"unknown category {segment.category_id} of segment {segment.id}; expected one of COCO's 133"
        if not 0 < segment.id <= _MAX_SEGMENT:
            return f"segment id {segment.id}; expected 1 to {_MAX_SEGMENT}"
    if len({segment.id for segment in annotation.segments_info}) != len(annotation.segments_info):
        return "two segments of one id"
    return None


@cache
def _indices() -> dict[int, int]:
    """Category id -> class index."""
    return {int(row["id"]): int(row["to"]) for row in rows("coco-panoptic-133_to_133")}


def _load(path: Path) -> _Panoptic:
    """The parsed JSON; samples are gone through twice, so the last two files are kept."""
    status = path.stat()
    return _parse(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _parse(path: Path, changed: int, size: int) -> _Panoptic:
    if size > _MAX_JSON:
        raise LayoutError(f"{path} of {size} bytes is more than the cap of {_MAX_JSON}: unpack {_ARCHIVE} again")
    try:
        panoptic = msgspec.json.decode(path.read_bytes(), type=_Panoptic)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LayoutError(
            f"{path} is truncated or no panoptic JSON ({error}): expected images, annotations with segments_info, "
            f"categories; unpack {_ARCHIVE} again"
        ) from None
    known = {int(row["id"]): row["name"] for row in rows("coco-panoptic-133_to_133")}
    for category in panoptic.categories:
        if known.get(category.id) != category.name:
            raise LayoutError(
                f"{path} calls category {category.id} '{category.name[:80]}': expected "
                f"'{known.get(category.id, 'no such id')}' as in COCO's 133; another dataset's file cannot be read so"
            )
    if not panoptic.annotations:
        raise LayoutError(f"{path} holds no annotations: unpack {_ARCHIVE} again")
    return panoptic


def _decode_segments(data: bytes, where: str) -> NDArray[np.uint32]:
    """A panoptic PNG -> segment ids uint32 [H, W]."""
    image = open_header(data, where)
    if image.format != "PNG" or image.mode != "RGB" or png_depth(data) != 8:
        raise SampleError(f"{where}: label is {image.format} of mode {image.mode}; expected a PNG of 8-bit RGB")
    load_pixels(image, where)
    rgb = np.asarray(image).astype(np.uint32)
    segments: NDArray[np.uint32] = rgb[..., 0] | rgb[..., 1] << np.uint32(8) | rgb[..., 2] << np.uint32(16)
    return segments


READER = CocoPanoptic()
