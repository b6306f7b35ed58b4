"""Files that end too early, at and within members, or go on for too long."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tests.corpus.bases import Bases
from tests.corpus.case import Case, change
from tests.corpus.forge import BLOCK, END, spans


def cases(bases: Bases) -> Iterator[Case]:
    for base in ("jpeg", "webp"):
        for scale in ("1", "1-2"):
            for path in bases.tars(base, scale=scale):
                yield from _tar(bases, base, path)
    yield from _others(bases)


def _cut(base: str, kind: str, path: str, length: int, what: str) -> Case:
    def damage(folder: Path) -> None:
        change(folder / path, lambda data: data[:length])

    return Case(f"cut/{what}/{base}/{path}/{length}", kind, base, damage, (path,))


def _tar(bases: Bases, base: str, path: str) -> Iterator[Case]:
    tar = (bases[base] / path).read_bytes()
    draw = random.Random(f"{base} {path}")
    for _, start, size in spans(tar):
        yield _cut(base, "truncated at a member's start", path, start, "boundary")
        yield _cut(base, "truncated within a header", path, start + draw.randrange(1, BLOCK), "header")
        yield _cut(base, "truncated after a header", path, start + BLOCK, "after header")
        for _ in range(2):
            yield _cut(base, "truncated within data", path, start + BLOCK + draw.randrange(size), "data")
        yield _cut(base, "truncated before the padding", path, start + BLOCK + size, "padding")
    for length in (len(tar) - 2 * BLOCK, len(tar) - BLOCK, len(tar) - 1):
        yield _cut(base, "truncated in the end mark", path, length, "end mark")
    more = {"zeros": bytes(BLOCK), "noise": draw.randbytes(700), "a byte": b"x", "another tar": tar, "end": END}
    for what, data in more.items():

        def damage(folder: Path, data: bytes = data) -> None:
            change(folder / path, lambda old: old + data)

        yield Case(f"append/{what}/{base}/{path}", "bytes appended to a tar", base, damage, (path,))


def _others(bases: Bases) -> Iterator[Case]:
    """Everything that is no tar: cut to half, by one byte, to nothing; and added to."""
    for base in ("jpeg", "zarr"):
        for short in bases.files(base):
            if short.endswith(".tar"):
                continue
            size = (bases[base] / short).stat().st_size
            unvouched = short == "stats.json"
            for length in sorted({0, size // 2, size - 1}):
                case = _cut(base, "other files truncated", short, length, "file")
                yield Case(case.name, case.kind, base, case.damage, case.files, unvouched=unvouched)
            for what, data in (("newline", b"\n"), ("noise", b"\x00\xffnoise")):

                def damage(folder: Path, short: str = short, data: bytes = data) -> None:
                    change(folder / short, lambda old: old + data)

                name = f"append/{what}/{base}/{short}"
                yield Case(name, "bytes appended to other files", base, damage, (short,), unvouched=unvouched)
