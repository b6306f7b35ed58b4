"""The samples of a shard set as plain tar members: what the peers' writers and tar readers start from. No segshards."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

IMAGES = ("jpg", "png")


def tars(shard_set: str | Path, split: str = "train", scale: str = "1") -> list[str]:
    """The shards of a split at a scale, in order."""
    return sorted(str(path) for path in (Path(shard_set) / split / scale).glob("*.tar"))


def encoded(shard_set: str | Path) -> Iterator[tuple[str, bytes, bytes]]:
    """(key, image, label) of every sample in stored order, as encoded bytes."""
    for path in tars(shard_set):
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                if file is not None:
                    found.setdefault(key, {})[suffix] = file.read()
        for key, parts in found.items():
            yield key, next(parts[suffix] for suffix in IMAGES if suffix in parts), parts["seg.png"]
