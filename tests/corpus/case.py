"""A case of the corpus, and how a copy of a base is made and damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.bases import Bases


@dataclass(frozen=True)
class Case:
    """One damage.

    Attributes:
        name: unique, such as "flip/tar header/jpeg/7".
        kind: class of fault, a row of the table.
        base: name of the sound set.
        damage: changes a copy of it; its folder is given.
        files: paths below the set of which verify must name one (file name alone will do); none: any complaint.
        sealed: checksums fit the damage (a lying or broken builder): only what decodes and compares can see it.
        harmless: the samples stay what they were, and verify has nothing to find (proves that nothing cries wolf).
        unvouched: nothing vouches for the file (stats.json holds times), or for what a picture shows, sealed anew:
            verify need not find it.
        bomb: memory is measured.
    """

    name: str
    kind: str
    base: str
    damage: Callable[[Path], object] = field(compare=False)
    files: tuple[str, ...] = ()
    sealed: bool = False
    harmless: bool = False
    unvouched: bool = False
    bomb: bool = False

    def make(self, bases: Bases, folder: Path) -> Path:
        """A damaged copy of the base in `folder`, which must not exist."""
        clone(bases[self.base], folder)
        self.damage(folder)
        return folder


def clone(source: Path, target: Path) -> None:
    """A copy whose files are hard links: damage them with `put` and `change` only."""
    shutil.copytree(source, target, copy_function=os.link)


def put(path: Path, data: bytes) -> None:
    """Replace a file's bytes without touching those of the base."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def change(path: Path, how: Callable[[bytes], bytes]) -> None:
    """Replace a file's bytes by a function of them."""
    put(path, how(path.read_bytes()))


def flip(data: bytes, at: int, bit: int) -> bytes:
    """`data` with one bit turned."""
    out = bytearray(data)
    out[at] ^= 1 << bit
    return bytes(out)
