"""Tar, index and manifest as a liar writes them. Independent of `shards.tar`: headers are laid out here by hand."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.corpus.case import put

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Part:
    """A member of a tar.

    Attributes:
        name, data: what it is called and holds.
        fields: header fields that differ from what an honest writer would put there, by name (see FIELDS).
        broken_sum: keep a header checksum that is wrong.
    """

    name: bytes
    data: bytes
    fields: dict[str, bytes] = field(default_factory=dict)
    broken_sum: bool = False

    @property
    def key(self) -> str:
        return self.name.decode().partition(".")[0]

    @property
    def suffix(self) -> str:
        return self.name.decode().partition(".")[2]

    def block(self) -> bytes:
        """Header, data and padding."""
        return header(self) + self.data + bytes(-len(self.data) % BLOCK)


FIELDS = {  # name -> (offset, bytes) of a USTAR header
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "chksum": (148, 8),
    "typeflag": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 6),
    "version": (263, 2),
    "uname": (265, 32),
    "gname": (297, 32),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
    "pad": (500, 12),
}


def header(part: Part) -> bytes:
    """The 512 bytes before a member's data."""
    values = {
        "name": part.name, "mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0",
        "size": b"%011o\0" % len(part.data), "mtime": b"%011o\0" % 0, "chksum": b" " * 8, "typeflag": b"0",
        "magic": b"ustar\0", "version": b"00", "devmajor": b"0000000\0", "devminor": b"0000000\0",
    } | part.fields  # fmt: skip
    out = bytearray(BLOCK)
    for name, value in values.items():
        at, size = FIELDS[name]
        out[at : at + size] = value[:size].ljust(size, b"\0")
    if "chksum" not in part.fields and not part.broken_sum:
        out[148:156] = b"%06o\0 " % sum(out)
    return bytes(out)


def parts_of(tar: bytes) -> list[Part]:
    """The members of a sound shard."""
    parts, at = [], 0
    while tar[at] != 0:
        size = int(tar[at + 124 : at + 135], 8)
        name = tar[at : at + 100].rstrip(b"\0")
        parts.append(Part(name, tar[at + BLOCK : at + BLOCK + size]))
        at += BLOCK + size + -size % BLOCK
    return parts


def spans(tar: bytes) -> list[tuple[str, int, int]]:
    """(name, start of the header, bytes of data) of each member of a sound shard."""
    found, at = [], 0
    for part in parts_of(tar):
        found.append((part.name.decode(), at, len(part.data)))
        at += BLOCK + len(part.data) + -len(part.data) % BLOCK
    return found


def joined(parts: Sequence[Part]) -> bytes:
    """A whole tar."""
    return b"".join(part.block() for part in parts) + END


def edit_part(path: Path, number: int, how: Callable[[Part], Part]) -> None:
    """Change one member of a tar; its index stays as it was."""
    parts = parts_of(path.read_bytes())
    parts[number] = how(parts[number])
    put(path, joined(parts))


def forge_member(folder: Path, tar: str, suffix: str, data: bytes, sample: int = 0) -> None:
    """Give a member other bytes, and make index and manifest fit: only decoding can find it."""
    parts = parts_of((folder / tar).read_bytes())
    (number,) = [i for i, p in enumerate(parts) if p.suffix == suffix and p.key == keys_of(parts)[sample]]
    parts[number] = replace(parts[number], data=data)
    write_sealed(folder, tar, parts)


def keys_of(parts: Sequence[Part]) -> list[str]:
    """Keys of a tar's samples, in order."""
    return list(dict.fromkeys(part.key for part in parts))


def write_sealed(folder: Path, tar: str, parts: Sequence[Part]) -> None:
    """Write a tar with an index that says what lies where, and a manifest that vouches for both."""
    put(folder / tar, joined(parts))
    rows: list[dict[str, Any]] = []
    at = 0
    for part in parts:
        if not rows or rows[-1]["key"] != part.key or part.suffix in rows[-1]["members"]:
            rows.append({"key": part.key, "offset": at, "members": {}})
        block = part.block()
        rows[-1]["members"][part.suffix] = len(part.data)
        rows[-1]["crc32"] = zlib.crc32(block, rows[-1].get("crc32", 0))
        at += len(block)
    text = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows)
    put(folder / tar.replace(".tar", ".index.jsonl"), text.encode())
    reseal(folder, {tar: len(rows)})


def load(folder: Path) -> dict[str, Any]:
    """The manifest as plain JSON."""
    value: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return value


def store(folder: Path, manifest: dict[str, Any], seal: bool = True) -> None:
    """Write a manifest, with a digest that fits unless told otherwise."""
    if seal:
        plain = {name: value for name, value in manifest.items() if name != "digest"}
        manifest = {**plain, "digest": hashlib.sha256(canonical(plain)).hexdigest()}
    put(folder / "manifest.json", canonical(manifest))


def canonical(value: Any) -> bytes:
    """The manifest's own layout."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def records(manifest: Any) -> list[dict[str, Any]]:
    """Every part of a manifest that vouches for a file."""
    if isinstance(manifest, list):
        return [found for value in manifest for found in records(value)]
    if not isinstance(manifest, dict):
        return []
    own = [manifest] if {"path", "bytes", "sha256"} <= set(manifest) else []
    return own + [found for value in manifest.values() for found in records(value)]


def reseal(folder: Path, samples: dict[str, int] | None = None) -> None:
    """Make the manifest vouch for the files as they are now.

    Args:
        samples: {tar: how many samples it now holds}.
    """
    manifest = load(folder)
    for record in records(manifest):
        path = folder / record["path"]
        if path.is_file():
            data = path.read_bytes()
            record["bytes"], record["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        if record["path"] in (samples or {}):
            record["samples"] = (samples or {})[record["path"]]
    for split in manifest["splits"].values():
        for scale in split["scales"].values():
            if scale["shards"]:
                scale["groups"] = [shard["samples"] for shard in scale["shards"]]
        split["samples"] = max(sum(scale["groups"]) for scale in split["scales"].values())
    store(folder, manifest)
