"""Manifest edits, with the old digest and with one made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shards.classes import ClassTable
from tests.corpus.bases import Bases
from tests.corpus.case import Case, change, put
from tests.corpus.forge import load, records, store

Manifest = dict[str, Any]
Edit = Callable[[Manifest], object]


def cases(bases: Bases) -> Iterator[Case]:
    for base in ("jpeg", "zarr"):
        for what, edit in _edits(base).items():
            yield _edited(f"manifest/{what}/{base}/old digest", base, edit, seal=False)
            yield _edited(f"manifest/{what}/{base}/new digest", base, edit, seal=True)
    for what, how in _texts().items():

        def damage(folder: Path, how: Callable[[bytes], bytes] = how) -> None:
            change(folder / "manifest.json", how)

        yield Case(f"manifest text/{what}", "manifest edits", "jpeg", damage, ("manifest.json",), bomb=True)
    yield from _foreign(bases)


def _edited(name: str, base: str, edit: Edit, seal: bool) -> Case:
    def damage(folder: Path) -> None:
        manifest = load(folder)
        edit(manifest)
        store(folder, manifest, seal)

    kind = "manifest edits, digest made anew" if seal else "manifest edits"
    return Case(name, kind, base, damage, () if seal else ("manifest.json",), sealed=seal)


def _scale(manifest: Manifest, scale: str = "1", split: str = "train") -> Manifest:
    found: Manifest = manifest["splits"][split]["scales"][scale]
    return found


def _edits(base: str) -> dict[str, Edit]:
    own = _of_tars() if base == "jpeg" else _of_stores()
    return _heads() | _counts() | _parts() | _classes() | _files() | _paths() | own


def _heads() -> dict[str, Edit]:
    return {
        "format version 2": lambda m: m.update(format_version=2),
        "format version true": lambda m: m.update(format_version=True),
        "format version 0": lambda m: m.update(format_version=0),
        "unknown field": lambda m: m.update(more=1),
        "field missing": lambda m: m.pop("void"),
        "void 255": lambda m: m.update(void=255),
    }


def _counts() -> dict[str, Edit]:
    return {
        "more samples": lambda m: m["splits"]["train"].update(samples=5),
        "fewer samples": lambda m: m["splits"]["train"].update(samples=3),
        "negative samples": lambda m: m["splits"]["train"].update(samples=-1),
        "samples of 10^30": lambda m: m["splits"]["train"].update(samples=10**30),
        "no groups": lambda m: _scale(m).update(groups=[]),
        "groups that cancel out": lambda m: _scale(m).update(groups=[9, -5]),
        "huge group": lambda m: _scale(m).update(groups=[10**18]),
        "not labelled": lambda m: m["splits"]["train"].update(labelled=False),
        "labelled": lambda m: m["splits"]["test"].update(labelled=True),
    }


def _parts() -> dict[str, Edit]:
    """Splits and scales."""
    return {
        "no scales": lambda m: m["splits"]["train"].update(scales={}),
        "scale 2/4": lambda m: m["splits"]["train"]["scales"].update({"2/4": _scale(m)}),
        "scale 1/0": lambda m: m["splits"]["train"]["scales"].update({"1/0": _scale(m)}),
        "scales exchanged": _exchange_scales,
        "splits exchanged": _exchange_splits,
        "other format": lambda m: m.update(format="zarr" if m["format"] == "webdataset" else "webdataset"),
        "split name of a path": lambda m: m["splits"].update({"../up": m["splits"]["train"]}),
    }


def _classes() -> dict[str, Edit]:
    """Classes, and the filter that labels were made with."""
    return {
        "other class names": lambda m: m["classes"]["names"].reverse(),
        "a class less": lambda m: [column.pop() for column in m["classes"].values()],
        "class names of numbers": lambda m: m["classes"].update(names=list(range(19))),
        "no classes": lambda m: m.update(classes={}),
        "other classes digest": lambda m: m.update(classes_digest="0" * 64),
        "other filter": lambda m: m.update(filter="triangle"),
        "unknown filter": lambda m: m.update(filter="lanczos"),
    }


def _files() -> dict[str, Edit]:
    """What vouches for the last file."""
    return {
        "sha256 of another file": lambda m: records(m)[-1].update(sha256="0" * 64),
        "sha256 of odd letters": lambda m: records(m)[-1].update(sha256="g" * 64),
        "bytes off by one": lambda m: records(m)[-1].update(bytes=records(m)[-1]["bytes"] + 1),
        "bytes negative": lambda m: records(m)[-1].update(bytes=-1),
        "bytes of 10^40": lambda m: records(m)[-1].update(bytes=10**40),
        "bytes as text": lambda m: records(m)[-1].update(bytes="12"),
        "bytes as fraction": lambda m: records(m)[-1].update(bytes=12.5),
    }


def _paths() -> dict[str, Edit]:
    paths = (
        "../outside.tar",
        "/etc/passwd",
        "a/../../b",
        "..",
        ".",
        "",
        "a//b",
        "a\\b",
        "C:/a",
        "a\0b",
        "train/./1",
        "a/",
    )
    return {f"path {path!r}": lambda m, path=path: records(m)[-1].update(path=path) for path in paths}  # type: ignore[misc]


def _of_tars() -> dict[str, Edit]:
    return {
        "shards exchanged": lambda m: _scale(m)["shards"].reverse(),
        "a shard twice": lambda m: _scale(m)["shards"].__setitem__(1, _scale(m)["shards"][0]),
        "shard of the other scale": lambda m: _scale(m)["shards"].__setitem__(0, _scale(m, "1/2")["shards"][0]),
        "index of the other shard": lambda m: _scale(m)["shards"][0].update(index=_scale(m)["shards"][1]["index"]),
        "tar named as its index": lambda m: _scale(m)["shards"][0]["index"].update(path=_scale(m)["shards"][0]["path"]),
        "counts moved between shards": _move_counts,
        "no shards": lambda m: _scale(m).update(shards=[], groups=[]),
        "a store beside shards": lambda m: _scale(m).update(store="train/1/x.zarr"),
    }


def _of_stores() -> dict[str, Edit]:
    return {
        "store of the other scale": lambda m: _scale(m).update(store=_scale(m, "1/2")["store"]),
        "store of another split": lambda m: _scale(m).update(store=_scale(m, "1", "test")["store"]),
        "store that is not there": lambda m: _scale(m).update(store="train/1/none.zarr"),
        "store that is a file": lambda m: _scale(m).update(store="README.md"),
        "no store": lambda m: _scale(m).update(store=None),
        "store up": lambda m: _scale(m).update(store="../up.zarr"),
    }


def _exchange_scales(manifest: Manifest) -> None:
    scales = manifest["splits"]["train"]["scales"]
    scales["1"], scales["1/2"] = scales["1/2"], scales["1"]


def _exchange_splits(manifest: Manifest) -> None:
    splits = manifest["splits"]
    splits["train"], splits["test"] = splits["test"], splits["train"]


def _move_counts(manifest: Manifest) -> None:
    part = _scale(manifest)
    first, second = part["shards"][:2]
    first["samples"], second["samples"] = first["samples"] - 1, second["samples"] + 1
    part["groups"] = [shard["samples"] for shard in part["shards"]]


def _texts() -> dict[str, Callable[[bytes], bytes]]:
    """Bytes that hold the same, or nothing, in another way."""
    return {
        "other layout": lambda data: json.dumps(json.loads(data)).encode(),
        "keys in another order": lambda data: json.dumps(dict(reversed(json.loads(data).items())), indent=1).encode(),
        "a key twice": lambda data: data.replace(b'"void":', b'"void": 255,\n "void":', 1),
        "a blank more": lambda data: data + b" ",
        "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda data: data.decode().encode("utf-16"),
        "windows lines": lambda data: data.replace(b"\n", b"\r\n"),
        "a comment": lambda data: data + b"// hello",
        "nested": lambda _: b"[" * 500_000,
        "nested objects": lambda _: b'{"a":' * 300_000,
        "digits": lambda data: data.replace(b'"void": 65535', b'"void": ' + b"6" * 100_000),
        "infinity": lambda data: data.replace(b'"void": 65535', b'"void": Infinity'),
        "NaN in a free field": lambda data: data.replace(b'"protocol": {', b'"protocol": {"x": NaN, ', 1),
        "a list": lambda _: b"[]",
        "a number": lambda _: b"7",
        "null": lambda _: b"null",
        "empty": lambda _: b"",
        "text": lambda _: b"hello",
        "300 MB of blanks": lambda data: data + b" " * (300 << 20),
        "half a surrogate pair": lambda data: data.replace(b'"title": "', b'"title": "\\ud800', 1),
    }


def _foreign(bases: Bases) -> Iterator[Case]:
    """Manifests that are sound, of other builds."""
    for other in ("other", "png"):

        def damage(folder: Path, other: str = other) -> None:
            put(folder / "manifest.json", (bases[other] / "manifest.json").read_bytes())

        yield Case(f"manifest/of {other}", "manifest of another build", "jpeg", damage, ())

    def relabelled(folder: Path) -> None:
        """Another set's labels vouched for by hand: the class table says less classes than the labels hold."""
        manifest = load(folder)
        table = {name: column[:2] for name, column in manifest["classes"].items()}
        manifest["classes"], manifest["classes_digest"] = table, ClassTable.from_dict(table).digest
        store(folder, manifest)

    yield Case("manifest/fewer classes/sealed", "manifest edits, digest made anew", "jpeg", relabelled, (), sealed=True)
