"""<split>/sources.jsonl: what each source sample was and became, so that an update encodes only what has changed.

    ["vFq3h1QmZ0K2n0yq2v5p4w",1,{"0":1204,"3":88},{},[37,240]]

One line a source sample, in the order of the source: its digest (`prep.build.source`), how many stored samples it gave
(0: it is quarantined), and what the statistics count of these: pixels of each class; images that show a class, beyond
one for each class with pixels; mixed cells and cells at each scale; what the reader counted. Empty ends are left out.
Published with the set and vouched for by its manifest; equal for equal source and settings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.build.counts import Counts
from prep.build.source import DIGEST_TEXT
from shards.errors import FormatError
from shards.scale import Scale
from shards.shardfile import HashingFile

SOURCES = "sources.jsonl"


def building_name(split: str) -> str:
    """Name of a split's file in the build folder."""
    return f"{split}-{SOURCES}"


def encode_line(digest: str, counts: Counts, scales: Sequence[Scale]) -> bytes:
    """One line; `decode_line` reads it back."""
    images = {str(index): count for index, count in sorted((counts.images - Counter(counts.pixels.keys())).items())}
    pixels = {str(index): count for index, count in sorted(counts.pixels.items())}
    mixed = [count for scale in scales for count in counts.mixed.get(str(scale), (0, 0))] if counts.mixed else []
    row = [digest, counts.samples, pixels, images, mixed, dict(sorted(counts.tally.items()))]
    while not row[-1] and len(row) > 2:
        row.pop()
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes, scales: Sequence[Scale], where: str | Path, number: int) -> tuple[str, Counts]:
    """(digest, counts) of line `number`, counted from 1; raises FormatError."""
    try:
        row: Any = json.loads(line)
        if not isinstance(row, list) or not 2 <= len(row) <= 6:
            raise ValueError("of another length")
        digest, samples, pixels, images, mixed, tally = row + [{}, {}, [], {}][len(row) - 2 :]
        counts = Counts(int(samples), _counter(pixels), _counter(images), {}, Counter(tally))
        counts.images.update(counts.pixels.keys())
        for at, scale in enumerate(scales if mixed else ()):
            if mixed[2 * at + 1]:
                counts.mixed[str(scale)] = [int(mixed[2 * at]), int(mixed[2 * at + 1])]
        if not isinstance(digest, str) or len(digest) != DIGEST_TEXT:
            raise ValueError("no digest")
        return digest, counts
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise FormatError(where, f"line {number} is not one of a source sample: build again with --fresh") from error


def _counter(value: dict[str, int]) -> Counter[int]:
    return Counter({int(index): int(count) for index, count in value.items()})


@dataclass(frozen=True)
class SourcesRecord:
    """How far a split's file has got: its bytes, and what they hash to."""

    bytes: int
    sha256: str


class SourcesFile(HashingFile):
    """A split's file while it grows."""

    def record(self) -> SourcesRecord:
        """How far it has got."""
        return SourcesRecord(self.length, self.digest.hexdigest())
