"""A folder that appears whole or not at all: it grows beside its place under another name."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import SettingsError
from shards.manifest import sync_folder
from shards.published import sync_tree

LOCK = "lock"


@contextmanager
def new_set(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` where the block ends well, and is removed where it fails.

    What a killed process has left is removed by the next one. A lock of the operating system's keeps two apart.

    Raises:
        SettingsError: `out` is there already, or another process is making it now.
    """
    check_new(out)
    out = out.absolute()
    place = out.with_name(f".{out.name}.partial")
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"another seg-shards is making {out} now: wait for it, or choose another --out"
            ) from None
        _empty(place)
        try:
            yield place
            check_new(out)
            _publish(place, out)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def check_new(out: Path) -> None:
    """SettingsError unless `out` is a new or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is there already: expected a new or empty folder; choose another --out")


def _empty(place: Path) -> None:
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _publish(place: Path, out: Path) -> None:
    """Everything to the disk, then one rename."""
    sync_tree(place)
    (place / LOCK).unlink()
    place.replace(out)
    sync_folder(out.parent)
