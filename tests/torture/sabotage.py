"""Builds that are broken on purpose, to show that the torture finds what it is there for.

Each leaves the result of an undisturbed build as it is: only a kill at a bad moment shows the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prep.build import publish
from shards import manifest, published, shardfile


def _in_place() -> None:
    """The atomic publish is off: files are written where they are read, a piece at a time."""

    def write(path: Path, data: bytes) -> None:
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(data), 512):
                file.write(data[start : start + 512])

    manifest.publish_bytes = write
    published.publish_bytes = write
    publish.publish_bytes = write  # type: ignore[attr-defined]


def _manifest_first() -> None:
    """The commit marker comes before what it vouches for: shards are moved into place after the manifest."""
    late: list[tuple[Path, Path]] = []
    move, commit = Path.replace, publish.publish  # type: ignore[attr-defined]

    def put_off(self: Path, target: Any) -> Any:
        if self.suffix != ".tar" or ".build" not in self.parts:
            return move(self, target)
        late.append((self, Path(target)))
        return Path(target)

    def publish_then_move(*arguments: Any) -> Any:
        done = commit(*arguments)
        for source, target in late:
            move(source, target)
        return done

    Path.replace = put_off  # type: ignore[method-assign]
    publish.publish = publish_then_move  # type: ignore[attr-defined]


def _no_cut() -> None:
    """A resumed build appends to its partial shards without cutting off what the journal does not know of."""
    honest = shardfile.HashingFile.__init__

    def keep_the_tail(self: Any, path: Path, length: int = 0) -> None:
        tail = path.stat().st_size if length and path.exists() else length
        honest(self, path, max(tail, length))

    shardfile.HashingFile.__init__ = keep_the_tail  # type: ignore[method-assign]


SABOTAGE: dict[str, Callable[[], None]] = {"manifest": _in_place, "order": _manifest_first, "tail": _no_cut}
