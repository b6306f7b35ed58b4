"""Zarr stores that are sealed and cannot be true: headers that lie, offsets that do not rise, lost parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c  # zarr needs it
import numpy as np

from tests.corpus.bases import Bases
from tests.corpus.case import Case, put
from tests.corpus.forge import load, reseal, store

Header = dict[str, Any]


def cases(bases: Bases) -> Iterator[Case]:
    place = "train/1-2/train-1-2.zarr"
    assert (bases["zarr"] / place).is_dir()
    for array in ("soft.npz/data", "image/offsets", "key/data", "json/offsets"):
        for what, edit in _headers().items():
            if "inner" in what and "offsets" in array:  # which are stored in plain chunks
                continue
            yield _sealed(f"{array}: {what}", lambda folder, a=array, e=edit: _edit(folder / place / a, e))
    for name in ("image", "soft.npz", "key"):
        for what, how in _offsets().items():
            yield _sealed(
                f"{name} offsets: {what}", lambda folder, n=name, h=how: _rewrite(folder / place / n / "offsets/c/0", h)
            )
        yield _sealed(f"{name}: group gone", lambda folder, n=name: _drop(folder, f"{place}/{n}"))
        yield _sealed(f"{name}: data chunk gone", lambda folder, n=name: _drop(folder, f"{place}/{n}/data/c"))
        yield _sealed(f"{name}: offsets chunk gone", lambda folder, n=name: _drop(folder, f"{place}/{n}/offsets/c"))
        yield _sealed(f"{name}: chunk index lost", lambda folder, n=name: _shard_index(folder / place / n / "data/c/0"))
    yield _sealed("a group too many", lambda folder: _more(folder, place))


def _sealed(what: str, how: Callable[[Path], object]) -> Case:
    def damage(folder: Path) -> None:
        how(folder)
        reseal(folder)

    return Case(f"store/{what}", "bombs and absurd headers: zarr", "zarr", damage, (), sealed=True, bomb=True)


def _headers() -> dict[str, Callable[[Header], object]]:
    def chunk(size: object) -> Callable[[Header], object]:
        return lambda head: head["chunk_grid"]["configuration"].update(chunk_shape=[size])

    return {
        "shape of 2^60": lambda head: head.update(shape=[1 << 60]),
        "shape of 10^30": lambda head: head.update(shape=[10**30]),
        "negative shape": lambda head: head.update(shape=[-4]),
        "two axes": lambda head: head.update(shape=[4, 4]),
        "no axes": lambda head: head.update(shape=[]),
        "chunks of 2^40": chunk(1 << 40),
        "chunks of 0": chunk(0),
        "chunks of -1": chunk(-1),
        "chunks of text": chunk("many"),
        "type float64": lambda head: head.update(data_type="float64"),
        "type of text": lambda head: head.update(data_type="string"),
        "unknown type": lambda head: head.update(data_type="complex4096"),
        "unknown codec": lambda head: head.update(codecs=[{"name": "mystery"}]),
        "gzip codec": lambda head: head.update(
            codecs=[{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]
        ),
        "no codecs": lambda head: head.update(codecs=[]),
        "format 2": lambda head: head.update(zarr_format=2),
        "a group": lambda head: head.update(node_type="group"),
        "fill value 7": lambda head: head.update(fill_value=7),
        "fill value of text": lambda head: head.update(fill_value="x"),
        "separator of a path": lambda head: head["chunk_key_encoding"].update(configuration={"separator": "../"}),
        "other chunk names": lambda head: head.update(chunk_key_encoding={"name": "v2"}),
        "storage transformers": lambda head: head.update(storage_transformers=[{"name": "x"}]),
        "inner chunks of 2^40": _inner(1 << 40),
        "inner chunks of 1": _inner(1),
    }


def _inner(size: int) -> Callable[[Header], object]:
    def edit(head: Header) -> None:
        for codec in head["codecs"]:
            if codec["name"] == "sharding_indexed":
                codec["configuration"]["chunk_shape"] = [size]

    return edit


def _offsets() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "falling": lambda old: old[::-1].copy(),
        "beyond the data": lambda old: old + np.uint64(1 << 40),
        "2^63": lambda old: np.array([0, *[1 << 63] * (len(old) - 1)], np.uint64),
        "2^64 - 1": lambda old: np.array([0, *[(1 << 64) - 1] * (len(old) - 1)], np.uint64),
        "all zero": np.zeros_like,
        "off by one": lambda old: np.concatenate([old[:1], old[1:-1] + np.uint64(1), old[-1:]]),
        "first not 0": lambda old: np.concatenate([old[:1] + np.uint64(1), old[1:]]),
        "one entry less": lambda old: old[:-1],
        "a torn entry": lambda old: np.frombuffer(old.tobytes()[:-3], np.uint8),
    }


def _edit(folder: Path, edit: Callable[[Header], object]) -> None:
    path = folder / "zarr.json"
    head = json.loads(path.read_bytes())
    edit(head)
    put(path, json.dumps(head).encode())


def _rewrite(path: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    put(path, how(np.frombuffer(path.read_bytes(), np.uint64)).tobytes())


def _drop(folder: Path, below: str) -> None:
    """Remove a part of a store, and what the manifest says of it."""
    shutil.rmtree(folder / below)
    manifest = load(folder)
    for split in manifest["splits"].values():
        for scale in split["scales"].values():
            scale["files"] = [file for file in scale["files"] if not file["path"].startswith(f"{below}/")]
    store(folder, manifest)


def _shard_index(path: Path) -> None:
    """The index of inner chunks, at the end of a Zarr shard, says that there are none; its checksum is right."""
    data = path.read_bytes()
    index = b"\xff" * (16 * 256)
    checksum = int(google_crc32c.value(index)).to_bytes(4, "little")
    put(path, data[: -len(index) - 4] + index + checksum)


def _more(folder: Path, place: str) -> None:
    shutil.copytree(folder / place / "image", folder / place / "depth")
