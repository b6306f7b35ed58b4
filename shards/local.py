"""A shard set in a folder, read by pread on files that stay open; the local ``Store``."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Hashable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import FormatError, SegshardsError, UserError
from shards.recent import LOCK, Recent

if TYPE_CHECKING:
    from shards.manifest import File

_READ = 1 << 20
REMEDY = "build or copy it again"
DAMAGED = f"checksum differs from the manifest: damaged; {REMEDY}"
TOO_MANY = (errno.EMFILE, errno.ENFILE)
MORE_FILES = "let this process open more files (ulimit -n)"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class OpenFile:
    """A file descriptor that is closed when nobody uses it any more."""

    __slots__ = ("advised", "fd", "path", "proven")

    def __init__(self, path: str | Path, fd: int) -> None:
        self.path, self.fd, self.advised, self.proven = path, fd, False, False

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from ``offset`` on, fewer at the end of the file; raises FormatError."""
        try:
            data = os.pread(self.fd, length, offset)
            while len(data) < length and (more := os.pread(self.fd, length - len(data), offset + len(data))):
                data += more  # one read gives 2 GiB at most
        except OSError as error:
            raise FormatError(self.path, f"cannot be read ({error.strerror}); {REMEDY}") from error
        return data

    def sha256(self) -> str:
        """Of the whole file; raises FormatError."""
        digest, at = hashlib.sha256(), 0
        while data := self.read(at, _READ):
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def read_soon(self) -> None:
        """Let the system read the file ahead, once."""
        if not self.advised and hasattr(os, "posix_fadvise"):
            self.advised = True
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)


