"""Folders of the same shape side by side (images/, labels/, tags/), gone through one directory at a time.

    for stem, (images, labels) in walk((root / "images", root / "labels")):
        ...                                 # "street/0001", [.../street/0001.jpg], [.../street/0001.png]

Memory follows the largest directory, not the number of files. Linked folders are followed; a link that leads back to
a folder that holds it is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.errors import LayoutError

Folders = tuple[Path | None, ...]
Names = dict[str, list[Path]]  # {stem: files}
Identity = tuple[int, int]  # device and inode


def walk(trees: Sequence[Path | None]) -> Iterator[tuple[str, tuple[list[Path], ...]]]:
    """Every stem below the trees, with its files in each of them.

    Yields:
        The path below the tree without its suffix ("street/0001"), and for each tree the files of that stem, by name.
        Files before subfolders, both sorted. Names that begin with a dot are left out.

    Raises:
        LayoutError: a folder that cannot be listed, a link to a folder that leads nowhere, or a symlink loop.
    """
    above: tuple[frozenset[Identity], ...] = (frozenset(),) * len(trees)
    pending: list[tuple[str, Folders, tuple[frozenset[Identity], ...]]] = [("", tuple(trees), above)]
    while pending:
        prefix, folders, above = pending.pop()
        above = tuple(descend(folder, ids) if folder else ids for folder, ids in zip(folders, above, strict=True))
        listings = [_listing(folder) for folder in folders]
        for stem in sorted({stem for files, _ in listings for stem in files}):
            yield prefix + stem, tuple(files.get(stem, []) for files, _ in listings)
        names = sorted({name for _, below in listings for name in below}, reverse=True)
        pending += [(f"{prefix}{name}/", tuple(below.get(name) for _, below in listings), above) for name in names]


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that begin with a dot; [] where it does not exist."""
    return sorted(_listing(folder)[1]) if folder.is_dir() else []


def _listing(folder: Path | None) -> tuple[Names, dict[str, Path]]:
    """({stem: files}, {name: subfolder}) of one folder."""
    files: Names = {}
    below: dict[str, Path] = {}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder else []
    except OSError as error:
        raise LayoutError(f"{folder} cannot be listed ({error.strerror}): expected a folder that can be read") from None
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if _is_folder(entry) or (entry.is_symlink() and not path.suffix and not path.exists()):
            below[entry.name] = path
        else:
            files.setdefault(path.stem, []).append(path)
    return files, below


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def descend(folder: Path, above: frozenset[Identity]) -> frozenset[Identity]:
    """The folders above what is in `folder`, itself included; LayoutError where it leads back to one of them."""
    try:
        status = folder.stat()
    except OSError as error:
        raise LayoutError(f"{folder} cannot be listed ({error.strerror}): expected a folder that can be read") from None
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise LayoutError(f"{folder} is a symlink that leads back to a folder above it: expected no loop; remove it")
    return above | {identity}
