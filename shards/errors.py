"""The errors that people meet, as one tree.

    SegshardsError
    |-- UserError           something asked for cannot be done: exit 2, one line
    |   |-- LayoutError     a raw dataset's folder lacks what its layout needs
    |   `-- SettingsError   an option, a recipe's value, a setting that does not fit
    |-- FormatError         a published file is broken: exit 2, one line naming file, member and reason
    `-- SampleError         a source sample cannot be used: goes to quarantine, the build goes on

Every message is one line: what was found, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SegshardsError(Exception):
    """Base of all errors that this project raises on purpose; ``str()`` is one line for people."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UserError(SegshardsError):
    """What was asked for cannot be done."""


class LayoutError(UserError):
    """A raw dataset's root lacks what the dataset's layout needs."""


class SettingsError(UserError):
    """An option or setting has a value that does not fit."""


class FormatError(SegshardsError):
    """A published file is broken.

    Args:
        path: the file, or what stands for it ("<memory>").
        reason: what is wrong with it, and what to do where that is known.
        member: the member of an archive, where it is one.
    """

    def __init__(self, path: str | Path, reason: str, member: str | None = None) -> None:
        self.path, self.reason, self.member = str(path), reason, member
        super().__init__(f"{path}{f' [{member}]' if member else ''}: {reason}")

    def __reduce__(self) -> tuple[type[FormatError], tuple[str, str, str | None]]:
        return type(self), (self.path, self.reason, self.member)  # crosses process borders whole


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let operating-system errors of writes (disk full) name the file, which Python leaves out there."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def first_line(error: BaseException) -> str:
    """What somebody else's error says, for a message of ours: its first line, 200 characters at most, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class SampleError(SegshardsError):
    """A source sample cannot be used; the message is the reason that quarantine.jsonl keeps."""
