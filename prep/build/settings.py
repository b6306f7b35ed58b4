"""What a build was asked to do, and how two builds' settings are compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from shards.errors import SettingsError
from shards.scale import FILTERS, Scale
from shards.shardfile import CHECKSUMS, CUT

Format = Literal["webdataset", "zarr"]
FORMATS: tuple[Format, ...] = ("webdataset", "zarr")
MB = 1_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LIBRARIES = ("segshards", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "zarr")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a build's bytes, `root` and `out` aside.

    Attributes:
        root: the raw dataset's folder; not part of the identity, so that a dataset may move.
        splits: names, or () for all that are there.
        scales: distinct, largest first.
        filter: box, bilinear or triangle.
        format: webdataset or zarr.
        shard_size: most bytes of a shard; see `shards.shardfile.starts_shard` for where it ends.
        image_format: keep, jpeg:Q, png or webp.
        limit: first samples of each split, or None for all.
        options: the reader's own options as (name, value), sorted.
        weak: store image-level labels instead of pixel labels.
        weak_crop: pixels; cut images into windows of this size and label each; only with `weak`.
    """

    dataset: str
    root: Path
    splits: tuple[str, ...] = ()
    scales: tuple[Scale, ...] = Scale.parse_many("1,1/2,1/4,1/8")
    filter: str = "box"
    format: Format = "webdataset"
    shard_size: int = 256 * MB
    image_format: str = "keep"
    limit: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    weak: bool = False
    weak_crop: int | None = None

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise SettingsError(f"filter '{self.filter}' is not known: expected one of {', '.join(FILTERS)}")
        if self.format not in FORMATS:
            raise SettingsError(f"format '{self.format}' is not known: expected one of {', '.join(FORMATS)}")
        if self.shard_size < 1:
            raise SettingsError(f"shard size of {self.shard_size / MB:g} MB found: expected more than 0, such as 256")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit {self.limit} found: expected at least 1 sample a split")
        if self.weak_crop is not None and (self.weak_crop < 16 or not self.weak):
            raise SettingsError(
                f"--weak-crop {self.weak_crop} found: expected at least 16 pixels, together with --weak"
            )
        for scale in self.scales:
            scale.size(64, 64, self.filter)  # box refuses scales other than 1/k

    def to_dict(self, splits: tuple[str, ...], listing: str) -> dict[str, Any]:
        """The identity of a build as JSON values; kept in the journal and in the manifest.

        Args:
            splits: the splits that are built, resolved.
            listing: digest of the sample list (keys and file sizes).
        """
        return {
            "dataset": self.dataset,
            "splits": list(splits),
            "scales": [str(scale) for scale in self.scales],
            "filter": self.filter,
            "format": self.format,
            "shard_size_mb": self.shard_size / MB,
            "image_format": self.image_format,
            "limit": self.limit,
            "source_listing": listing,
            **({"options": dict(self.options)} if self.options else {}),
            **({"weak": "images" if self.weak_crop is None else f"windows of {self.weak_crop}"} if self.weak else {}),
        }


def library_versions() -> dict[str, str]:
    """Versions of all that turns pixels into bytes: an interrupted build only continues under the same ones."""
    found = {"shard cut": CUT, "sample checksums": CHECKSUMS}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def digest_of(value: Any) -> str:
    """sha256 hex digest of a JSON value's canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """ "filter box -> triangle, limit 8 -> none"; "" where the settings are equal."""
    old, new = _flat(old), _flat(new)
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    chosen = [name for name in names if name != "source_listing"]
    if names and not chosen:
        return "the source's files (samples added, removed or changed in size since)"
    return ", ".join(f"{name} {_text(old.get(name))} -> {_text(new.get(name))}" for name in chosen)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The reader's options, and what else decides its bytes, beside the other settings."""
    nested = ("options", "reader")
    flat = {name: value for name, value in settings.items() if name not in nested}
    return flat | {inner: value for name in nested for inner, value in (settings.get(name) or {}).items()}


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}..."
    return f"{value:g}" if isinstance(value, float) else str(value)
