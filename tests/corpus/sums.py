"""Checksums of samples in a tar index: turned bits in them, lies about them; lengths that agree on gigabytes."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.corpus.bases import Bases
from tests.corpus.case import Case, change, flip, put
from tests.corpus.forge import BLOCK, END, load, reseal, spans, store

Rows = list[dict[str, Any]]
KIND = "checksums of samples"


def cases(bases: Bases) -> Iterator[Case]:
    for base in ("jpeg", "webp"):
        for scale in ("1", "1-2"):
            path = bases.tars(base, scale=scale)[0]
            yield from _flips(bases, base, path)
            yield from _lies(base, path)
            yield from _kept(bases, base, path)
    yield from _lengths(bases.tars("jpeg")[0])


def _index(path: str) -> str:
    return path.replace(".tar", ".index.jsonl")


def _flips(bases: Bases, base: str, path: str) -> Iterator[Case]:
    """Turned bits in the name and in the digits of each checksum."""
    index = _index(path)
    draw = random.Random(f"sums {base} {path}")
    for found in re.finditer(rb'"crc32":\d+', (bases[base] / index).read_bytes()):
        for at in sorted(draw.sample(range(found.start(), found.end()), 6)):
            bit = draw.randrange(8)

            def damage(folder: Path, at: int = at, bit: int = bit) -> None:
                change(folder / index, lambda data: flip(data, at, bit))

            yield Case(f"sums/flip/{base}/{index}/{at}.{bit}", "bit flips: sample checksums", base, damage, (index,))


def _set(value: object) -> Callable[[Rows], object]:
    return lambda rows: rows[0].update(crc32=value)


def _all(rows: Rows) -> None:
    for row in rows:
        del row["crc32"]


LIES: dict[str, Callable[[Rows], object]] = {
    "one more": lambda rows: rows[0].update(crc32=(rows[0]["crc32"] + 1) % 2**32),
    "zero": _set(0),
    "2^32": _set(1 << 32),
    "10^30": _set(10**30),
    "negative": _set(-1),
    "fraction": _set(1.5),
    "text": _set("12"),
    "true": _set(True),
    "list": _set([1]),
    "null": _set(None),
    "gone": lambda rows: rows[0].pop("crc32"),
    "of the next sample": lambda rows: rows[0].update(crc32=rows[1]["crc32"]),
}


def _lies(base: str, path: str) -> Iterator[Case]:
    """The manifest vouches for an index that says something else of a sample than its bytes do."""
    index = _index(path)
    for what, lie in {**LIES, "all gone: a set of before": _all}.items():

        def damage(folder: Path, lie: Callable[[Rows], object] = lie) -> None:
            rows = _rows(folder / index)
            lie(rows)
            _write(folder / index, rows)
            reseal(folder)

        harmless = what.startswith("all gone")
        yield Case(f"sums/lie/{what}/{base}/{index}", KIND, base, damage, (path, index), harmless=harmless)


def _kept(bases: Bases, base: str, path: str) -> Iterator[Case]:
    """Manifest and shard agree on damage within a sample, which the checksum in the index knows nothing of."""
    found = spans((bases[base] / path).read_bytes())
    draw = random.Random(f"kept {base} {path}")
    for name, start, size in found:
        at = start + BLOCK + draw.randrange(size)

        def damage(folder: Path, at: int = at) -> None:
            change(folder / path, lambda data: flip(data, at, 3))
            reseal(folder)

        yield Case(f"sums/kept/{base}/{path}/{name}", KIND, base, damage, (path, _index(path)))


def _lengths(path: str) -> Iterator[Case]:
    """Offsets that follow each other and claim gigabytes; once the file is as long as they say, and empty."""
    members = {
        "2 GB a sample": {"jpg": (1 << 31) - 1, "json": 10},
        "14 GB a sample": dict.fromkeys(("jpg", "seg.png", "inst.png", "soft.npz", "json"), (1 << 31) - 1),
        "700 MB a sample": {"jpg": 700 << 20, "json": 10},
    }
    for what, sizes in members.items():
        for sparse in (False, True) if what.startswith("700 MB") else (False,):  # verify takes its time to hash GBs

            def damage(folder: Path, sizes: dict[str, int] = sizes, sparse: bool = sparse) -> None:
                _claim(folder, path, sizes, sparse)

            name = f"sums/lengths/{what}{', sparse file' if sparse else ''}"
            kind = "bombs and absurd headers: index"
            yield Case(name, kind, "jpeg", damage, (path, _index(path)), sealed=True, bomb=True)


def _claim(folder: Path, path: str, sizes: dict[str, int], sparse: bool) -> None:
    """Write an index that claims `sizes` of each sample, sealed; and a shard that really is so long."""
    rows, at = _rows(folder / _index(path)), 0
    for row in rows:
        row.update(offset=at, members=sizes)
        at += sum(BLOCK + size + -size % BLOCK for size in sizes.values())
    _write(folder / _index(path), rows)
    reseal(folder)
    if sparse:
        put(folder / path, (folder / path).read_bytes()[:BLOCK])
        os.truncate(folder / path, at + len(END))
        manifest = load(folder)
        for shard in manifest["splits"]["train"]["scales"]["1"]["shards"]:
            shard["bytes"] = at + len(END) if shard["path"] == path else shard["bytes"]
        store(folder, manifest)


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _write(path: Path, rows: Rows) -> None:
    lines = (json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows)
    put(path, "".join(lines).encode())
