"""What plain webdataset makes of a damaged tar set, read as its documentation shows: `WebDataset(...).decode("rgb8")`.

Once with its default, which raises, and once with `handler=warn_and_continue`, which its documentation gives for
damaged data. What it hands out is compared with what it hands out of the sound set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from tests.corpus import bombs
from tests.corpus.bases import SPLITS, Bases
from tests.corpus.case import Case
from tests.corpus.judge import CRASHED, FEWER, RAISED, RIGHT, WRONG

RAN_CODE, MORE, HUNG = "ran a pickle", "samples twice", "hung"


@dataclass(frozen=True)
class PeerVerdict:
    """RAISED, RIGHT, WRONG, FEWER, MORE, RAN_CODE, HUNG or CRASHED: by default, and when told to go on."""

    default: str
    going_on: str


class Peer:
    """Reads damaged tar sets with webdataset."""

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._known: dict[str, dict[str, dict[str, Any]]] = {}

    def judge(self, case: Case, folder: Path) -> PeerVerdict | None:
        """The verdict; None where it does not read what was damaged (anything but tar files)."""
        tars = sorted(self._bases[case.base].rglob("*.tar"))
        names = [path.relative_to(self._bases[case.base]) for path in tars]
        if not tars or all(_same(folder / name, path) for name, path in zip(names, tars, strict=True)):
            return None
        return PeerVerdict(
            self._one(case, folder, wds.reraise_exception), self._one(case, folder, wds.warn_and_continue)
        )

    def _one(self, case: Case, folder: Path, handler: Any) -> str:
        known = self._of(case.base)
        found: list[tuple[str, dict[str, Any]]] = []
        bombs.SPRUNG.clear()
        try:
            for name, sample in _read(self._paths(folder), handler):
                found.append((name, sample))
        except (MemoryError, RecursionError):
            return CRASHED
        except Exception:  # of many types: an error is an error
            return RAN_CODE if bombs.SPRUNG else RAISED
        if bombs.SPRUNG:
            return RAN_CODE
        if any(not _equal(sample, known.get(name)) for name, sample in found):
            return WRONG
        return FEWER if len(found) < len(known) else MORE if len(found) > len(known) else RIGHT

    def _of(self, base: str) -> dict[str, dict[str, Any]]:
        if base not in self._known:
            self._known[base] = dict(_read(self._paths(self._bases[base]), wds.reraise_exception))
        return self._known[base]

    def _paths(self, folder: Path) -> dict[str, list[str]]:
        """{split and scale: its shards}: what a user lists."""
        return {
            f"{split}/{scale}": [str(p) for p in sorted((folder / split / scale).glob("*.tar"))]
            for split in SPLITS
            for scale in ("1", "1-2")
        }


def _same(one: Path, two: Path) -> bool:
    return one.exists() and one.samefile(two)


def _read(paths: dict[str, list[str]], handler: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, shards in paths.items():
        if not shards:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = wds.WebDataset(shards, shardshuffle=False, handler=handler).decode("rgb8", handler=handler)
            for sample in data:
                plain = {key: value for key, value in sample.items() if not key.startswith("__") or key == "__key__"}
                yield f"{name}/{sample['__key__']}", {key: _plain(value) for key, value in plain.items()}


def _plain(value: Any) -> Any:
    """Arrays of an archive that is read when asked for."""
    return {name: value[name] for name in value.files} if isinstance(value, np.lib.npyio.NpzFile) else value


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return type(one) is type(two) and bool(one == two)
