"""`--map-to`: the wnids of an ImageNet as the classes of another dataset, by our mapping or by a file.

FILE is UTF-8 text with tabs between columns and their names in the first line; wnid and class are needed, and classes
are numbered in the order in which they first appear; the class `void` leaves a wnid out.
`seg-prep map imagenet21k ade20k --out FILE` writes one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from prep.class_file import is_void
from prep.mapping.table import read_mapping
from shards.classes import ClassTable
from shards.errors import SettingsError

_BROADER = "hypernym"
TARGETS = ("ade20k", "ade20k-full", "cocostuff", "cocolvis")


@dataclass(frozen=True)
class Mapped:
    """Wnids as classes.

    Attributes:
        classes: the class table.
        weak: {wnid: (class index,)} of the wnids that are there and lead to a class.
        target: what was mapped to, for people; "" where every wnid is a class of its own.
    """

    classes: ClassTable
    weak: Mapping[str, tuple[int, ...]]
    target: str = ""


def load_mapping(target: str, wnids: Collection[str], descendants: bool = False) -> Mapped:
    """The mapping to a dataset's classes, or that in a file, cut to the wnids that are there.

    A synset that is broader than its class (rule `hypernym`) is left out: its images need not show the class.

    Args:
        target: a dataset or a file.
        wnids: those that are there.
        descendants: also take the kinds of every mapped synset; only with a dataset.

    Raises:
        SettingsError: neither a dataset that can be mapped to nor a file, or a mapping of none of the wnids.
        FormatError: a file that is no mapping.
    """
    path = Path(target)
    if target not in TARGETS and not path.is_file():
        raise SettingsError(
            f"--map-to {target}: neither {', '.join(TARGETS)} nor a file: expected one of these, or a file of "
            "tab-separated columns wnid and class"
        )
    if descendants and target not in TARGETS:
        raise SettingsError(
            f"--descendants found with --map-to {target}: expected one of {', '.join(TARGETS)}; write the "
            "kinds into the file (seg-prep map --descendants does), and leave the option out"
        )
    classes, pairs = _ours(target, descendants) if target in TARGETS else _of_file(path)
    weak = {wnid: (pairs[wnid],) for wnid in sorted(wnids) if wnid in pairs}
    if not weak:
        raise SettingsError(
            f"--map-to {target}: none of its {len(pairs)} wnids is among the {len(wnids)} under the root: expected "
            "some in common; choose another target or root"
        )
    return Mapped(classes, weak, target if target in TARGETS else path.name)


def _ours(target: str, descendants: bool) -> tuple[ClassTable, Mapping[str, int]]:
    from prep.datasets import load_reader  # which loads this module's reader
    from prep.mapping import map_classes

    pairs = map_classes("imagenet21k", target, descendants=descendants).pairs
    return load_reader(target).classes, {pair.wnid: pair.class_id for pair in pairs if pair.rule != _BROADER}


def _of_file(path: Path) -> tuple[ClassTable, Mapping[str, int]]:
    names = {wnid: name for wnid, name in read_mapping(path).items() if not is_void(name, str(path))}
    ids = {name: index for index, name in enumerate(dict.fromkeys(names.values()))}
    return ClassTable.make(list(ids)), {wnid: ids[name] for wnid, name in names.items()}
