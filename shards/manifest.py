"""The manifest: the commit marker of a shard set, and what vouches for every file in it.

Published last and atomically. Its bytes are canonical (sorted keys, fixed indent) and carry their own digest, so
one flipped bit anywhere is found. Nothing in it is trusted: types, ranges, and that every path stays inside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shards.classes import ClassTable
from shards.errors import FormatError, SettingsError, naming
from shards.scale import Scale, check_filter
from shards.store import Place, Store, open_store

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 28
_LEAST = 512  # bytes of a sample in a tar: one header
_NOT_PLAIN = re.compile(r"[\\:\0]")


def _inside(path: str) -> str:
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or _NOT_PLAIN.search(path):
        raise ValueError(f"path {path!r} leaves the folder or is not plain")
    return path


def _scale(text: str) -> str:
    if str(Scale.parse(text)) != text:
        raise ValueError(f"scale {text!r} is not in lowest terms")
    return text


RelativePath = Annotated[str, AfterValidator(_inside)]
ScaleText = Annotated[str, AfterValidator(_scale)]
Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class File(_Strict):
    """A published file: path below the shard set's folder, bytes, sha256 hex."""

    path: RelativePath
    bytes: Count
    sha256: Digest


class Shard(File):
    """A tar shard, how many samples it holds, and its sample index."""

    samples: Count
    index: File


class ScaleSet(_Strict):
    """One split at one scale.

    Args:
        groups: samples in each shard (webdataset), or in each run that shuffling keeps together (zarr).
        shards: the tar shards, empty for zarr.
        store: the Zarr store's folder, None for webdataset.
        files: the Zarr store's files.
    """

    groups: list[Count]
    shards: list[Shard] = []
    store: RelativePath | None = None
    files: list[File] = []


class Split(_Strict):
    """A split: how many samples, whether they are labelled, and its scales."""

    samples: Count
    labelled: bool
    scales: dict[ScaleText, ScaleSet]


class Manifest(_Strict):
    """What one ``seg-prep`` run publishes; see DESIGN and ``load_manifest``."""

    format_version: Literal[1]
    dataset: Name
    title: str
    source: str
    terms: str
    format: Literal["webdataset", "zarr"]
    filter: Annotated[str, AfterValidator(check_filter)]
    scales: list[ScaleText]
    void: Literal[65535]
    classes: dict[str, list[Any]]
    classes_digest: Digest
    splits: dict[Name, Split]
    settings: dict[str, Any]
    protocol: dict[str, Any]
    files: list[File]
    digest: str = ""

    @property
    def class_table(self) -> ClassTable:
        """The class table, checked when the manifest was read."""
        return ClassTable.from_dict(self.classes)

    def all_files(self) -> list[File]:
        """Every file that the manifest vouches for."""
        files = list(self.files)
        for split in self.splits.values():
            for scale in split.scales.values():
                files += [*scale.shards, *(s.index for s in scale.shards), *scale.files]
        return files


def seal(manifest: Manifest) -> Manifest:
    """The manifest with its digest: sha256 over its canonical JSON without it."""
    return manifest.model_copy(update={"digest": hashlib.sha256(_canonical(manifest, digest=False)).hexdigest()})


def manifest_bytes(manifest: Manifest) -> bytes:
    """The canonical bytes of a sealed manifest."""
    return _canonical(manifest, digest=True)


def publish(manifest: Manifest, folder: Path) -> Manifest:
    """Seal and write ``manifest.json`` atomically (temp name, fsync, rename, fsync of the folder); return it sealed."""
    manifest = seal(manifest)
    publish_bytes(folder / MANIFEST, manifest_bytes(manifest))
    return manifest


def publish_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(temporary), open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_manifest(place: Place | Store) -> Manifest:
    """Read and check the manifest of a shard set: at a folder, at a URL, or of an open store.

    Raises:
        UserError: no manifest there.
        FormatError: another format version, damage, wrong types, paths that leave the folder.
    """
    store = open_store(place)
    return parse_manifest(store.small(MANIFEST, MAX_BYTES), f"{store.name}/{MANIFEST}")


def parse_manifest(data: bytes, where: str | Path) -> Manifest:
    """Check manifest bytes; raises FormatError."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(where, "not JSON: damaged; restore it or build again with --fresh") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if type(version) is int and version != FORMAT_VERSION:
        raise FormatError(
            where, f"format version {version} found; this release reads {FORMAT_VERSION}: upgrade segshards"
        )
    try:
        manifest = Manifest.model_validate(raw)
        table = manifest.class_table
        whole = _is_sealed(manifest, data) and table.digest == manifest.classes_digest
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "top level"
        raise FormatError(where, f"{place}: {first['msg']}; restore it or build again with --fresh") from error
    except SettingsError as error:  # of a class table, a scale or a filter
        raise FormatError(where, f"{error}; restore it or build again with --fresh") from error
    except (ValueError, OverflowError, RecursionError) as error:  # NaN, half a surrogate pair, nested too deep
        raise FormatError(where, "holds values that JSON cannot; restore it or build again with --fresh") from error
    if not whole:
        raise FormatError(where, "does not match its own digest: damaged or edited; restore it or build with --fresh")
    _check_counts(manifest, where)
    return manifest


def _check_counts(manifest: Manifest, where: str | Path) -> None:
    """Counts agree with each other and every split holds every scale in the set's format, else FormatError."""
    if not manifest.splits or not manifest.scales:
        raise FormatError(where, "holds no split or no scale; build again with --fresh")
    for name, split in manifest.splits.items():
        if list(split.scales) != sorted(manifest.scales):
            raise FormatError(where, f"split {name} holds scales {list(split.scales)}; expected {manifest.scales}")
        for scale, part in split.scales.items():
            if (part.store is not None) != (manifest.format == "zarr") or (part.store and part.shards):
                raise FormatError(where, f"split {name} at {scale} is not stored as {manifest.format}")
            shards_fit = part.store is not None or [s.samples for s in part.shards] == part.groups
            if sum(part.groups) != split.samples or not shards_fit:
                raise FormatError(where, f"split {name} at {scale}: sample counts do not add up to {split.samples}")
            if not _hold(part, split.samples):
                raise FormatError(where, f"split {name} at {scale}: files too small for {split.samples} samples")


def _hold(part: ScaleSet, samples: int) -> bool:
    """Whether files of these sizes can hold so many samples: arrays of that length are made before a file is read."""
    if part.store is not None:
        return samples <= sum(file.bytes for file in part.files)  # each has an image and a key, compressed or not
    return all(shard.samples * _LEAST <= shard.bytes for shard in part.shards)


def _is_sealed(manifest: Manifest, data: bytes) -> bool:
    """Whether ``manifest_bytes(seal(manifest)) == data``.

    Laying JSON out is slow in Python, so layout and content are compared apart: the bytes are their own content laid
    out anew, without spaces they are the manifest's, and their digest is that of the lines around its own.
    """
    plain = manifest.model_dump(mode="json")
    content = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    before, mark, rest = data.partition(b'\n "digest": "')  # one space deep: no other key and no text has this line
    digest, _, after = rest.partition(b'",\n')
    if not mark or hashlib.sha256(before + b"\n" + after).hexdigest().encode() != digest:
        return False
    with suppress(msgspec.MsgspecError):
        if msgspec.json.format(data, indent=1) + b"\n" == data and msgspec.json.format(data, indent=-1) == content:
            return True
    return manifest_bytes(seal(manifest)) == data


def _canonical(manifest: Manifest, digest: bool) -> bytes:
    plain = manifest.model_dump(mode="json", exclude=None if digest else {"digest"})
    return json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
