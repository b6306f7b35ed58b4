"""A folder that appears whole or not at all: it grows beside its place under another name.

    <parent>/.<name>.partial   where it grows
    <parent>/.<name>.lock      held meanwhile; never in the folder itself, which has its name at once when it is whole

What a killed process has left of either is in nobody's way: the next one takes the lock over and clears the folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import SettingsError
from shards.lock import take
from shards.manifest import sync_folder
from shards.published import sync_tree


@contextmanager
def new_set(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` where the block ends well, and is removed where it fails.

    Raises:
        SettingsError: `out` is there already, or another process is making it now.
    """
    check_new(out)
    out = Path(os.path.realpath(out))  # a link to an empty folder: what it leads to is replaced
    with _locked(out):
        check_new(out)  # somebody may have finished it before the lock was ours
        place = out.with_name(f".{out.name}.partial")
        _remove(place)
        place.mkdir()
        try:
            yield place
            check_new(out)
            sync_tree(place)
            place.replace(out)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        sync_folder(out.parent)


def check_new(out: Path) -> None:
    """SettingsError unless `out` is a new or an empty folder, which a finished one can take the place of."""
    real = Path(os.path.realpath(out))
    if real.is_symlink() or (real.is_mount() and not any(real.iterdir())):
        what = "a link in a circle" if real.is_symlink() else "a mount point, which nothing can be renamed to"
        raise SettingsError(
            f"{out} is {what}: expected a new or empty folder; choose another --out, such as one below it"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is there already: expected a new or empty folder; choose another --out")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the right to make `out`; SettingsError where another process does, or where there are no locks."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.with_name(f".{out.name}.lock")
    try:
        handle = take(lock)
    except OSError as error:
        raise SettingsError(
            f"{lock} cannot be locked ({error.strerror}): expected a folder that can be written, on a file system with "
            "locks; choose another --out"
        ) from None
    if handle is None:
        raise SettingsError(f"another seg-shards is making {out} now: wait for it, or choose another --out")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that it is gone
        os.close(handle)


def _remove(place: Path) -> None:
    """What a killed process has left."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
