"""Which classes are candidates on an image of COCO + LVIS (`loss.lvis_negatives`, shards of `seg-prep cocolvis`).

LVIS checked only some of its 1,203 classes on each image: `pos_classes` of the meta are outlined, `neg_classes` are
absent. A pixel of that image says nothing about any other LVIS class, so these are no candidates of its softmax. The
stuff classes (1,203 and up) were labelled everywhere. Images with `"lvis": false` were not checked for any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SettingsError

LVIS_CLASSES = 1203
OFF = "or give --set loss.lvis_negatives=false"


def check_table(num_classes: int) -> None:
    """Raise SettingsError unless a class table can begin with the classes of LVIS v1."""
    if num_classes < LVIS_CLASSES:
        raise SettingsError(
            f"loss.lvis_negatives = true: found {num_classes} classes, expected the {LVIS_CLASSES:,} of LVIS v1 and "
            f"those after them; train on shards of seg-prep cocolvis, {OFF}"
        )


def candidates(meta: Mapping[str, Any], num_classes: int) -> npt.NDArray[np.bool_]:
    """What an image's pixels are evidence for or against, bool [C].

    Raises:
        SettingsError: the meta does not say what LVIS checked.
    """
    allowed = np.ones(num_classes, bool)
    allowed[:LVIS_CLASSES] = False
    if meta.get("lvis") is False:
        return allowed
    for name in ("pos_classes", "neg_classes"):
        allowed[_classes(meta, name, num_classes)] = True
    return allowed


def _classes(meta: Mapping[str, Any], name: str, num_classes: int) -> list[int]:
    found = meta.get(name)
    right = isinstance(found, list) and all(type(id) is int and 0 <= id < num_classes for id in found)
    if not right:
        what = "has no" if found is None else "has a broken"
        raise SettingsError(
            f"loss.lvis_negatives = true: sample {meta.get('key')} {what} {name} in its meta, expected a list of class "
            f"indices; train on shards of seg-prep cocolvis, {OFF}"
        )
    assert isinstance(found, list)
    return found
