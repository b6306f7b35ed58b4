"""Validation images that lie in one flat folder, with a list that gives each its wnid.

Tiny ImageNet: val/images/*.JPEG and val/val_annotations.txt (name, wnid, box; tab-separated). ImageNet-1k:
val/*.JPEG and LOC_val_solution.csv of Kaggle (ImageId,PredictionString, which starts with the wnid).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from prep.raw import Place, clean_key
from prep.wnids.variants import WNID
from shards.errors import LayoutError

_TINY, _KAGGLE = "val_annotations.txt", "LOC_val_solution.csv"
_LARGEST = 1 << 26  # bytes of a list


@dataclass(frozen=True)
class ListedImage:
    """An image as it is listed.

    Attributes:
        wnid: what it shows; "" where that is not known, which is a problem.
        name: file name.
        place: where it lies.
        problem: why it cannot be used, or None.
    """

    wnid: str
    name: str
    place: Place
    problem: str | None = None

    @property
    def stem(self) -> str:
        """The file name without its suffix."""
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True)
class ByList:
    """A split of one folder and a list.

    Attributes:
        folder: holds the images.
        path: the list.
        rows: {file name: wnid}.
        wrong: lines that are no such pair, or give an image another wnid than a line before.
    """

    folder: Path
    path: Path
    rows: dict[str, str]
    wrong: tuple[str, ...]

    @property
    def wnids(self) -> set[str]:
        return set(self.rows.values())

    def images(self, wanted: Container[str]) -> Iterator[ListedImage]:
        """Listed images of wanted wnids, sorted by wnid and name; then what the list and the folder do not share."""
        for name, wnid in sorted(self.rows.items(), key=lambda row: (row[1], clean_key(row[0]), row[0])):
            if wnid in wanted:
                yield ListedImage(wnid, name, self.folder / name)
        for name in sorted({path.name for path in self.folder.iterdir()} - set(self.rows)):
            if not name.startswith(".") and name not in (_TINY, _KAGGLE):
                yield ListedImage(
                    "", name, self.folder / name, f"not in {self.path.name}, or more than once: its wnid is not known"
                )
        for number, line in enumerate(self.wrong):
            problem = f"{self.path.name}: line '{line[:80]}' found; expected a file name and a wnid, once"
            yield ListedImage("", f"line-{number}", self.path, problem)


def load_list(folder: Path, root: Path, is_flat: Callable[[Path], bool]) -> ByList | None:
    """The images of a split folder by its list; None where they lie by wnid.

    Raises:
        LayoutError: a flat folder without a list, or a list that names no image of it.
    """
    if (folder / _TINY).is_file() and (folder / "images").is_dir() and any((folder / "images").iterdir()):
        return _checked(ByList(folder / "images", folder / _TINY, *_read(folder / _TINY, _tiny_row)))
    if not is_flat(folder):
        return None
    near = [place / _KAGGLE for place in (folder, folder.parent, root, root / "ILSVRC")]
    path = next((path for path in near if path.is_file()), None)
    if path is None:
        raise LayoutError(
            f"{folder} holds images and no folders named by wnid, and there is no {_KAGGLE} under {root}: expected one "
            f"of the two; put Kaggle's {_KAGGLE} into {root}, or sort the images into folders by wnid"
        )
    return _checked(ByList(folder, path, *_read(path, _kaggle_row)))


def _checked(split: ByList) -> ByList:
    if not any((split.folder / name).exists() for name in split.rows):
        first = next(iter([*split.rows, *split.wrong]), "nothing")
        raise LayoutError(
            f"none of the {len(split.rows) + len(split.wrong)} lines of {split.path} leads to an image in "
            f"{split.folder} (the first names '{first[:80]}'): expected file names and wnids; unpack the images there"
        )
    return split


def _read(path: Path, parse: Callable[[str], tuple[str, str]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """({file name: wnid}, lines that are wrong)."""
    if path.stat().st_size > _LARGEST:
        raise LayoutError(f"{path} has more than {_LARGEST} bytes: expected a list of images; put the right file there")
    rows, wrong, disputed = dict[str, str](), [], set[str]()
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if not line.strip() or line.startswith("ImageId,"):
            continue
        name, wnid = parse(line)
        if not WNID.fullmatch(wnid) or not name or "/" in name or "\\" in name or rows.get(name, wnid) != wnid:
            wrong.append(line)
            disputed |= {name} & rows.keys()
        else:
            rows[name] = wnid
    return {name: wnid for name, wnid in rows.items() if name not in disputed}, tuple(wrong)


def _tiny_row(line: str) -> tuple[str, str]:
    name, wnid, *_ = [*line.split("\t"), ""]
    return name.strip(), wnid.strip()


def _kaggle_row(line: str) -> tuple[str, str]:
    stem, _, boxes = line.partition(",")
    return f"{stem.strip()}.JPEG" if stem.strip() else "", boxes.partition(" ")[0].strip().strip('"')
