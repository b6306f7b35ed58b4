"""One raw sample -> the members that each scale's shard stores: read, validate, resize pairs, encode.

Pure: the same files and settings give the same bytes in any process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from prep.build.known import Known
from prep.build.source import Source, read_source
from prep.decode import SourceImage, decode_source
from prep.places import printable
from prep.raw import DecodedLabel, RawSample, Reader, UInt16
from prep.weak import shown_classes, windows
from shards import IGNORE
from shards.codec import ImageFormat, encode_hard, encode_image, encode_instances, encode_meta, encode_soft
from shards.codec.image import MAX_PIXELS
from shards.errors import SampleError, SettingsError
from shards.resize import resize_image
from shards.scale import Scale
from shards.shardfile import Blocks
from shards.soften import soften
from shards.tar import check_key, sample_blocks

_EXACT = 1 << 24  # OpenCV counts in float32, which is exact up to here
FULL = Scale.parse("1")


@dataclass(frozen=True)
class Job:
    """What every sample of a build is encoded with."""

    reader: Reader
    root: Path
    scales: tuple[Scale, ...]
    filter: str
    image_format: ImageFormat
    weak: bool = False  # image-level labels instead of pixel labels
    weak_crop: int | None = None  # pixels; windows of this size instead of whole images
    known: Known | None = None  # of an update: the source samples of the set before


@dataclass(frozen=True)
class View:
    """What becomes one stored sample: a source image with its labels, or a window of one.

    Attributes:
        data: the source file's bytes; used where `source` is plain.
        hard, instances, weak: what is stored of the labels; None is nothing.
        meta: stored with the sample.
    """

    key: str
    source: SourceImage
    data: bytes
    hard: UInt16 | None
    instances: UInt16 | None
    weak: tuple[int, ...] | None
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class EncodedSample:
    """What the shards store of one sample, and what the statistics count.

    Attributes:
        blocks: for each scale, in the job's order, what its shard stores.
        pixels: {class index: pixels} of the hard label; void under IGNORE.
        mixed: for each scale (cells of more than one class, cells); (0, 0) at scale 1 and without a label.
        weak: class indices of the image-level label.
        tally: what the reader counted while it decoded the label.
    """

    key: str
    blocks: tuple[Blocks, ...]
    pixels: dict[int, int]
    mixed: tuple[tuple[int, int], ...]
    weak: tuple[int, ...] = ()
    tally: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used, as quarantine.jsonl holds it."""

    key: str
    split: str
    source: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return {"key": self.key, "split": self.split, "source": self.source, "reason": self.reason}


@dataclass(frozen=True)
class EncodedSource:
    """What a source sample became.

    Attributes:
        digest: of the source sample; see `prep.build.source`.
        parts: its stored samples, several where it is cut into windows; or the one that is quarantined.
        kept: where an update knows the digest: its line, over all splits; the set before holds what it became.
    """

    digest: str
    parts: tuple[EncodedSample | BadSample, ...] = ()
    kept: int | None = None


def encode_sample(job: Job, split: str, sample: RawSample) -> EncodedSource:
    """Encode a sample at all scales, or say why it cannot be used; or only that the set before has it."""
    source = source_of(job, split, sample)
    if job.known is not None and (line := job.known.find(source.digest)) is not None:
        return EncodedSource(source.digest, kept=line)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd EXIF and the like: the pixels are what counts
            return EncodedSource(source.digest, tuple(_encode(job, split, source)))
    except (SampleError, SettingsError) as error:  # SettingsError: a key that tar headers cannot hold
        reason = printable(str(error).removeprefix(_prefix(job, sample)))
        return EncodedSource(source.digest, (BadSample(printable(sample.key), split, source.name, reason),))


def source_of(job: Job, split: str, sample: RawSample) -> Source:
    """A sample as it lies on disk now, and its digest."""
    return read_source(job.root, split, sample, _prefix(job, sample), FULL in job.scales and not job.weak)


def _prefix(job: Job, sample: RawSample) -> str:
    """What names a sample in errors."""
    return f"{job.reader.name} {sample.key}: "


def _encode(job: Job, split: str, source: Source) -> list[EncodedSample]:
    sample = source.sample
    if source.image is None:
        raise SampleError(str(sample.problem))
    check_key(sample.key)
    data = source.image.data()
    image = decode_source(data, source.image.where)
    label = _decode_label(job, source, image)
    meta = {**sample.meta, "split": split, "source": source.name}
    if label is None or not job.weak:
        hard, tally = (label.hard, label.tally) if label else (None, {})
        view = View(sample.key, image, data, hard, _decode_instances(job, source, hard), sample.weak, meta)
        return [_encode_view(job, view, tally)]
    views = _weak_views(sample.key, image, data, label.hard, meta, job.weak_crop)
    return [_encode_view(job, view, {} if number else label.tally) for number, view in enumerate(views)]


