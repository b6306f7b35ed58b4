"""Scales (1, 1/2, 3/2, ...) and the size that a map takes at one of them.

The size rule, the same for image and label:
- ``box``: a cell covers exactly k x k source pixels; sizes that do not divide get a last, partial cell, so the
  size is ceil(n / k). What a partial cell lacks counts as void on the label side and is left out of the mean on
  the image side. Cropping at multiples of k and reducing twice therefore give what one pass gives.
- ``bilinear`` and ``triangle``: floor(n * p / q + 1/2), at least 1, stretched to fit as torch's ``interpolate`` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from shards.errors import SettingsError

FILTERS = ("box", "bilinear", "triangle")
MAX_FACTOR = 255  # k * k must fit the uint16 weights of a soft label


@dataclass(frozen=True, order=True)
class Scale:
    """A rational share of the source size; compares and hashes by value.

    Args:
        ratio: target size over source size, above 0 and at most 16.
    """

    ratio: Fraction

    @classmethod
    def parse(cls, text: str | int | float | Fraction | Scale) -> Scale:
        """Read ``1``, ``1/4``, ``3/2``, ``0.25``; raises SettingsError for anything else."""
        if isinstance(text, Scale):
            return text
        found = str(text).strip()
        try:
            ratio = Fraction(found) if re.fullmatch(r"[0-9]+(/[0-9]+|\.[0-9]+)?", found) else None
        except ZeroDivisionError:
            ratio = None
        if ratio is None or not Fraction(1, MAX_FACTOR) <= ratio <= 16 or ratio.denominator > 4096:
            raise SettingsError(f"scale {found!r} found; expected a ratio such as 1, 1/2, 1/4 or 3/2 (1/255 to 16)")
        return cls(ratio)

    @classmethod
    def parse_many(cls, text: str) -> tuple[Scale, ...]:
        """Read ``1,1/2,1/4``: distinct scales, largest first; raises SettingsError."""
        scales = [cls.parse(part) for part in text.split(",") if part.strip()]
        if not scales or len(set(scales)) != len(scales):
            raise SettingsError(f"scales {text!r} found; expected distinct ratios such as 1,1/2,1/4")
        return tuple(sorted(scales, reverse=True))

    def __str__(self) -> str:
        return str(self.ratio)

    def __float__(self) -> float:
        return float(self.ratio)

    @property
    def folder(self) -> str:
        """The scale as a folder name: ``1-4`` for 1/4."""
        return str(self.ratio).replace("/", "-")

    @property
    def factor(self) -> int | None:
        """k where the scale is 1/k, else None."""
        return self.ratio.denominator if self.ratio.numerator == 1 else None

    def size(self, height: int, width: int, filter: str) -> tuple[int, int]:
        """(h, w) that a map of height x width pixels takes at this scale; raises SettingsError."""
        check_filter(filter)
        if filter == "box":
            k = self.box_factor()
            return -(-height // k), -(-width // k)
        half = Fraction(1, 2)
        return max(1, int(height * self.ratio + half)), max(1, int(width * self.ratio + half))

    def box_factor(self) -> int:
        """The integer factor that filter ``box`` needs; raises SettingsError for other scales."""
        if self.factor is None:
            raise SettingsError(
                f"scale {self} found with filter box; box needs 1/k: take such a scale, or filter bilinear or triangle"
            )
        return self.factor


def check_filter(filter: str) -> str:
    """Return ``filter`` if it is known, else raise SettingsError."""
    if filter not in FILTERS:
        raise SettingsError(f"filter {filter!r} found; expected one of {', '.join(FILTERS)}")
    return filter
