"""Files of remote shard sets kept on this machine: named by their sha256, bounded, shared by any processes.

    <folder>/<sha256>                a whole file, checked when it came
    <folder>/<sha256>-<bytes>.part   one that is coming; whoever fetches it holds its flock
    <folder>/lock                    flocked while room is made; says how many bytes are taken, at most

A file appears under its name by rename, after fsync, so it is whole or not there. A fetcher that dies lets go of its
lock, and the next one goes on where it stopped. What was used longest ago makes room (by modification times, which
are set at use); a process that has it open reads on. Only names of the forms above are ever touched.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shards.ahead import unwanted
from shards.errors import FormatError, SegshardsError, SettingsError, UserError
from shards.local import MORE_FILES, TOO_MANY, OpenFile, open_file
from shards.lock import is_at
from shards.recent import Recent

if TYPE_CHECKING:
    from shards.manifest import File

FOLDER, GIGABYTES = "SEGSHARDS_CACHE", "SEGSHARDS_CACHE_GB"
DEFAULT_MOST = 64 * 10**9
_NAME = re.compile(r"[0-9a-f]{64}(-(\d+)\.part)?")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ITS_FAULT = (errno.EACCES, errno.EPERM, errno.ENOMEM)  # a file that does not open may be sound
_READ = 1 << 20
_DIGITS = 20
_PAUSE = 0.02  # seconds between looks at a lock that another has


@dataclass(frozen=True)
class CacheSettings:
    """How remote shard sets are read.

    Args:
        folder: of the cache; created when first needed.
        most: bytes that it may take; None: half of what is free there, at most 64 GB.
        timeout: seconds without a byte after which a connection counts as lost.
        retries: connections tried in a row without getting any further, besides the first.
        pause: seconds before the first retry; doubles with each.
    """

    folder: Path
    most: int | None = None
    timeout: float = 30.0
    retries: int = 4
    pause: float = 0.5

    @classmethod
    def of(cls, given: CacheSettings | str | Path | None = None) -> CacheSettings:
        """Settings as they are, of a folder, or of the environment: SEGSHARDS_CACHE, SEGSHARDS_CACHE_GB.

        Raises:
            SettingsError: SEGSHARDS_CACHE_GB is no number above 0, or there is neither SEGSHARDS_CACHE nor a home.
        """
        if isinstance(given, CacheSettings):
            return given
        folder = given or os.environ.get(FOLDER) or _at_home()
        text = os.environ.get(GIGABYTES)
        if not text:
            return cls(Path(folder))
        try:
            most = float(text) * 1e9
        except ValueError:
            most = math.nan
        if not 0 < most < math.inf:
            raise SettingsError(f"{GIGABYTES}={text!r} found; expected a number of gigabytes above 0 such as 50")
        return cls(Path(folder), int(most))


class Part:
    """A file that is coming: grows at its end, is hashed as it grows, and is locked against other fetchers."""

    def __init__(self, path: Path, fd: int, free: Callable[[int], bool]) -> None:
        self.path, self._fd, self._free = path, fd, free
        self.length, self._digest = 0, hashlib.sha256()
        while data := os.pread(fd, _READ, self.length):
            self._digest.update(data)
            self.length += len(data)

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._digest.hexdigest()

    def append(self, data: bytes) -> None:
        """Add bytes; raises OSError, ENOSPC only when nothing else in the cache is left to make room."""
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._fd, view, self.length)
            except OSError as error:
                if error.errno not in _FULL or not self._free(len(view)):
                    raise
                continue
            self._digest.update(view[:written])
            self.length += written
            view = view[written:]

    def restart(self) -> None:
        """Forget what has come."""
        os.ftruncate(self._fd, 0)
        self.length, self._digest = 0, hashlib.sha256()

    def sync(self) -> None:
        """Have the disk keep it."""
        os.fsync(self._fd)


class Cache:
    """The files in one cache folder.

    Args:
        settings: see there.
        release: closes files that were removed and are open here, which take space until then; whether there were any.
    """

    def __init__(self, settings: CacheSettings, release: Callable[[], bool] = lambda: False) -> None:
        self.folder, self._release = settings.folder, release
        self._most = settings.most
        self._failed: Recent[tuple[float, SegshardsError]] = Recent(64)  # when a file was last given up, and why

    def path(self, file: File) -> Path:
        """Where a file lies once it is here."""
        return self.folder / file.sha256

    def open(self, file: File, fetch: Callable[[Part], None]) -> OpenFile:
        """Open a file, which ``fetch`` brings if need be; other threads and processes that want it wait.

        Args:
            file: as the manifest has it.
            fetch: fills a part until it is the file; raises otherwise, and leaves in it what may be gone on from.

        Raises:
            UserError: the file is larger than the cache may be, or the folder is full or cannot be written.
            SegshardsError: what ``fetch`` raises.
        """
        asked = time.monotonic()
        with self._troubles():
            while True:
                found = self.find(file)
                if found is None:
                    found = self._fetched(file, fetch, asked)
                if found is not None:
                    return found

    def find(self, file: File) -> OpenFile | None:
        """Open a file if it is here, and count that as a use. One of the wrong size (a torn disk) is dropped.

        Raises:
            UserError: it cannot be opened here and now.
        """
        path = self.path(file)
        with self._troubles():
            if not path.exists():
                return None
            try:
                found = open_file(path, file.bytes)
            except FormatError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOT_ITS_FAULT:
                    raise error.__cause__ from None
                self.drop(file)
                return None
        with suppress(OSError):  # evicted just now, or another user's: it is open
            os.utime(path)
        return found

    def drop(self, file: File) -> None:
        """Remove a file."""
        self.path(file).unlink(missing_ok=True)

    @property
    def most(self) -> int:
        """Bytes that the cache may take."""
        if self._most is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = sum(size for _, size, _ in self._entries())
            self._most = min(DEFAULT_MOST, (shutil.disk_usage(self.folder).free + used) // 2)
        return self._most

    def _fetched(self, file: File, fetch: Callable[[Part], None], asked: float) -> OpenFile | None:
        """Fetch and publish a file; None where somebody else has done so while we waited for the lock. Where another
        thread has tried since we `asked` (monotonic seconds), its error is ours too: a row of tries takes minutes."""
        if file.bytes > self.most:
            raise UserError(
                f"{file.path} takes {file.bytes / 1e9:.3g} GB, more than the {self.most / 1e9:.3g} GB that the cache "
                f"{self.folder} may hold: set {GIGABYTES} to a few times that"
            )
        path = self.folder / f"{file.sha256}-{file.bytes}.part"
        with self._locked(path) as fd:
            if fd is None:
                return None
            if self.path(file).exists():
                path.unlink()
                return None
            failed = self._failed.get(file.sha256)
            if failed is not None and failed[0] > asked:
                raise copy.copy(failed[1]) from failed[1]
            self._make_room(file.bytes)
            part = Part(path, fd, self._free)
            try:
                fetch(part)
                part.sync()
            except BaseException as error:
                if isinstance(error, SegshardsError) and not unwanted():
                    self._failed.put(file.sha256, (time.monotonic(), error))
                if part.length == 0 or (isinstance(error, OSError) and error.errno in _FULL):
                    path.unlink(missing_ok=True)
                raise
            with self._locked(self.folder / "lock"):  # a listing may miss what is renamed meanwhile
                path.rename(self.path(file))  # not synced: after a power cut the part may be back, whole
            found = OpenFile(self.path(file), os.dup(fd))
            found.proven = True
            return found

    @contextmanager
    def _locked(self, path: Path) -> Iterator[int | None]:
        """A file's descriptor, locked; None where it was renamed or removed before the lock was ours."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not _taken(fd):
                if unwanted():
                    raise UserError(f"stopped while another process or thread was at work in the cache {self.folder}")
                time.sleep(_PAUSE)
            yield fd if is_at(fd, path) else None
        finally:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor too
            os.close(fd)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago until all fits, parts at the size that they are going to have.

        All processes add what they fetch to one figure, in the lock's file. It only ever says too much (files go
        without being taken off), and the folder is looked through when it passes the cap.
        """
        with self._locked(self.folder / "lock") as fd:
            if fd is None:  # the folder has just been cleared by hand
                return
            taken = _noted(fd)
            if taken is not None and taken + size <= self.most:
                _note(fd, taken + size)
                return
            entries = self._entries()
            total = sum(size for _, size, _ in entries)
            _note(fd, total - self._evict(entries, total - self.most))

    def _free(self, size: int) -> bool:
        """Remove so many bytes, since the disk is full; False where there is nothing to remove."""
        with self._locked(self.folder / "lock"):
            return self._release() or self._evict(self._entries(), size) > 0

    def _evict(self, entries: list[tuple[float, int, str]], excess: int) -> int:
        """Remove entries of ``excess`` bytes together, those used longest ago first; the bytes that are gone."""
        removed = 0
        for _, size, name in sorted(entries):
            if removed >= excess:
                break
            if self._remove(name):
                removed += size
        return removed

    def _entries(self) -> list[tuple[float, int, str]]:
        """(last use, bytes, name) of what the cache holds."""
        found = []
        with os.scandir(self.folder) as listing:
            for entry in listing:
                match = _NAME.fullmatch(entry.name)
                if not match:
                    continue
                with suppress(FileNotFoundError):
                    state = entry.stat(follow_symlinks=False)
                    found.append((state.st_mtime, int(match[2] or state.st_size), entry.name))
        return found

    def _remove(self, name: str) -> bool:
        """Remove an entry, unless it is a part that somebody is fetching."""
        import fcntl

        path = self.folder / name
        if not name.endswith(".part"):
            path.unlink(missing_ok=True)
            return True
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """Say on one line what the operating system has against the folder."""
        try:
            yield
        except OSError as error:
            remedy = "free space there" if error.errno in _FULL else "make it writable"
            remedy = f"{remedy}, or set {FOLDER} to another place"
            remedy = MORE_FILES if error.errno in TOO_MANY else remedy
            raise UserError(f"the cache {self.folder} cannot be used ({error.strerror}): {remedy}") from error


def _taken(fd: int) -> bool:
    """Lock a file, unless another holder has it."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _at_home() -> Path:
    """Where the cache lies unless somebody says so."""
    try:
        return Path.home() / ".cache" / "segshards"
    except RuntimeError as error:  # a container's user that nobody knows
        raise SettingsError(
            f"no home folder found for a cache: set {FOLDER} to a folder that can be written"
        ) from error


def _noted(fd: int) -> int | None:
    """What the lock's file says is taken; None where it says nothing that can be believed."""
    text = os.pread(fd, _DIGITS + 1, 0)
    return int(text) if len(text) == _DIGITS and text.isdigit() else None


def _note(fd: int, taken: int) -> None:
    """Have the lock's file say what is taken, or nothing."""
    try:
        os.pwrite(fd, b"%0*d" % (_DIGITS, taken), 0)
    except OSError:  # a full disk
        os.ftruncate(fd, 0)
