"""A raw dataset in CamVid's layout that tests edit, sample by sample, between two builds."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fakes import blobs, picture

SIZE = (24, 40)
PREFIX = "/SegNet/CamVid"


@cache
def pair(number: int) -> tuple[bytes, bytes]:
    """(image, label) as PNGs; equal numbers give equal bytes."""
    rng = np.random.default_rng([77, number])
    label = blobs(rng, SIZE, 12)
    found = []
    for array in (picture(rng, label), label):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "png")
        found.append(file.getvalue())
    return found[0], found[1]


@dataclass
class Raw:
    """The source: {split: {stem: (image, label)}} in the order of the lists; None is a file that is missing."""

    root: Path
    splits: dict[str, dict[str, tuple[bytes | None, bytes | None]]] = field(default_factory=dict)
    drawn: int = 0

    def new(self) -> tuple[bytes, bytes]:
        """A pair that has not been there before."""
        self.drawn += 1
        return pair(self.drawn)

    def fill(self, counts: Mapping[str, int]) -> Raw:
        """So many new samples in each split."""
        for split, count in counts.items():
            self.splits[split] = {f"f{number:04d}": self.new() for number in range(10, 10 * count + 10, 10)}
        return self.write()

    def write(self) -> Raw:
        """The files, from scratch."""
        shutil.rmtree(self.root, ignore_errors=True)
        for split, samples in self.splits.items():
            folders = self.root / split, self.root / f"{split}annot"
            for folder in folders:
                folder.mkdir(parents=True)
            lines = []
            for stem, contents in samples.items():
                for folder, data in zip(folders, contents, strict=True):
                    if data is not None:
                        (folder / f"{stem}.png").write_bytes(data)
                lines.append(f"{PREFIX}/{split}/{stem}.png {PREFIX}/{split}annot/{stem}.png\n")
            (self.root / f"{split}.txt").write_text("".join(lines))
        return self

    def edit(self, draw: random.Random) -> str:
        """One change of any kind; what it was."""
        split = draw.choice(sorted(self.splits))
        samples = self.splits[split]
        stem = draw.choice(list(samples))
        what = draw.choice(sorted(EDITS))
        EDITS[what](self, draw, split, stem)
        if not any(_is_good(contents) for contents in samples.values()):
            samples["f9999"] = self.new()
        self.write()
        return f"{what} {split}/{stem}"


def _is_good(contents: tuple[bytes | None, bytes | None]) -> bool:
    return all(data is not None and len(data) > 100 for data in contents)


def _add(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    items = list(raw.splits[split].items())
    items.insert(draw.randint(0, len(items)), (f"g{raw.drawn:04d}", raw.new()))
    raw.splits[split] = dict(items)


def _remove(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    if len(raw.splits[split]) > 1:
        del raw.splits[split][stem]


def _change(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    raw.splits[split][stem] = raw.new()


def _relabel(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    raw.splits[split][stem] = (raw.splits[split][stem][0], raw.new()[1])


def _spoil(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    image, label = raw.splits[split][stem]
    raw.splits[split][stem] = draw.choice([(b"", label), (image, None), (image, b"no PNG")])


def _mend(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    for name, contents in raw.splits[split].items():
        if not _is_good(contents):
            raw.splits[split][name] = raw.new()
            return


def _rename(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    raw.splits[split] = {f"r{raw.drawn}" if name == stem else name: at for name, at in raw.splits[split].items()}
    raw.drawn += 1


def _swap(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    items = list(raw.splits[split].items())
    draw.shuffle(items)
    raw.splits[split] = dict(items)


def _move(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    other = draw.choice([name for name in ("train", "val", "test") if name != split])
    if len(raw.splits[split]) > 1:
        raw.splits.setdefault(other, {})[stem] = raw.splits[split].pop(stem)
        if not any(map(_is_good, raw.splits[other].values())):
            raw.splits[other]["f8888"] = raw.new()


def _drop_split(raw: Raw, draw: random.Random, split: str, stem: str) -> None:
    if len(raw.splits) > 1:
        del raw.splits[split]


EDITS = {
    "add": _add,
    "remove": _remove,
    "change": _change,
    "relabel": _relabel,
    "spoil": _spoil,
    "mend": _mend,
    "rename": _rename,
    "swap": _swap,
    "move": _move,
    "drop split": _drop_split,
}
