"""Your own images and labels, any number of classes.

    seg-prep folder --root my-data --out data/my-data

What lies where:

    my-data/classes.txt                    one class name a line; the line's number, from 0, is the id in the labels
    my-data/images/train/a.jpg             jpg, jpeg, png, webp, tif, tiff or bmp, in upper or lower case
    my-data/labels/train/a.png             the same path and stem; a PNG with one id a pixel
    my-data/images/val/b.jpg
    my-data/labels/val/b.png
    my-data/images/test/c.jpg              test may go without labels

Splits, whichever of these comes first:

  1. lists: my-data/train.txt, val.txt, test.txt, each a path below images/ a line, with or without its suffix;
  2. folders: images/train, images/val, images/test, and any other folder of images/ that labels/ has too;
  3. neither: one split, "all"; but folders called training, Val and the like are refused, for you to rename.

Below that, folders may be as deep as you like; they are kept in the samples' keys. Characters that keys cannot hold
(dots, spaces, all but A-Z a-z 0-9 _ -) become `_` there; where two names become one, the second is quarantined.

Labels are grey or palette PNGs of 8 or 16 bits whose values are ids; palettes are never looked at. Void, "counts for
nothing", is 255 in 8-bit and 65535 in 16-bit labels, unless your table gives that id to a class; and any id, or
colour, whose line in classes.txt is named `void`. Where ids go beyond 255 labels want 16 bits: an 8-bit label with
the value 255 is quarantined then, since it may be void or the class of that id. Labels may also be saved in colour
(RGB, or RGBA that is opaque): then every line of classes.txt has a second column, after a tab, with the class's
colour R,G,B. Ids with gaps: classes.tsv instead of classes.txt, with the columns id, name and (optional) colour. See
prep/class_file.py.

Images without a pixel label may have tags instead: my-data/tags/train/a.txt, one class name a line, every class that
the image shows; no line where it shows none. They become image-level labels. Where a split has images of both kinds,
those with tags become a split of their own, "train-weak": the samples of a split all have pixel labels, or none has.

Nothing vanishes: an image without a label, a label without an image, two images of one stem, an id that the table
does not have, sizes that differ are each written to quarantine.jsonl with the file's name, and the build goes on.
Files of other kinds (.json, Thumbs.db) are passed over.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prep.class_file import ClassFile, read_class_file
from prep.decode import load_pixels, open_header, png_depth
from prep.indexed import decode_indices
from prep.pairs import is_there, listed
from prep.places import read_place, relative
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import ColourRemap, Remap
from prep.trees import subfolders, walk
from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError, SettingsError

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_USUAL = ("train", "val", "test")
_NEAR = {*_USUAL, "training", "valid", "validation", "testing"}
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # what a manifest can hold
_TREES = ("images", "labels", "tags")
_WEAK = "-weak"  # ends the name of the split of tagged images


@dataclass(frozen=True)
class _Files:
    """The files of one stem."""

    stem: str
    images: list[Path]
    labels: list[Path]  # of any kind
    tags: list[Path]

    @property
    def tagged(self) -> bool:
        """Whether tags take the place of a pixel label."""
        return bool(self.images and self.tags and not _pngs(self.labels))


@dataclass(frozen=True)
class _Place:
    """Where a split lies: images, labels and tags below `trees`, all of them or those that `list` names."""

    root: Path
    split: str
    trees: tuple[Path, ...]
    list: Path | None

    @classmethod
    def of(cls, root: Path, split: str) -> _Place:
        listed_in = root / f"{split}.txt" if _lists(root) else None
        below = () if listed_in or split not in subfolders(root / "images") else (split,)
        return cls(root, split, tuple(root.joinpath(tree, *below) for tree in _TREES), listed_in)

    @property
    def mixed(self) -> bool:
        """Whether there may be both pixel labels and tags."""
        return is_there(self.trees[1]) and is_there(self.trees[2])

    def files(self) -> Iterator[_Files]:
        """The files of every stem, sorted, or in the list's order; stems that the list names may have none."""
        if self.list is None:
            yield from self._walk()
            return
        stems = [_stem(self.root, line) for line in listed(self.list)]
        wanted = dict.fromkeys(stems)
        found = {files.stem: files for files in self._walk() if files.stem in wanted}
        for stem in stems:
            yield found.get(stem) or _Files(stem, [], [], [])

    def _walk(self) -> Iterator[_Files]:
        for stem, (images, labels, tags) in walk([tree if is_there(tree) else None for tree in self.trees]):
            files = _Files(
                stem,
                [path for path in images if path.suffix.lower() in _IMAGES],
                labels,
                [path for path in tags if path.suffix.lower() == ".txt"],
            )
            if files.images or files.tags or _pngs(labels):
                yield files

    def check(self) -> bool:
        """Whether each image needs a label or tags; LayoutError where images, or what they need, are missing."""
        images, labels, tags = (relative(tree, self.root) for tree in self.trees)
        if not any(files.images for files in self.files()):
            if self.list:
                raise _leads_nowhere(self.root, self.list)
            raise LayoutError(
                f"no image under {self.trees[0]}: expected files that end in {', '.join(_IMAGES)}; put the images there"
            )
        if self.split == "test" and not any(files.labels or files.tags for files in self.files()):
            return False
        if not any(is_there(tree) for tree in self.trees[1:]):
            raise LayoutError(
                f"neither {labels}/ nor {tags}/ found under {self.root}: expected {labels}/x.png for {images}/x.jpg; "
                "only test goes without labels"
            )
        return True


