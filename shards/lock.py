"""Locks of the operating system's on files: one process at a time holds one, until it lets go of it or ends."""

from __future__ import annotations

import os
from pathlib import Path


def take(path: Path) -> int | None:
    """Lock the file of this name, which is made if need be; its descriptor, None where another holder has it.

    Whoever removes a locked file must hold it; what was opened before that and locked afterwards is let go of here.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    import fcntl  # here: Windows has none, and reads shards all the same

    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(fd, path):
                return fd
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise


def is_at(fd: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
