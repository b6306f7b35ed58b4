"""Pictures for people: colourised labels, overlays, entropy maps. uint8 RGB arrays in, out."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from shards.classes import IGNORE, ClassTable
from shards.softlabel import U16, SoftLabel

U8 = npt.NDArray[np.uint8]
VOID_COLOUR = (0, 0, 0)


def colourise(hard: U16, classes: ClassTable) -> U8:
    """Hard label uint16 [H, W] in the table's colours, void black: uint8 [H, W, 3]."""
    palette = np.array([*classes.colours, VOID_COLOUR], np.uint8)
    return palette[np.where(hard == IGNORE, len(classes), hard)]


def blend(soft: SoftLabel, classes: ClassTable) -> U8:
    """Soft label in the mixed colours of its classes, uint8 [h, w, 3]; void counts as black."""
    ids, weights = soft.topk(soft.max_classes)  # [k, h, w]
    out = np.zeros((*soft.shape, 3), np.float32)
    for id, weight in zip(ids, weights, strict=True):
        out += colourise(id, classes) * (weight / np.float32(soft.denominator))[..., None]
    return np.rint(out).astype(np.uint8)


def overlay(image: U8, hard: U16, classes: ClassTable, alpha: float = 0.5) -> U8:
    """The colourised label over its image [H, W, 3], void left clear."""
    mixed = np.rint(image * (1 - alpha) + colourise(hard, classes) * alpha).astype(np.uint8)
    return np.where((hard == IGNORE)[..., None], image, mixed)


def entropy_map(soft: SoftLabel) -> U8:
    """Entropy of each cell as a heat map uint8 [h, w, 3]: black 0, brightest log(max_classes) nats."""
    top = max(float(np.log(soft.max_classes)), 1e-6)
    grey = np.rint(np.clip(soft.entropy() / top, 0, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB), np.uint8)