@dataclass(frozen=True)
class Folder(BaseReader):
    """Reader of the layout above; the class table is settled by `bind`."""

    table: ClassFile | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)

    name = "folder"
    layout = """\
ROOT/classes.txt                        one class name a line; line number, from 0 = id (or classes.tsv: id, name)
ROOT/images/[<split>/]**/x.jpg          jpg, jpeg, png, webp, tif, tiff, bmp
ROOT/labels/[<split>/]**/x.png          the same path and stem; ids, void = 255 (8 bits) or 65535 (16 bits)
ROOT/{train,val,test}.txt               optional lists instead of split folders: paths below images/
ROOT/tags/[<split>/]**/x.txt            optional, for images without a label: class names, one a line
splits: the lists; else the folders train, val, test and others that labels/ has too; else one, "all\""""
    source = "your own"
    terms = "your own"

    @property
    def title(self) -> str:
        return f"Own images and labels, {f'{len(self.classes)} classes' if self.table else 'any number of classes'}"

    @property
    def _known(self) -> ClassFile:
        if self.table is None:
            raise SettingsError("the classes of folder lie under its root: bind the reader to a root first")
        return self.table

    @property
    def classes(self) -> ClassTable:
        return self._known.classes

    def bind(self, root: Path, options: Mapping[str, str]) -> Folder:
        """The reader with the class table of the root."""
        table = read_class_file(root)
        digest = hashlib.sha256(repr((table.ids, table.colours)).encode()).hexdigest()
        return replace(self, table=table, identity={"label_ids": digest})

    def splits(self, root: Path) -> tuple[str, ...]:
        found: list[str] = []
        for split in _base_splits(root):
            found.append(split)
            place = _Place.of(root, split)
            if place.mixed and any(files.tagged for files in place.files()):
                found.append(f"{split}{_WEAK}")
        return tuple(found)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        base = split if split in _base_splits(root) else split.removesuffix(_WEAK)
        place = _Place.of(root, base)
        labelled = place.check()
        for files in place.files():
            if not place.mixed or files.tagged == (split != base):
                yield self._sample(place, files, labelled=labelled)

    def _sample(self, place: _Place, files: _Files, *, labelled: bool) -> RawSample:
        image = files.images[0] if files.images else place.trees[0] / f"{clean_key(files.stem)}.jpg"
        found = RawSample(clean_key(files.stem), image)
        try:
            _check_pair(place, files, labelled=labelled)
            if files.tagged:
                return replace(found, weak=self._tags(place.root, files.tags[0]))
        except SampleError as error:
            return replace(found, problem=str(error))
        return replace(found, label=_pngs(files.labels)[0]) if labelled else found

    def _tags(self, root: Path, path: Path) -> tuple[int, ...]:
        """A tag file -> class indices, ascending."""
        where, names = relative(path, root), self.classes.names
        try:
            lines = read_place(path, where).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise SampleError(f"{where}: not UTF-8 text") from None
        tags = {line.strip() for line in lines if line.strip()}
        for tag in sorted(tags - set(names)):
            near = difflib.get_close_matches(tag, names, n=1, cutoff=0.6)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise SampleError(f"{where}: '{tag[:80]}' is no class of {self._known.name}{hint}")
        return tuple(index for index, name in enumerate(names) if name in tags)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        image = open_header(data, where)
        if image.mode in ("RGB", "RGBA"):
            load_pixels(image, where)
            if image.format != "PNG" or png_depth(data) != 8:
                raise SampleError(f"{where}: label in colour that is no 8-bit PNG; expected ids, or 8-bit colours")
            return self._by_colour(np.asarray(image), where)
        ids = decode_indices(data, where)
        void = 255 if ids.dtype == np.uint8 else 65535
        if void == 255 and _may_be_class_or_void(self._known) and bool((ids == void).any()):
            raise SampleError(
                f"{where}: 255 found in a label of 8 bits, where it may be void or the class of id 255 in "
                f"{self._known.name}; expected 16 bits, since ids go beyond 255"
            )
        return _remap(self._known, void).apply(ids, where)

    def _by_colour(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], where: str) -> UInt16:
        if not self._known.colours:
            raise SampleError(
                f"{where}: label is a colour image, and {self._known.name} gives no colours; save one id a pixel (grey "
                "or palette PNG), or add each class's colour R,G,B after a tab"
            )
        if pixels.shape[2] == 4 and bool((pixels[..., 3] != 255).any()):
            raise SampleError(f"{where}: label in colour is transparent in places; expected alpha 255 everywhere")
        return _colour_remap(self._known, where).apply(pixels[..., :3], where)


