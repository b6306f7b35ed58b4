"""What lies under the root of an ImageNet: which splits, and where the images of each wnid are.

    found = find_root(root)
    for image in found.splits["train"].images(wanted): ...

A wnid's images are a folder, a tar, or a tar in a tar. Memory is bounded by the wnid with the most images, not by the
dataset. Whatever fits nowhere is an error that names it, or is told in `ignored` where it is plainly no data.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prep.raw import FilePart, Place, clean_key
from prep.wnids.lists import ByList, ListedImage, load_list
from prep.wnids.tarfiles import members
from prep.wnids.variants import WNID
from shards.errors import LayoutError

_SPLITS = {"train": ("train", "imagenet21k_train"), "val": ("val", "imagenet21k_val")}
_BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "imagenet21k_resized")
_IMAGES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_NO_DATA = {  # folders that image-net.org and Kaggle ship beside the images, and what systems leave behind
    *("test", "annotation", "annotations", "imagesets", "boxes", "bbox", "bboxes", "imagenet21k_small_classes"),
    *("ilsvrc2012_devkit_t12", "ilsvrc2012_devkit_t3", "__macosx", "@eadir", "$recycle.bin", "lost+found"),
}
_EXPECTED = (
    "expected folders or tars named by wnid (n01440764/ or n01440764.tar), fall11_whole.tar, or train/ and val/ "
    "with such folders"
)
_SHOWN = 3


@dataclass(frozen=True)
class ByWnid:
    """A split whose images lie by wnid.

    Attributes:
        sources: {wnid: folder, tar or part of a tar}, sorted.
    """

    sources: dict[str, Place]

    @property
    def wnids(self) -> set[str]:
        return set(self.sources)

    def images(self, wanted: Container[str]) -> Iterator[ListedImage]:
        """The images of wanted wnids, sorted by wnid and stem."""
        for wnid, place in self.sources.items():
            if wnid in wanted:
                found = _of_folder(wnid, place) if isinstance(place, Path) and place.is_dir() else _of_tar(wnid, place)
                # Tars sort as folders do, so that both give the same shards, and equal keys are neighbours.
                yield from sorted(found, key=lambda image: (clean_key(image.stem), image.name))


@dataclass(frozen=True)
class Root:
    """What was found.

    Attributes:
        splits: by name, in the usual order.
        ignored: names of files and folders under the root that are plainly no images.
    """

    splits: dict[str, ByWnid | ByList]
    ignored: tuple[str, ...]

    @property
    def wnids(self) -> set[str]:
        """Those of all splits."""
        return set().union(*(split.wnids for split in self.splits.values()))


@dataclass
class _Scan:
    """The entries of a folder, sorted out."""

    sources: dict[str, Place] = field(default_factory=dict)
    tars: list[Path] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def add(self, wnid: str, place: Place) -> None:
        first = self.sources.setdefault(wnid, place)
        if first is not place:
            raise LayoutError(
                f"{wnid} found twice, in {_place_text(first)} and in {_place_text(place)}: expected one place for its "
                "images; remove the other (a tar whose folder is unpacked, say)"
            )


def find_root(root: Path) -> Root:
    """Look at a root. Raises LayoutError: nothing fits, or something is there that fits nowhere."""
    base, folders = _find_splits(root)
    if not folders:
        scan = _scan_wnids(root)
        return Root({"train": ByWnid(scan.sources)}, tuple(scan.ignored))
    ignored = _check_beside(root, base, folders)
    splits: dict[str, ByWnid | ByList] = {}
    for split, folder in folders.items():
        listed = load_list(folder, root, _is_flat) if split == "val" else None
        if listed:
            splits[split] = listed
        else:
            scan = _scan_wnids(folder)
            splits[split] = ByWnid(scan.sources)
            ignored += [f"{folder.name}/{name}" for name in scan.ignored]
    return Root(splits, tuple(ignored))


def _find_splits(root: Path) -> tuple[Path, dict[str, Path]]:
    """The folder that holds the split folders, and those that are there; (root, {}) where there are none."""
    for base in _BASES:
        folders = {
            split: root / base / name
            for split, names in _SPLITS.items()
            for name in names
            if (root / base / name).is_dir()
        }
        if folders:
            return root / base, folders
    return root, {}


def _check_beside(root: Path, base: Path, folders: dict[str, Path]) -> list[str]:
    """What lies beside the split folders; LayoutError where that looks like data."""
    skipped = {root: {base.relative_to(root).parts[0]} if base != root else set()}
    skipped[base] = {folder.name for folder in folders.values()}
    ignored = []
    for place, skip in skipped.items():
        scan = _scan(place, skip)
        strangers = [*scan.sources, *scan.strangers]
        if strangers:
            raise _strange(place, strangers, "expected no other data beside train/ and val/")
        ignored += [*scan.ignored, *(tar.name for tar in scan.tars)]
    return ignored


def _scan_wnids(folder: Path) -> _Scan:
    """The sources of a folder of wnids, with those of the tars of tars in it; LayoutError."""
    scan = _scan(folder)
    for tar in scan.tars:
        _add_tar_of_tars(scan, tar)
    if not scan.sources:
        archive = next((n for n in scan.ignored if n.lower().endswith(_COMPRESSED)), None)
        if archive:
            raise LayoutError(
                f"{folder / archive} is compressed, so no image in it can be read by itself: expected a folder; unpack "
                f"it there (tar -xf {archive}) and point --root at the folder that then holds the <wnid>.tar files"
            )
        found = f"{len(scan.strangers)} other entries ({_first(scan.strangers)})" if scan.strangers else "nothing"
        raise LayoutError(
            f"{folder} holds {found} and no wnid: {_EXPECTED}; point --root at the folder that holds them"
        )
    if scan.strangers:
        raise _strange(folder, scan.strangers, _EXPECTED)
    scan.sources = dict(sorted(scan.sources.items()))
    return scan


def _strange(folder: Path, strangers: list[str], expected: str) -> LayoutError:
    return LayoutError(
        f"{folder} holds {len(strangers)} entries that belong to no wnid ({_first(strangers)}): {expected}; move them "
        "elsewhere"
    )


def _first(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _scan(folder: Path, skip: Container[str] = ()) -> _Scan:
    scan = _Scan()
    for entry in _entries(folder):
        if entry.name not in skip:
            (_sort_folder if _is_folder(entry) else _sort_file)(scan, entry)
    return scan


def _sort_folder(scan: _Scan, entry: os.DirEntry[str]) -> None:
    if WNID.fullmatch(entry.name):
        scan.add(entry.name, Path(entry.path))
    elif entry.name.startswith(".") or entry.name.lower() in _NO_DATA or not _entries(Path(entry.path)):
        scan.ignored.append(f"{entry.name}/")
    else:
        scan.strangers.append(f"{entry.name}/")


def _sort_file(scan: _Scan, entry: os.DirEntry[str]) -> None:
    name, path = entry.name, Path(entry.path)
    if name.startswith("."):
        scan.ignored.append(name)
    elif path.suffix == ".tar":
        if WNID.fullmatch(path.stem):
            scan.add(path.stem, path)
        else:
            scan.tars.append(path)
    elif path.suffix.lower() in _IMAGES or WNID.match(name):  # the latter: n01440764.tar.gz, a link that leads nowhere
        scan.strangers.append(name)
    else:
        scan.ignored.append(name)


def _add_tar_of_tars(scan: _Scan, tar: Path) -> None:
    """The <wnid>.tar members of a tar. LayoutError where it starts with something else, or holds images."""
    for number, member in enumerate(members(tar)):
        path = PurePosixPath(member.path)
        if path.suffix == ".tar" and WNID.fullmatch(path.stem) and member.problem is None:
            scan.add(path.stem, member.place)
        elif number == 0 or path.suffix.lower() in _IMAGES:
            raise LayoutError(
                f"{tar} holds {member.path[:80]}: expected nothing but tars named by wnid in it (n01440764.tar); "
                "unpack it, or move it elsewhere"
            )
        else:
            scan.ignored.append(f"{tar.name}/{member.path}")


def _of_folder(wnid: str, folder: Path) -> Iterator[ListedImage]:
    """What lies in a wnid's folder, and in the `images` folder in it; only what is plainly no image is left out."""
    for entry in _entries(folder):
        name = entry.name
        if name.startswith(".") or name.endswith("_boxes.txt") or name in ("Thumbs.db", "desktop.ini"):
            continue
        if not _is_folder(entry):
            yield ListedImage(wnid, name, Path(entry.path))
        elif name == "images" and not entry.is_symlink():
            yield from _of_folder(wnid, Path(entry.path))
        else:
            yield ListedImage(wnid, name, Path(entry.path), "a folder where an image is expected")


def _of_tar(wnid: str, tar: Place) -> Iterator[ListedImage]:
    for member in members(tar):
        path = PurePosixPath(member.path)
        folder, problem = path.parent.name, member.problem
        if problem is None and folder != wnid and WNID.fullmatch(folder):
            problem = f"{member.path[:80]} lies in the tar of {wnid}; expected images of one wnid in a tar"
        if not path.name.startswith("."):
            yield ListedImage(wnid, path.name, member.place, problem)


def _is_flat(folder: Path) -> bool:
    """Whether a folder holds images and no wnids."""
    scan = _scan(folder)
    return not scan.sources and not scan.tars and any(Path(name).suffix.lower() in _IMAGES for name in scan.strangers)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """A folder's entries, sorted by name; links are not followed further than this."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise LayoutError(
            f"{folder} cannot be listed ({error.strerror}): expected a readable folder; see to its permissions"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _place_text(place: Place) -> str:
    return f"{place.path}/{place.name}" if isinstance(place, FilePart) else str(place)
