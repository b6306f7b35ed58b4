"""What a manifest says of files that lie in their place: shards, Zarr stores, texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from shards.manifest import File, ScaleSet, Shard, publish_bytes, sync_folder
from shards.shardfile import ShardRecord

QUARANTINE = "quarantine.jsonl"  # the samples that could not be used, and why


def tar_set(records: Sequence[ShardRecord]) -> ScaleSet:
    """Of tar shards in "<split>/<scale folder>"."""
    shards = []
    for r in records:
        index = File(path=f"{r.stream}/{r.index_name}", bytes=r.index_bytes, sha256=r.index_sha256)
        path = f"{r.stream}/{r.name}"
        shards.append(Shard(path=path, bytes=r.bytes, sha256=r.sha256, samples=r.samples, index=index))
    return ScaleSet(groups=[record.samples for record in records], shards=shards)


def zarr_set(folder: Path, stream: str, groups: list[int], known: list[File] | None = None) -> ScaleSet:
    """Of the Zarr store of a stream; `known` are its files where they need not be hashed."""
    store = f"{stream}/{store_name(stream)}"
    files = describe_tree(folder, folder / store) if known is None else known
    return ScaleSet(groups=groups, store=store, files=files)


def store_name(stream: str) -> str:
    """Name of a Zarr store, such as "val-1-4.zarr"; `stream` is "<split>/<scale folder>"."""
    return f"{stream.replace('/', '-')}.zarr"


def describe_tree(folder: Path, root: Path) -> list[File]:
    """Every file below `root`, hashed; paths are relative to `folder`."""
    return [_described(folder, path) for path in sorted(path for path in root.rglob("*") if path.is_file())]


def _described(folder: Path, path: Path) -> File:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return File(path=path.relative_to(folder).as_posix(), bytes=size, sha256=digest)


def publish_file(folder: Path, name: str, data: bytes) -> File:
    """Write a file so that it is there whole or not at all; raises OSError."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(folder / name, data)
    return File(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder`, and itself, durable."""
    for path in (*folder.rglob("*"), folder):
        sync_folder(path)  # fsync works alike on files
