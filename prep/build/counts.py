"""What a build counts as it goes: pixels and images of each class, mixed cells at each scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prep.build.encode import EncodedSample
from shards.scale import Scale


@dataclass
class Counts:
    """Sums over samples of one split. Void counts under class index 65535 (IGNORE).

    Attributes:
        samples: usable samples.
        pixels: {class index: pixels at scale 1}.
        images: {class index: images that show it, by their pixels or by their image-level labels}.
        mixed: {scale: [cells of more than one class, cells]}.
        tally: what the dataset's reader counted.
    """

    samples: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    mixed: dict[str, list[int]] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, samples: Iterable[EncodedSample], scales: Sequence[Scale]) -> Counts:
        """Count encoded samples."""
        counts = cls()
        for sample in samples:
            counts.samples += 1
            counts.pixels.update(sample.pixels)
            counts.images.update(sample.pixels.keys() | set(sample.weak))
            counts.tally.update(sample.tally)
            for scale, (mixed, cells) in zip(scales, sample.mixed, strict=True):
                if cells:
                    counts._add_cells(str(scale), mixed, cells)
        return counts

    def add(self, other: Counts) -> None:
        """Add another split's or chunk's sums."""
        self.samples += other.samples
        self.pixels.update(other.pixels)
        self.images.update(other.images)
        self.tally.update(other.tally)
        for scale, (mixed, cells) in other.mixed.items():
            self._add_cells(scale, mixed, cells)

    def _add_cells(self, scale: str, mixed: int, cells: int) -> None:
        entry = self.mixed.setdefault(scale, [0, 0])
        entry[0] += mixed
        entry[1] += cells

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` reads it back."""
        return {
            "samples": self.samples,
            "pixels": {str(index): count for index, count in sorted(self.pixels.items())},
            "images": {str(index): count for index, count in sorted(self.images.items())},
            "mixed": self.mixed,
            **({"tally": dict(sorted(self.tally.items()))} if self.tally else {}),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Counts:
        """Read what `to_dict` wrote."""
        return cls(
            int(value["samples"]),
            Counter({int(index): int(count) for index, count in value["pixels"].items()}),
            Counter({int(index): int(count) for index, count in value["images"].items()}),
            {scale: [int(n) for n in pair] for scale, pair in value["mixed"].items()},
            Counter({str(what): int(count) for what, count in value.get("tally", {}).items()}),
        )
