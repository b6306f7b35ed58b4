"""Mapillary Vistas, research edition: 65 classes (v1.2) or 123 (v2.0).

    seg-prep vistas --root /data/vistas --out data/vistas
    seg-prep vistas --root /data/vistas --out data/vistas-v2 --release v2.0
    seg-prep vistas --root /data/vistas --out data/vistas-19 --classes cityscapes19

A root that holds the labels of both releases is read as v1.2, whose 65 classes the papers use. A release's config
json, where it is there, must list the classes that its labels are read by. Neuhold, Ollmann, Rota Bulò, Kontschieder,
"The Mapillary Vistas Dataset for Semantic Understanding of Street Scenes", ICCV 2017.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prep.indexed import decode_indices
from prep.pairs import first_folder, paired
from prep.raw import BaseReader, RawSample, UInt16
from prep.taxonomy import load_classes, load_remap, rows
from shards.classes import ClassTable
from shards.errors import LayoutError, SettingsError

_FOLDERS = {"train": ("training", "train"), "val": ("validation", "val"), "test": ("testing", "test")}
_MAX_CONFIG = 1 << 24  # bytes; the real ones have some 30 KB


@dataclass(frozen=True)
class _Release:
    classes: str  # class table
    remap: str
    labels: tuple[str, ...]  # below a split's folder
    configs: tuple[str, ...]  # below the root


_RELEASES = {
    "v1.2": _Release("vistas-65", "vistas-66_to_65", ("v1.2/labels", "labels"), ("config_v1.2.json", "config.json")),
    "v2.0": _Release("vistas-123", "vistas-124_to_123", ("v2.0/labels",), ("config_v2.0.json",)),
}


@dataclass(frozen=True)
class Vistas(BaseReader):
    """Reader of the folders of either release; `release` is settled by `bind`."""

    release: str = ""

    name = "vistas"
    layout = """\
ROOT/{training,validation,testing}/images/x.jpg        (or train, val, test)
ROOT/{training,validation}/labels/x.png                v1.2 as first published, or
ROOT/{training,validation}/{v1.2,v2.0}/labels/x.png    the archive of both releases
ROOT/config.json, config_v1.2.json, config_v2.0.json   optional; checked where present
option: --release v1.2 | v2.0                          default: what is there, v1.2 of both"""
    source = "https://www.mapillary.com/dataset/vistas"
    terms = "Mapillary Vistas research edition: CC BY-NC-SA 4.0; registration needed"
    options = ("release",)

    @property
    def title(self) -> str:
        if not self.release:
            return "Mapillary Vistas, 65 classes (v1.2) or 123 (v2.0)"
        return f"Mapillary Vistas {self.release}, {len(self.classes)} classes"

    @property
    def classes(self) -> ClassTable:
        return load_classes(_RELEASES[self.release or "v1.2"].classes)

    def bind(self, root: Path, options: Mapping[str, str]) -> Vistas:
        """The reader of the release that is asked for, or found."""
        found = [release for release in _RELEASES if any(_labels(root, split, release) for split in _FOLDERS)]
        asked = options.get("release")
        if asked is not None and asked not in _RELEASES:
            raise SettingsError(f"--release {asked}: expected {' or '.join(_RELEASES)}")
        if asked is not None and found and asked not in found:
            raise LayoutError(
                f"no labels of {asked} under {root}, only of {', '.join(found)}: expected "
                f"training/{_RELEASES[asked].labels[0]}/*.png; unpack that release there or leave --release out"
            )
        release = asked or next(iter(found), "v1.2")
        for name in _RELEASES[release].configs:
            if (root / name).is_file():
                _check_config(root / name, release)
        return replace(self, release=release)

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(split for split, names in _FOLDERS.items() if first_folder(root, *names))
        if not found:
            raise LayoutError(
                f"neither training/, validation/ nor testing/ found under {root}: expected the Mapillary Vistas "
                "layout training/images/*.jpg; point --root at the folder that holds them"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        folder = first_folder(root, *_FOLDERS[split]) or root / _FOLDERS[split][0]
        release = self.release or "v1.2"
        # The test split of the releases has no labels, or empty ones.
        labels = None
        if split != "test":
            labels = _labels(root, split, release) or folder / _RELEASES[release].labels[0]
        yield from paired(folder / "images", labels, "unpack the archive of Mapillary Vistas there again")

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        remap = _RELEASES[self.release or "v1.2"].remap
        return load_remap(remap, f"Mapillary Vistas {self.release or 'v1.2'}").apply(decode_indices(data, where), where)


def _labels(root: Path, split: str, release: str) -> Path | None:
    """The label folder of a split, where it exists."""
    folder = first_folder(root, *_FOLDERS[split])
    return first_folder(folder, *_RELEASES[release].labels) if folder else None


def _check_config(path: Path, release: str) -> None:
    """LayoutError where the config lists other classes, or the same in another order, than our table."""
    want = [row["name"] for row in rows(_RELEASES[release].remap)]
    found = _config_names(path)
    if found == want:
        return
    place = next((i for i, (a, b) in enumerate(zip(found, want, strict=False)) if a != b), min(len(found), len(want)))
    theirs, ours = (names[place] if place < len(names) else "nothing" for names in (found, want))
    raise LayoutError(
        f"{path} lists {len(found)} labels, first another at index {place} ('{theirs[:80]}'): expected the {len(want)} "
        f"of Mapillary Vistas {release} ('{ours}' there); choose the right --release, or remove a config that is not "
        "the dataset's"
    )


def _config_names(path: Path) -> list[str]:
    """The names of the labels, in order."""
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise LayoutError(f"{path}: {path.stat().st_size} bytes are more than the cap of {_MAX_CONFIG}")
        return [str(label["name"]) for label in json.loads(path.read_bytes())["labels"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LayoutError(
            f"{path}: no JSON object with a list of named labels: expected the config of Mapillary Vistas; unpack it "
            "again, or remove it"
        ) from None
    except OSError as error:
        raise LayoutError(f"{path}: unreadable file: {error.strerror}") from None


READER = Vistas()
