"""Which known set of wnids this is, by fingerprint, and the classes of any set of wnids.

A fingerprint is the sha256 of the sorted wnids, one a line: the sets themselves need not ship.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from prep.mapping.wordnet import load_wordnet
from prep.taxonomy import load_classes
from shards.classes import ClassTable

WNID = re.compile(r"n[0-9]{8}")
FALL11 = "imagenet21k-21841"

# Counts and members: timm 1.0 (Apache-2.0), data/_info/imagenet*_synsets.txt; Tiny ImageNet: its wnids.txt.
VARIANTS = {
    "0ae24538751973797b29d8dec412b2bdc61bc4ec3ecd081eba0735804236bbd2": "ImageNet-21K fall11",
    "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2": "ImageNet-21K with two more wnids (goog)",
    "cd76d977daaa2f13a4a91fca0f53713f2f29675308d4ce0f0ee0e5b07a3164c6": "ImageNet-21K-P fall11 (miil)",
    "f49dde3d69946b8635586432f34f35985f807d168286ce5fde746aac3a7d94c8": "ImageNet-21K-P winter21 (miil)",
    "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15": "ImageNet-1k (ILSVRC2012)",
    "342d6acf18911d62da4c981221f833718a3ef8299e55512239e09c64e49a344c": "Tiny ImageNet",
}


@dataclass(frozen=True)
class Variant:
    """A set of wnids as people know it.

    Attributes:
        name: of the known set, or in words how it lies to ImageNet-21K.
        known: whether it is one of the sets above, whole.
    """

    name: str
    known: bool


def fingerprint(wnids: Collection[str]) -> str:
    """sha256 hex over the sorted wnids, each followed by a newline."""
    return hashlib.sha256("".join(f"{wnid}\n" for wnid in sorted(set(wnids))).encode()).hexdigest()


def recognise(wnids: Collection[str]) -> Variant:
    """The variant that a set of wnids is."""
    name = VARIANTS.get(fingerprint(wnids))
    if name:
        return Variant(name, True)
    inside = len(set(wnids).intersection(_fall11_names()))
    share = "all" if inside == len(set(wnids)) else str(inside)
    return Variant(f"wnids, {share} of them in ImageNet-21K fall11", False)


def classes_of(wnids: Collection[str]) -> ClassTable:
    """The class table of a set of wnids: sorted by wnid, names unique, `wnids` filled.

    A wnid has the same name in every set: that of the 21,841 classes, else "teddy (teddy.n.01)" by WordNet 3.0, else
    the wnid itself.
    """
    ordered = sorted(set(wnids))
    names = _fall11_names()
    return ClassTable.make([names.get(wnid) or _wordnet_name(wnid) for wnid in ordered], wnids=ordered)


def _fall11_names() -> dict[str, str]:
    table = load_classes(FALL11)
    return {wnid: name for wnid, name in zip(table.wnids, table.names, strict=True) if wnid}


def _wordnet_name(wnid: str) -> str:
    """ "teddy (teddy.n.01)", or the wnid itself where WordNet 3.0 has none such."""
    words = load_wordnet()  # a second and 60 MB, which the 21,841 do without
    return f"{words[wnid].lemmas[0]} ({words[wnid].name})" if wnid in words else wnid
