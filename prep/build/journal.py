"""The journal of an unfinished build: one JSON line a chunk, so that a killed build continues where it stopped.

The first line holds the settings. Every further line is written after its chunk's bytes went to the partial shards
and says how long each of them is then and what its bytes hash to. A torn last line is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from shards.shardfile import write_all

VERSION = 1


class Journal:
    """Append-only JSON lines; `append` returns once the line is with the operating system."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    @classmethod
    def create(cls, path: Path, head: Mapping[str, Any]) -> Journal:
        """Start a new journal at `path`; the head is on disk when this returns."""
        journal = cls(FileIO(path, "w"))
        try:
            journal.append({"version": VERSION, **head})
            journal.sync()
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def reopen(cls, path: Path, length: int) -> Journal:
        """Continue after the first `length` bytes; what follows them is cut off."""
        file = FileIO(path, "r+")
        file.truncate(length)
        file.seek(length)
        return cls(file)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line. Raises OSError (disk full): the torn line is dropped by the next `read_journal`."""
        write_all(self._file, json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n")

    def sync(self) -> None:
        """Make all lines durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[tuple[dict[str, Any], int]]:
    """All whole lines as (value, bytes up to and with this line); the head is the first. [] for an absent journal.

    Reading stops at the first line that is torn or not JSON: nothing after it can be relied on.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines: list[tuple[dict[str, Any], int]] = []
    end = 0
    for raw in data.splitlines(keepends=True):
        end += len(raw)
        try:
            value = json.loads(raw) if raw.endswith(b"\n") else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or (lines and value.get("chunk") != len(lines) - 1):
            break
        lines.append((value, end))
    return lines if lines and lines[0][0].get("version") == VERSION else []
