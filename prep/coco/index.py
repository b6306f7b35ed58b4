"""Where each image's annotations lie in a COCO or LVIS file: arrays of offsets, no object a annotation.

    index = load_index(path)
    index.parts(139)      # FileParts, in the order of the file
    index.images.size(139)

1.3 million annotations (`lvis_v1_train.json`) take some 40 MB here; the file itself is never held.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from prep.coco.elements import elements
from prep.raw import FilePart
from shards.codec.image import MAX_PIXELS
from shards.errors import LayoutError

Int64 = NDArray[np.int64]
T = TypeVar("T")
Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Small = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Side = Annotated[int, msgspec.Meta(gt=0, lt=1 << 16)]


class Category(msgspec.Struct, gc=False, frozen=True):
    """One entry of `categories`."""

    id: Small
    name: str
    synset: str = ""


class _Annotation(msgspec.Struct, gc=False, frozen=True):
    id: Id
    image_id: Id
    category_id: Small


class _Image(msgspec.Struct, gc=False, frozen=True):
    id: Id
    width: Side
    height: Side
    coco_url: str = ""
    file_name: str = ""
    neg_category_ids: list[Small] = []
    not_exhaustive_category_ids: list[Small] = []


@dataclass
class Ragged:
    """Short lists of small numbers, one after the other."""

    values: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("q"))

    def append(self, values: Sequence[int]) -> None:
        """Add a list."""
        self.values.extend(values)
        self.ends.append(len(self.values))

    def __getitem__(self, position: int) -> list[int]:
        start = self.ends[position - 1] if position else 0
        return self.values[start : self.ends[position]].tolist()


@dataclass
class Images:
    """The `images` of a file, in its order.

    Attributes:
        ids, heights, widths: one of each an image.
        urls: "train2017/000000000009.jpg", the last two components of `coco_url`; "" where there is none.
        names: `file_name`, or "".
        negative: categories that LVIS checked and found absent.
        not_exhaustive: categories of which LVIS did not outline every instance.
        positions: {image id: where it stands in the above}.
    """

    ids: array[int] = field(default_factory=lambda: array("q"))
    heights: array[int] = field(default_factory=lambda: array("i"))
    widths: array[int] = field(default_factory=lambda: array("i"))
    urls: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    negative: Ragged = field(default_factory=Ragged)
    not_exhaustive: Ragged = field(default_factory=Ragged)
    positions: dict[int, int] = field(default_factory=dict)

    def size(self, image: int) -> tuple[int, int]:
        """Height and width of an image by its id."""
        at = self.positions[image]
        return self.heights[at], self.widths[at]

    def url(self, image: int) -> str:
        """The place of an image by its id."""
        return self.urls[self.positions[image]]

    def name(self, image: int) -> str:
        """The file name of an image by its id."""
        return self.names[self.positions[image]]

    def add(self, image: _Image, path: Path) -> None:
        """Add one; LayoutError where it is listed twice or has no possible size."""
        if image.id in self.positions:
            raise LayoutError(f"{path} lists image {image.id} twice: expected ids that are unique; download it again")
        if image.width * image.height > MAX_PIXELS:
            raise LayoutError(
                f"{path}: image {image.id} has {image.width}x{image.height} pixels: expected at most {MAX_PIXELS}"
            )
        self.positions[image.id] = len(self.ids)
        self.ids.append(image.id)
        self.heights.append(image.height)
        self.widths.append(image.width)
        self.urls.append("/".join(image.coco_url.split("/")[-2:]) if image.coco_url else "")
        self.names.append(image.file_name)
        self.negative.append(image.neg_category_ids)
        self.not_exhaustive.append(image.not_exhaustive_category_ids)


@dataclass(frozen=True)
class Index:
    """Images, categories and places of annotations of one file.

    Attributes:
        image_ids: int64 [A], the image of each annotation, ascending; within an image in the order of the file.
        offsets, lengths: of the annotations' text in the file, in bytes.
        category_ids: int64 [A].
    """

    path: Path
    images: Images
    categories: tuple[Category, ...]
    image_ids: Int64
    offsets: Int64
    lengths: NDArray[np.int32]
    category_ids: NDArray[np.int32]

    def _range(self, image: int) -> tuple[int, int]:
        start, end = np.searchsorted(self.image_ids, [image, image + 1])
        return int(start), int(end)

    def parts(self, image: int) -> tuple[FilePart, ...]:
        """The places of an image's annotations, in the order of the file."""
        start, end = self._range(image)
        places = zip(self.offsets[start:end].tolist(), self.lengths[start:end].tolist(), strict=True)
        return tuple(FilePart(self.path, offset, length) for offset, length in places)

    def categories_of(self, image: int) -> list[int]:
        """The category ids that an image's annotations have, ascending."""
        start, end = self._range(image)
        return sorted(set(self.category_ids[start:end].tolist()))


def load_index(path: Path) -> Index:
    """Index a file, or take what was found before while the file stays as it is.

    Raises:
        LayoutError: missing, not JSON, truncated, not COCO's lists and fields, annotations of unknown images.
    """
    try:
        status = path.stat()
        return _load(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise LayoutError(f"{path} cannot be read ({error.strerror}): expected a COCO annotation file") from None


@lru_cache(maxsize=4)
def _load(path: Path, size: int, modified: int) -> Index:
    images, categories = Images(), list[Category]()
    columns = tuple(array(kind) for kind in "qqiiq")
    for name, text, places in elements(path, ("images", "annotations", "categories")):
        if name == "images":
            for image in _parse(text, list[_Image], path, name, places):
                images.add(image, path)
        elif name == "categories":
            categories += _parse(text, list[Category], path, name, places)
        else:
            _add_annotations(columns, _parse(text, list[_Annotation], path, name, places), places)
    image_ids, offsets, lengths, category_ids, ids = (np.frombuffer(c, c.typecode) for c in columns)
    _check_images(path, images, image_ids, ids)
    order = np.argsort(image_ids, kind="stable")
    return Index(path, images, tuple(categories), image_ids[order], offsets[order], lengths[order], category_ids[order])


def _add_annotations(columns: tuple[array[int], ...], found: list[_Annotation], places: Int64) -> None:
    image_ids, offsets, lengths, category_ids, ids = columns
    image_ids.extend([annotation.image_id for annotation in found])
    offsets.frombytes(places[:, 0].tobytes())
    lengths.frombytes(places[:, 1].astype(np.int32).tobytes())
    category_ids.extend([annotation.category_id for annotation in found])
    ids.extend([annotation.id for annotation in found])


def _parse(text: bytes, kind: type[T], path: Path, name: str, places: Int64) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeDecodeError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise LayoutError(
            f"{path}: an element of '{name}' from byte {int(places[0, 0])} on is not COCO's ({why}): "
            "expected an unaltered annotation file; download it once more"
        ) from None


def _check_images(path: Path, images: Images, image_ids: Int64, ids: Int64) -> None:
    known = np.sort(np.frombuffer(images.ids, np.int64))
    at = np.searchsorted(known, image_ids)
    good = at < len(known)
    good[good] = known[at[good]] == image_ids[good]
    if not good.all():
        first = int(np.argmin(good))
        raise LayoutError(
            f"{path}: annotation {int(ids[first])} is of image {int(image_ids[first])}, which its images do not list: "
            "expected an unaltered annotation file; download it once more"
        )