@lru_cache(maxsize=4)
def _may_be_class_or_void(table: ClassFile) -> bool:
    """Whether 255 in 8-bit labels is unclear: it is a class, and so is an id that only 16-bit labels can hold."""
    classes = [id for id, target in table.ids if target != IGNORE]
    return 255 in classes and classes[-1] > 255


@lru_cache(maxsize=4)
def _remap(table: ClassFile, void: int) -> Remap:
    title = f"{table.name} ({len(table.classes)} classes, void {void})"
    return Remap.from_pairs(title, {void: IGNORE} | dict(table.ids))


def _colour_remap(table: ClassFile, where: str) -> ColourRemap:
    """SampleError where two classes share a colour, which only labels in colour need to tell apart."""
    if len(dict(table.colours)) != len(table.colours):
        twice = next(colour for colour, _ in table.colours if [c for c, _ in table.colours].count(colour) > 1)
        raise SampleError(
            f"{where}: label in colour, and two lines of {table.name} have the colour {','.join(map(str, twice))}"
        )
    return _cached_colour_remap(table)


@lru_cache(maxsize=1)
def _cached_colour_remap(table: ClassFile) -> ColourRemap:
    return ColourRemap.from_pairs(table.name, dict(table.colours))


def _base_splits(root: Path) -> tuple[str, ...]:
    """Splits by lists or by folders, before tagged images are told apart."""
    if not (root / "images").is_dir():
        raise LayoutError(
            f"images/ not found under {root}: expected images/, labels/ and classes.txt; point --root at the folder "
            "that holds them"
        )
    return _lists(root) or _split_folders(root) or ("all",)


def _lists(root: Path) -> tuple[str, ...]:
    return tuple(split for split in _USUAL if (root / f"{split}.txt").is_file())


def _split_folders(root: Path) -> tuple[str, ...]:
    """The splits that are folders, or () where images/ has none of the usual ones.

    Raises:
        LayoutError: files or folders beside the split folders, which no split would hold.
    """
    images, labels = subfolders(root / "images"), subfolders(root / "labels")
    usual = [split for split in _USUAL if split in images]
    if not usual:
        _refuse_near(root, images)
        return ()
    loose = next((path for path in sorted((root / "images").iterdir()) if path.suffix.lower() in _IMAGES), None)
    if loose is not None and loose.is_file():
        raise LayoutError(
            f"images/ under {root} holds {', '.join(f'{split}/' for split in usual)} and {loose.name} beside: expected "
            "every image in a split's folder; move it"
        )
    for name in sorted({*images, *labels} - set(usual)):
        if name not in images or name not in labels or not _SPLIT.fullmatch(name):
            here, there = ("images", "labels") if name in images else ("labels", "images")
            raise LayoutError(
                f"{here}/{name}/ under {root} is no split: expected {there}/{name}/ too, and a name of letters, "
                f"digits, _ and -, beside {', '.join(f'{split}/' for split in usual)}; rename or move it"
            )
    return (*usual, *sorted(set(images) - set(usual)))


def _refuse_near(root: Path, names: Iterable[str]) -> None:
    """LayoutError where folders are splits by other names, which one split "all" would mix."""
    near = [name for name in names if name.casefold() in _NEAR]
    if near:
        raise LayoutError(
            f"images/ under {root} holds {', '.join(f'{name}/' for name in near)}: expected the splits' names "
            f"{', '.join(_USUAL)}; rename them, in labels/ too"
        )


def _pngs(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() == ".png"]


def _check_pair(place: _Place, files: _Files, *, labelled: bool) -> None:
    """SampleError where the files of a stem are no pair of one image and one label."""
    images, labels = (relative(tree / files.stem, place.root) for tree in place.trees[:2])
    if not files.images:
        other = next((relative(path, place.root) for path in (*_pngs(files.labels), *files.tags)), "the list")
        raise SampleError(f"no image {images}.jpg (or {', '.join(_IMAGES[1:])}) found for {other}")
    for paths in (files.images, _pngs(files.labels)):
        if len(paths) > 1:
            names = ", ".join(relative(path, place.root) for path in paths)
            raise SampleError(f"{names} have one stem; expected one of them")
    if labelled and not _pngs(files.labels) and not files.tags:
        others = f"; {relative(files.labels[0], place.root)} is no PNG" if files.labels else ""
        raise SampleError(f"no label {labels}.png found for {relative(files.images[0], place.root)}{others}")


def _leads_nowhere(root: Path, path: Path) -> LayoutError:
    lines = listed(path)
    first = lines[0][:120] if lines else "nothing"
    return LayoutError(
        f"none of the {len(lines)} lines of {path} leads to an image (the first is '{first}'): expected paths below "
        f"{root / 'images'}, such as street/0001"
    )


def _stem(root: Path, line: str) -> str:
    """A list's line -> the stem below images/; "images/x.jpg" means x as well."""
    path = PurePosixPath(line.replace("\\", "/"))
    if path.parts[:1] == ("images",) and not (root / "images/images").is_dir():
        path = path.relative_to("images")
    return str(path.with_suffix("") if path.suffix.lower() in _IMAGES else path)


READER = Folder()
