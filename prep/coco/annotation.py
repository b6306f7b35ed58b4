"""One annotation of a COCO or LVIS file: its JSON text checked, its mask as runs."""

from __future__ import annotations

import msgspec

from prep.coco.runs import Runs, polygon_runs, rle_runs
from shards.errors import SampleError


class RunLengths(msgspec.Struct, gc=False, frozen=True):
    """COCO's run-length code: counts as compressed text or as numbers; size = (height, width)."""

    counts: str | list[int]
    size: tuple[int, int]


class Annotation(msgspec.Struct, gc=False, frozen=True):
    """What is used of an annotation."""

    id: int
    category_id: int
    segmentation: RunLengths | list[list[float]]
    iscrowd: int = 0


_DECODER = msgspec.json.Decoder(Annotation)


def parse_annotations(data: bytes, where: str) -> list[Annotation]:
    """Annotations as JSON objects one after the other; SampleError where the text is not that."""
    try:
        return _DECODER.decode_lines(data)
    except RecursionError:
        raise SampleError(f"{where}: annotation nested too deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SampleError(f"{where}: not a COCO annotation: {error}") from None


def annotation_runs(annotation: Annotation, height: int, width: int, where: str) -> Runs:
    """The mask of an annotation as runs int32 [n, 2]; SampleError, naming it, where it has none."""
    mask = annotation.segmentation
    if isinstance(mask, list):
        return polygon_runs(mask, height, width, where)
    return rle_runs(mask.counts, mask.size, height, width, where)
