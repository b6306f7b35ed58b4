"""Single turned bits in every kind of file, and in every kind of place of a tar."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tests.corpus.bases import Bases
from tests.corpus.case import Case, change, flip
from tests.corpus.forge import BLOCK, FIELDS, spans

IMAGES = {"jpeg": "jpg", "png": "png", "webp": "webp"}


def cases(bases: Bases) -> Iterator[Case]:
    for base in IMAGES:
        yield from _headers(bases, base)
        yield from _members(bases, base)
    yield from _files(bases)


def _flipped(name: str, kind: str, base: str, path: str, at: int, bit: int, unvouched: bool = False) -> Case:
    def damage(folder: Path) -> None:
        change(folder / path, lambda data: flip(data, at, bit))

    return Case(f"flip/{name}/{base}/{path}/{at}.{bit}", kind, base, damage, (path,), unvouched=unvouched)


def _headers(bases: Bases, base: str) -> Iterator[Case]:
    """`_header_flips`, each once: the draws may hit the same bit."""
    yield from {case.name: case for case in _header_flips(bases, base)}.values()


def _header_flips(bases: Bases, base: str) -> Iterator[Case]:
    """Every field of the first, a middle and the last header of a shard; the padding; the end mark."""
    draw = random.Random(f"headers {base}")
    for scale in ("1", "1-2"):
        path = bases.tars(base, scale=scale)[0]
        tar = (bases[base] / path).read_bytes()
        found = spans(tar)
        for _, start, _ in (found[0], found[len(found) // 2], found[-1]):
            for at, size in FIELDS.values():
                for _ in range(2 if size > 1 else 1):
                    where = start + at + draw.randrange(size)
                    yield _flipped("tar header", "bit flips: tar headers", base, path, where, draw.randrange(8))
        for _, start, size in found:
            pad = -size % BLOCK
            if pad:
                where = start + BLOCK + size + draw.randrange(pad)
                yield _flipped("padding", "bit flips: tar padding", base, path, where, draw.randrange(8))
        for _ in range(4):
            where = len(tar) - 1 - draw.randrange(2 * BLOCK)
            yield _flipped("end mark", "bit flips: tar end mark", base, path, where, draw.randrange(8))


def _members(bases: Bases, base: str) -> Iterator[Case]:
    """Places in the data of every kind of member, its first and last bytes among them."""
    draw = random.Random(f"members {base}")
    for scale in ("1", "1-2"):
        path = bases.tars(base, scale=scale)[-1]
        taken: dict[str, int] = {}
        for name, start, size in spans((bases[base] / path).read_bytes()):
            suffix = name.partition(".")[2]
            count = taken[suffix] = taken.get(suffix, 0) + 1
            if count > 2:
                continue
            kind = f"bit flips: {suffix} data"
            places = {0, 1, 3, size // 2, size - 1, *(draw.randrange(size) for _ in range(28))}
            for at in sorted(places):
                yield _flipped(suffix, kind, base, path, start + BLOCK + at, draw.randrange(8))


def _files(bases: Bases) -> Iterator[Case]:
    """Index, manifest, card, statistics, quarantine; zarr.json, chunks and their shard index."""
    for base in ("jpeg", "zarr"):
        for short in bases.files(base):
            path = bases[base] / short
            if path.suffix == ".tar":
                continue
            data = path.read_bytes()
            draw = random.Random(f"{base} {short}")
            kind, tries = _kind(path, short)
            places = {0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(tries))}
            for at in sorted(places):
                unvouched = path.name == "stats.json"
                yield _flipped(kind, f"bit flips: {kind}", base, short, at, draw.randrange(8), unvouched)


def _kind(path: Path, short: str) -> tuple[str, int]:
    """(kind of file, how many places to try)."""
    if path.name.endswith(".index.jsonl"):
        return "sample index", 12
    if path.name == "manifest.json":
        return "manifest", 60
    if path.name == "zarr.json":
        return "zarr.json", 6
    if ".zarr/" in short:
        return ("zarr offsets" if "/offsets/" in short else "zarr chunks and shard index"), 8
    names = {"README.md": "card", "quarantine.jsonl": "quarantine", "sources.jsonl": "source digests"}
    return names.get(path.name, path.name), 8