def _weak_views(
    key: str, source: SourceImage, data: bytes, hard: UInt16, meta: dict[str, Any], crop: int | None
) -> Iterator[View]:
    """An image whose label has become the set of its classes; or its windows, each with its own."""
    if crop is None:
        yield View(key, source, data, None, None, shown_classes(hard), meta)
        return
    for window in windows(hard.shape[0], hard.shape[1], crop):
        pixels = np.ascontiguousarray(source.pixels[window.slices])
        place = [window.top, window.left, window.height, window.width]
        part = SourceImage(pixels, source.suffix, plain=False)
        tags = shown_classes(hard[window.slices])
        yield View(f"{key}/{window.top}_{window.left}", part, b"", None, None, tags, {**meta, "window": place})


def _encode_view(job: Job, view: View, tally: Mapping[str, int]) -> EncodedSample:
    blocks, mixed = [], []
    meta = _meta(view)
    for scale in job.scales:
        if scale == FULL:
            members, counts = _full_members(job, view), (0, 0)
        else:
            members, counts = _scaled_members(job, view.source, view.hard, scale)
        members["json"] = encode_meta(meta | {"scale": str(scale)})
        blocks.append(Blocks(sample_blocks(view.key, members), {name: len(part) for name, part in members.items()}))
        mixed.append(counts)
    pixels = _count_pixels(view.hard, len(job.reader.classes))
    return EncodedSample(view.key, tuple(blocks), pixels, tuple(mixed), view.weak or (), tally)


def _decode_label(job: Job, source: Source, image: SourceImage) -> DecodedLabel | None:
    if source.label is None:
        return None
    where = source.label.where
    found = job.reader.decode_label(source.label.data(), where, source.sample.facts)
    label = found if isinstance(found, DecodedLabel) else DecodedLabel(found)
    hard = label.hard
    if hard.shape != image.pixels.shape[:2]:
        (height, width), (rows, columns) = image.pixels.shape[:2], hard.shape
        raise SampleError(f"{where}: label is {columns}x{rows} pixels, its image is {width}x{height}")
    return label


def _decode_instances(job: Job, source: Source, hard: UInt16 | None) -> UInt16 | None:
    """The instance map; only scale 1 stores it, so it is not read without that scale."""
    if source.instances is None or hard is None:
        return None
    return job.reader.decode_instances(source.instances.data(), hard, source.instances.where)


def _full_members(job: Job, view: View) -> dict[str, bytes]:
    """Members at scale 1: the source's bytes as they are where nothing about its pixels changes."""
    if job.image_format.kind == "keep" and view.source.plain:
        members = {view.source.suffix: view.data}
    else:
        members = _image_member(job, view.source, view.source.pixels)
    if view.hard is not None:
        members["seg.png"] = encode_hard(view.hard, len(job.reader.classes))
    if view.instances is not None:
        members["inst.png"] = encode_instances(view.instances)
    return members


def _scaled_members(
    job: Job, source: SourceImage, hard: UInt16 | None, scale: Scale
) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Members at any other scale, and (mixed cells, cells)."""
    height, width = scale.size(source.pixels.shape[0], source.pixels.shape[1], job.filter)
    if height * width > MAX_PIXELS:
        raise SampleError(f"{width}x{height} pixels at scale {scale} are more than the cap of {MAX_PIXELS}")
    members = _image_member(job, source, resize_image(source.pixels, scale, job.filter))
    if hard is None:
        return members, (0, 0)
    soft = soften(hard, scale, job.filter)
    members["soft.npz"] = encode_soft(soft)
    return members, (len(soft.cells), soft.base.size)


def _image_member(job: Job, source: SourceImage, pixels: NDArray[np.uint8]) -> dict[str, bytes]:
    form = job.image_format.for_source(source.suffix)
    return {{"jpeg": "jpg"}.get(form.kind, form.kind): encode_image(pixels, form)}


def _meta(view: View) -> dict[str, Any]:
    """What every scale's json member holds, the scale aside."""
    size = [int(n) for n in view.source.pixels.shape[:2]]
    weak = {} if view.weak is None else {"weak": list(view.weak)}
    return {**view.meta, "key": view.key, "size": size, **weak}


def _count_pixels(hard: UInt16 | None, classes: int) -> dict[int, int]:
    """{class index: pixels}, void under IGNORE."""
    if hard is None:
        return {}
    counts = np.zeros(classes, np.int64)
    rows = max(1, _EXACT // hard.shape[1])
    for y in range(0, hard.shape[0], rows):
        counts += cv2.calcHist([hard[y : y + rows]], [0], None, [classes], [0, classes]).ravel().astype(np.int64)
    found = {int(index): int(counts[index]) for index in np.flatnonzero(counts)}
    void = hard.size - int(counts.sum())
    return found | {IGNORE: void} if void else found
