"""The output folder: whose it is, who may write there now, and what `--fresh` may remove.

A folder is ours when it holds a manifest or the journal of an unfinished build. Anything else in it is foreign, and
nothing foreign is ever touched.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import SegshardsError, SettingsError
from shards.lock import is_at, take

BUILD = ".build"
JOURNAL = "journal.jsonl"
LOCK = "lock"
READY = "ready"  # files that an update moves into place as they are
UPDATE = "update.json"  # what an update has changed; there before the old set is touched
MOVED = "moved"  # nothing is left of the old set but what is ready
_OURS = re.compile(
    r"\.?(manifest\.json|README\.md|stats\.json|quarantine\.jsonl|[a-z]+-audit\.json)(\.tmp)?"
    r"|\.build/.*|[^/]+/sources\.jsonl"
    r"|[^/]+/[0-9]+(-[0-9]+)?/([^/]+-[0-9]{5,}\.(tar|index\.jsonl)|[^/]+\.zarr/.*)"
)


def check_place(out: Path, root: Path) -> None:
    """Refuse places where a build would mix with other things; SettingsError says which."""
    out, root = Path(os.path.realpath(out)), Path(os.path.realpath(root))  # resolve() fails at links in a circle
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file: expected a folder for --out")
    if root.is_relative_to(out):
        raise SettingsError(f"--out {out} holds the raw dataset {root}: choose a folder of its own")
    for parent in out.parents:
        if is_ours(parent):
            raise SettingsError(f"--out {out} lies inside the shard set {parent}: choose a folder of its own")


def is_ours(out: Path) -> bool:
    """Whether a build of ours is in `out`, finished or not."""
    manifest = out / "manifest.json"
    unfinished = any((out / BUILD / name).is_file() for name in (JOURNAL, LOCK))
    return unfinished or (manifest.is_file() and b'"format_version"' in manifest.read_bytes())


def foreign_files(out: Path) -> list[str]:
    """Files in `out` that no build of ours writes; everything, where no build of ours is there."""
    if not out.is_dir():
        return []
    names = sorted(path.relative_to(out).as_posix() for path in _files(out))
    ours = is_ours(out)  # once: it reads the manifest
    return [name for name in names if not (ours and _OURS.fullmatch(name))]


def _files(folder: Path) -> list[Path]:
    """Everything below a folder that is no folder; links count as files."""
    return [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]


def check_no_foreign(out: Path) -> None:
    """SettingsError where `out` holds files that are not a build's."""
    foreign = foreign_files(out)
    if foreign:
        raise SettingsError(
            f"{out} holds files that are not part of a build ({len(foreign)}, such as {foreign[0]}): expected an empty "
            "or new folder; choose another --out"
        )


def clear(out: Path) -> None:
    """Remove a build of ours, finished or not, where `check_no_foreign` found no other file and the lock is held.

    The manifest goes first, so that nothing half-removed looks whole; then the journal, so that nothing half-removed is
    continued.
    """
    (out / "manifest.json").unlink(missing_ok=True)
    (out / BUILD / JOURNAL).unlink(missing_ok=True)
    clear_published(out)
    clear_building(out)


def clear_published(out: Path) -> None:
    """Remove everything but the build folder."""
    for path in sorted(out.iterdir()):
        if path.is_dir() and path.name != BUILD:
            if _files(path):  # empty folders may be anybody's
                shutil.rmtree(path)
        elif path.name != BUILD:
            path.unlink()


def clear_building(out: Path) -> None:
    """Remove what is in the build folder; the lock file stays: it is held."""
    for path in sorted((out / BUILD).iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextmanager
def undisturbed(out: Path) -> Iterator[None]:
    """Look at the folder without its lock: what is missing or odd because another build is at work is told as that."""
    before = _manifest_stamp(out)
    try:
        yield
    except (SegshardsError, OSError):
        if _is_held(out / BUILD / LOCK) or _manifest_stamp(out) != before:
            raise _busy(out) from None
        raise


def _manifest_stamp(out: Path) -> tuple[int, int] | None:
    try:
        found = (out / "manifest.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_held(lock: Path) -> bool:
    try:
        handle = take(lock) if lock.exists() else -1
    except OSError:  # gone meanwhile, read-only, or on a file system without locks
        return False
    if handle is not None and handle >= 0:
        os.close(handle)
    return handle is None


def _busy(out: Path) -> SettingsError:
    return SettingsError(f"another seg-prep is building into {out} now: wait for it, or choose another --out")


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Hold `<out>/.build/` for this process alone and yield it; SettingsError where another build holds it.

    The lock is the operating system's, so it goes with the process, however that ends.
    """
    build = out / BUILD
    created = [path for path in (build, out, *out.parents) if not path.exists()]
    handle = _take(out, created)
    try:
        yield build
    finally:
        if is_at(handle, build / LOCK):
            _remove_unused(build, created)
        os.close(handle)


def _take(out: Path, created: list[Path]) -> int:
    """Make the build folder and lock it; SettingsError where another build holds it, or nobody can."""
    build = out / BUILD
    build.mkdir(parents=True, exist_ok=True)
    try:
        handle = take(build / LOCK)
    except FileNotFoundError:  # the other build ended between our two lines, and took the folder away
        handle = None
    except OSError as error:
        if error.filename is not None:  # the file, not its lock
            raise
        _remove_unused(build, created)
        raise SettingsError(
            f"{out} is on a file system without locks ({error.strerror}): expected one that has them; choose "
            "another --out"
        ) from None
    if handle is None:
        raise _busy(out)
    return handle


def _remove_unused(build: Path, created: list[Path]) -> None:
    """Take away a build folder that holds nothing but its lock: a build that fails at once leaves no trace.

    What a stopped --fresh has left keeps the lock file, which says that it is ours.
    """
    if [path.name for path in build.iterdir()] != [LOCK]:
        return
    if (build.parent / "manifest.json").exists() or (build in created and _files(build.parent) == [build / LOCK]):
        remove_held(build)
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def remove_build_folder(out: Path) -> None:
    """Remove the build folder of a build that is published; not that of an update which has begun to take its place."""
    if (out / BUILD).is_dir():
        with locked(out) as build:
            if (out / "manifest.json").exists():
                remove_held(build)


def remove_held(build: Path) -> None:
    """Remove a build folder whose lock is held.

    The lock goes last: as long as anything else is there, nobody else can hold one. Another build may make its own
    where it was; then the folder is that build's.
    """
    for path in sorted(build.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    (build / LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        build.rmdir()
