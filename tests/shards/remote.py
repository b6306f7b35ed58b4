"""What tests of remote shard sets share: opening one, and what must come out of it."""

from __future__ import annotations

import shards

TAR = "train/1-2/train-1-2-00001.tar"


def open_half(server, settings, split="train"):
    """The served set at 1/2."""
    return shards.open(server.url, split=split, scale="1/2", cache=settings)


def members_of(folder, split="train", scale="1/2"):
    """The bytes of every sample of a local set."""
    ds = shards.open(folder, split=split, scale=scale)
    return [ds.members(i) for i in range(len(ds))]


def kept(settings):
    """Names in the cache, but for its lock."""
    return sorted(p.name for p in settings.folder.iterdir() if p.name != "lock") if settings.folder.exists() else []
