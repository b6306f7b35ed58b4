"""Where a sample's bytes lie: a file, a run of bytes in one, or several runs; read whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from prep.raw import FilePart, Place
from shards.errors import SampleError

MAX_BYTES = 1 << 30
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of files or memory, this machine is: no fault of the source


def read_place(place: Place | tuple[FilePart, ...], where: str) -> bytes:
    """The bytes of a place; those of several are joined by newlines.

    Raises:
        SampleError: missing, unreadable, no regular file, shorter than the part asked for, or absurdly large.
        OSError: this process has too many files open, or no memory.
    """
    try:
        if isinstance(place, Path):
            return _read_file(place, where)
        return _read_parts(place if isinstance(place, tuple) else (place,), where)
    except FileNotFoundError:
        raise SampleError(f"{where}: missing file") from None
    except OSError as error:
        if error.errno in _SHORT:
            raise
        raise SampleError(f"{where}: unreadable file: {error.strerror}") from None
    except ValueError:  # a name that no file can have
        raise SampleError(f"{where}: missing file") from None


def _read_file(path: Path, where: str) -> bytes:
    status = path.stat()
    size = status.st_size
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe would never end
        raise SampleError(f"{where}: not a regular file")
    if size > MAX_BYTES:
        raise SampleError(f"{where}: file of {size} bytes is more than the cap of {MAX_BYTES}")
    return path.read_bytes()


def _read_parts(parts: Iterable[FilePart], where: str) -> bytes:
    """Each file is opened once for all of its parts."""
    total, found = 0, list[bytes]()
    files: dict[Path, int] = {}
    try:
        for part in parts:
            total += part.length
            if total > MAX_BYTES:
                raise SampleError(f"{where}: more bytes than the cap of {MAX_BYTES}")
            if part.path not in files:
                files[part.path] = os.open(part.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            data = os.pread(files[part.path], part.length, part.offset)
            if len(data) != part.length:
                raise SampleError(f"{where}: {part.path.name} ends within it: truncated or changed while it was read")
            found.append(data)
    finally:
        for file in files.values():
            os.close(file)
    return b"\n".join(found)


def place_name(place: Place | tuple[FilePart, ...], root: Path) -> str:
    """A place as the manifest and errors show it: below the root, with forward slashes."""
    if isinstance(place, tuple):
        return ", ".join(dict.fromkeys(relative(part.path, root) for part in place)) or "no annotation"
    if isinstance(place, FilePart):
        return relative(place.path, root) + (f"/{printable(place.name)}" if place.name else "")
    return relative(place, root)


def relative(path: Path, root: Path) -> str:
    """A path below the root, with forward slashes."""
    try:
        return printable(path.relative_to(root).as_posix())
    except ValueError:
        return printable(path.name)


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file's name that are not UTF-8 become `\\udcff`, as Python shows them."""
    return text.encode(errors="backslashreplace").decode()


def place_size(place: Place) -> int:
    """Bytes of a place; -1 where its file is missing."""
    return place.length if isinstance(place, FilePart) else file_status(place)[0]


def file_status(path: Path) -> tuple[int, int]:
    """Bytes of a file, and when it was last written, in nanoseconds; -1 and 0 where it is missing."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return -1, 0
    return status.st_size, status.st_mtime_ns