def open_file(path: str | Path, size: int | None = None, flags: int = 0) -> OpenFile:
    """Open a regular file of ``size`` bytes (None: any); raises FormatError where there is none, UserError where this
    process has too many files open."""
    try:
        file = OpenFile(path, os.open(path, _FLAGS | flags))  # O_NONBLOCK: a pipe of that name must not hang
        found = os.fstat(file.fd)
    except OSError as error:
        if error.errno in TOO_MANY:
            raise UserError(f"{path} cannot be opened ({error.strerror}): {MORE_FILES}") from error
        remedy = "change its permissions" if error.errno == errno.EACCES else REMEDY
        raise FormatError(path, f"cannot be opened ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise FormatError(path, f"cannot be opened ({error}); {REMEDY}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(path, f"is no file; {REMEDY}")
    if size is not None and found.st_size != size:
        raise FormatError(path, wrong_size(found.st_size, size))
    return file


def wrong_size(found: int, expected: int) -> str:
    """What is wrong with a file that has not the bytes that the manifest says."""
    return f"{found} bytes found; the manifest has {expected}: truncated or changed; {REMEDY}"


class Proofs:
    """The files that this process has hashed: by device, inode, size and time of change, and what was expected, or by
    a key of the caller's."""

    def __init__(self) -> None:
        self._known: Recent[bool] = Recent(1 << 16)
        self._locks: dict[Hashable, threading.Lock] = {}
        self._process = os.getpid()

    def hold(self, file: OpenFile, sha256: str, key: Hashable = None) -> bool:
        """Whether a file's content is as expected. Threads that ask about the same file wait for the one that hashes
        it; those that ask about others do not. Raises FormatError where it cannot be read."""
        state = os.fstat(file.fd)
        key = key or (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, sha256)
        with LOCK:
            if self._process != os.getpid():  # forked: a thread that is not here may have held one of them
                self._process, self._locks = os.getpid(), {}
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            known = self._known.get(key)
            if known is None:
                known = file.sha256() == sha256
                self._known.put(key, known)
        self._locks.pop(key, None)
        return known

    def note(self, key: Hashable) -> None:
        """The file of this key is as expected: whoever wrote it says so."""
        self._known.put(key, True)

    def forget(self, key: Hashable) -> None:
        """The file of this key is another one now."""
        self._known.drop(key)


PROOFS = Proofs()
OPEN: Recent[OpenFile] = Recent(128)  # the files read last by all stores together; a process may have 256 to 1,024
AHEAD = 16  # files that the system is told of at once


class LocalStore:
    """See ``shards.store.Store``. The last files read stay open, in each process its own.

    Args:
        folder: of the shard set.
        check: let no damage pass for data: hash a file whole when a process first reads of it, but for ranges that
            their reader proves by itself.
    """

    def __init__(self, folder: Path, check: bool = True) -> None:
        self.name, self.folder = str(folder), folder
        self._open = OPEN.keeper(self)
        self.checks = check
        self._inside: set[str] = set()  # folders below this one that no link leads out of

    def __reduce__(self) -> tuple[type[LocalStore], tuple[Path, bool]]:
        return type(self), (self.folder, self.checks)

    @property
    def room(self) -> None:
        """See ``Store.room``."""
        return

    def small(self, path: str, most: int) -> bytes:
        """See ``Store.small``."""
        place = self.folder / path
        if not place.is_file():
            unfinished = (self.folder / ".build").is_dir()
            hint = "the build there is not finished: run the same seg-prep again"
            hint = hint if unfinished else "build it with seg-prep"
            raise UserError(f"no {path} found in {self.folder}; expected a shard set: {hint}")
        file = open_file(place)
        data = file.read(0, most + 1)
        if len(data) > most:
            raise FormatError(place, f"larger than {most} bytes")
        return data

    def whole(self, file: File) -> bytes:
        """See ``Store.whole``."""
        opened = self._opened(file)
        data = opened.read(0, file.bytes)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise FormatError(opened.path, DAMAGED)
        return data

    def range(self, file: File, offset: int, length: int, proven: bool = False) -> bytes:
        """See ``Store.range``."""
        opened = self._open.get(file.path)
        if opened is None:
            opened = self._opened(file)
            self._open.put(file.path, opened)
        if self.checks and not (proven or opened.proven):
            self._prove(file, opened)
        return opened.read(offset, length)

    def local(self, file: File) -> Path:
        """See ``Store.local``."""
        path = self.folder / file.path
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise FormatError(path, f"cannot be opened ({error}); {REMEDY}") from error
        if not inside:
            raise FormatError(path, f"a link that leaves the folder; {REMEDY}")
        return path

    def check(self, file: File) -> str | None:
        """See ``Store.check``."""
        try:
            opened = self._opened(file)
            return None if opened.sha256() == file.sha256 else f"{opened.path}: {DAMAGED}"
        except FormatError as error:
            return str(error)

    def mend(self, file: File) -> bool:
        """See ``Store.mend``: it is no copy."""
        return False

    def ahead(self, files: Iterable[File]) -> None:
        """See ``Store.ahead``: the system is told, as far as files stay open."""
        for file in islice(files, AHEAD):
            opened = self._open.get(file.path)
            if opened is None:
                try:
                    opened = self._opened(file)
                except SegshardsError:
                    continue  # whoever reads it hears of it
                self._open.put(file.path, opened)
            opened.read_soon()

    def _prove(self, file: File, opened: OpenFile) -> None:
        """Raise FormatError unless a file's content is what the manifest says."""
        if not PROOFS.hold(opened, file.sha256):
            raise FormatError(opened.path, DAMAGED)
        opened.proven = True

    def _opened(self, file: File) -> OpenFile:
        """Open a file; where its folder has been looked at, it must not be a link, and is looked at like that if so."""
        parent = file.path.rpartition("/")[0]
        if parent in self._inside:
            path = f"{self.name}/{file.path}"
            try:
                return open_file(path, file.bytes, NO_LINK)
            except FormatError as error:
                if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ELOOP):
                    raise
        opened = open_file(self.local(file), file.bytes)
        self._inside.add(parent)
        return opened


def check_file(folder: Path, file: File) -> str | None:
    """None if the file's bytes are what the manifest says, else the problem."""
    return LocalStore(folder).check(file)
