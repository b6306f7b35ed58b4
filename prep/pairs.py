"""Two folders of files with equal stems: the layout that most pixel-labelled datasets share.

    yield from paired(root / "images/training", root / "annotations/training", "unpack ADEChallengeData2016.zip there")

Nothing vanishes: an image without its label, and a label without its image, are listed with the path that the other
half should have, and the pipeline quarantines them as "missing file".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prep.raw import RawSample, clean_key
from shards.errors import LayoutError

IMAGES = (".jpg", ".jpeg", ".png")


def paired(
    images: Path, labels: Path | None, remedy: str, suffix: str = ".png", leave_out: str | None = None
) -> Iterator[RawSample]:
    """The samples of an image folder and a label folder, by stem; two images of one stem are two samples.

    Args:
        images: its .jpg, .jpeg and .png files are taken, in any case.
        labels: its files that end in `suffix` are taken; None where the split is unlabelled.
        remedy: what to do where a folder is missing or empty.
        leave_out: labels whose stem ends so are other tools' files.

    Raises:
        LayoutError: a folder is missing, or holds no such file.
    """
    found = _by_stem(images, IMAGES, remedy)
    truth = _by_stem(labels, (suffix,), remedy) if labels else {}
    if leave_out:
        truth = {stem: names for stem, names in truth.items() if not stem.endswith(leave_out)}
    for stem in sorted(found.keys() | truth.keys()):
        names = truth.get(stem, [stem + suffix])
        label = labels / names[0] if labels else None
        problem = f"labels {', '.join(names)} have one stem; expected one of them" if len(names) > 1 else None
        for name in found.get(stem, [stem + IMAGES[0]]):
            yield RawSample(clean_key(stem), images / name, label, problem=problem)


def _by_stem(folder: Path, suffixes: tuple[str, ...], remedy: str) -> dict[str, list[str]]:
    """{stem: names} of a folder's files that end in one of the suffixes."""
    found: dict[str, list[str]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise LayoutError(f"{folder} cannot be listed ({error.strerror}): {remedy}") from None
    for path in paths:
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path.name)
    if not found:
        raise LayoutError(f"{folder} holds no *{' or *'.join(suffixes)} files: {remedy}")
    return found


def is_there(folder: Path) -> bool:
    """Whether a folder is there. A link that leads nowhere is: listing it fails, where its split would else vanish."""
    return folder.is_dir() or folder.is_symlink()


def first_folder(root: Path, *candidates: str) -> Path | None:
    """The first of the folders below `root` that is there."""
    return next((root / name for name in candidates if is_there(root / name)), None)


def listed(path: Path) -> list[str]:
    """The lines of a text file, without blanks at their ends and without empty lines."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\0", "\ufffd")  # no path may hold a 0
    return [line.strip() for line in text.splitlines() if line.strip()]
