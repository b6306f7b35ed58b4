"""Files that are gone, or are something else: empty, a folder, a pipe, a link, without permission."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.corpus.bases import Bases
from tests.corpus.case import Case, put


def cases(bases: Bases) -> Iterator[Case]:
    for base in ("jpeg", "zarr"):
        for short in bases.files(base):
            for what, how in WAYS.items():

                def damage(folder: Path, short: str = short, how: Callable[[Path], object] = how) -> None:
                    how(folder / short)

                kind = (
                    "links" if "link" in what else "pipes and devices" if what in ODD else "missing or replaced files"
                )
                unvouched = short == "stats.json" or (short == "manifest.json" and "same bytes" in what)
                yield Case(f"place/{what}/{base}/{short}", kind, base, damage, (short,), unvouched=unvouched)
    yield from _folders(bases)


def _emptied(path: Path) -> None:
    put(path, b"")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return link


def _link_outside(path: Path) -> None:
    """A link to the same bytes outside: nothing differs but where they lie."""
    root = _root(path)
    outside = root.with_name(f"{root.name}.outside-{path.name}")
    put(outside, path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def _root(path: Path) -> Path:
    """The set's folder."""
    return next(p for p in path.parents if (p / "README.md").exists() and (p / "manifest.json").exists())


WAYS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": _emptied,
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to a device": _link_to("/dev/zero"),
    "a link to nowhere": _link_to("nowhere/at/all"),
    "a link in a circle": lambda path: _link_to(path.name)(path),
    "a link to the same bytes outside": _link_outside,
}
ODD = ("a pipe",)


def _folders(bases: Bases) -> Iterator[Case]:
    """Whole folders gone or in another's place."""
    for base in ("jpeg", "zarr"):
        folders = sorted(p for p in bases[base].rglob("*") if p.is_dir())
        for path in folders:
            short = path.relative_to(bases[base]).as_posix()

            def gone(folder: Path, short: str = short) -> None:
                shutil.rmtree(folder / short)

            def blocked(folder: Path, short: str = short) -> None:
                shutil.rmtree(folder / short)
                (folder / short).write_bytes(b"")

            yield Case(f"place/folder gone/{base}/{short}", "missing or replaced files", base, gone, (short,))
            yield Case(f"place/folder is a file/{base}/{short}", "missing or replaced files", base, blocked, (short,))
