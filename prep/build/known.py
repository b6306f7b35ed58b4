"""Digests of source samples -> lines of the set that is updated: a sorted table on disk that all workers share."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0

from prep.build.source import DIGEST_AT, DIGEST_BYTES
from shards.errors import naming

U64 = npt.NDArray[np.uint64]


def halves(digests: bytes) -> U64:
    """Digests, 16 bytes each -> uint64 [2, n]."""
    return np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)


def digest_bytes(text: str | bytes) -> bytes:
    """A digest's 16 bytes from its text; raises ValueError."""
    found = base64.urlsafe_b64decode(text + ("==" if isinstance(text, str) else b"=="))  # type: ignore[operator]
    if len(found) != DIGEST_BYTES:
        raise ValueError("not a digest")
    return found


def read_digests(path: Path) -> bytes:
    """The digests of all lines of a sources.jsonl, 16 bytes each."""
    found = bytearray()
    with open(path, "rb") as file:
        for line in file:
            found += digest_bytes(line[DIGEST_AT])
    return bytes(found)


class Known:
    """The table; opened where it is first used, so that it travels to other processes as a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: U64 | None = None  # [first half, second half, line], by first half

    @classmethod
    def write(cls, path: Path, digests: bytes) -> Known:
        """The table of digests, 16 bytes a line. Raises OSError (disk full)."""
        first, second = halves(digests)
        order = np.argsort(first, kind="stable")
        table = np.stack([first[order], second[order], order.astype(np.uint64)])
        with naming(path), open(path, "wb") as file:
            write_array_header_1_0(file, header_data_from_array_1_0(table))
            file.write(table.data)  # np.save does not say that the disk is full
        return cls(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_table": None}

    def find(self, digest: str) -> int | None:
        """The first line of a digest, counted from 0; None where there is none."""
        if self._table is None:
            self._table = np.load(self._path, mmap_mode="r" if self._path.stat().st_size > 1 << 20 else None)
        first, second = halves(digest_bytes(digest))[:, 0]
        at = int(np.searchsorted(self._table[0], first))
        while at < self._table.shape[1] and self._table[0, at] == first:
            if self._table[1, at] == second:
                return int(self._table[2, at])
            at += 1
        return None
