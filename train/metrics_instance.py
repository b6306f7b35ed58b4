"""Category IoU and instance-level IoU (iIoU), as the official Cityscapes evaluation defines them.

Where the class table names categories, a category's IoU takes its classes as one. iIoU weighs every pixel of an
instance with (mean instance size of its class) / (its own size), so that small things count as much as large ones:
iTP / (iTP + FP + iFN), with FP unweighted, for classes that are things and have a mean size in
protocol["instance_sizes"], and for categories that hold nothing but things. Things that no instance map delimits
(crowds) are in FP's domain but not in iTP and iFN, as in the original. Averages leave out what has no score.

Source: Cordts et al., "The Cityscapes dataset", section 4.1, and cityscapesScripts, evalPixelLevelSemanticLabeling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import shards
from shards.classes import ClassTable
from train.metrics import Counts

Map = np.ndarray[Any, Any]


class CategoryCounts:
    """Pixel counts of categories: `Counts` over categories in place of classes.

    Args:
        classes: the class table; a class without a category is a false positive where a category is predicted.
        device: where the counts live.
    """

    def __init__(self, classes: ClassTable, device: torch.device | str = "cpu") -> None:
        self.names = category_names(classes)
        self.counts = Counts.zeros(len(self.names) + 1, device)  # the last: no category
        places = [self.names.index(c) if c is not None else len(self.names) for c in classes.categories]
        self._of_class = torch.tensor(places, dtype=torch.int64, device=device)  # [C]

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """As `Counts.update`, on the same maps."""
        labels = label.long()
        void = labels == shards.IGNORE
        truth = self._of_class[labels.masked_fill(void, 0)].masked_fill(void, shards.IGNORE)
        self.counts.update(self._of_class[prediction.long()], truth)

    def scores(self) -> dict[str, float | None]:
        """IoU of each category by name."""
        found = self.counts.scores([*self.names, ""]).per_class
        return {name: found[name] for name in self.names}


class InstanceCounts:
    """Weighted true positives and false negatives of things; sums that ranks can add up.

    Args:
        classes: the class table, with `things` and `categories`.
        sizes: mean instance size of each thing class by name, in pixels (the manifest's protocol["instance_sizes"]).
    """

    def __init__(self, classes: ClassTable, sizes: Mapping[str, float]) -> None:
        self.classes = classes
        self.categories = instance_categories(classes)
        self._sizes = np.array(
            [float(sizes.get(n, 0.0)) if thing else 0.0 for n, thing in zip(classes.names, classes.things, strict=True)]
        )  # [C]; 0: not scored
        names = category_names(classes)
        self._of_class = np.array([names.index(c) if c is not None else -1 for c in classes.categories])  # [C]
        self.table = torch.zeros(4, len(classes), dtype=torch.float64)  # iTP, iFN by class; then of its category

    def update(self, prediction: Map, label: Map, instances: Map) -> None:
        """Count the instances of one image.

        Args:
            prediction: integer [H, W], classes 0..C-1.
            label: uint16 [H, W], classes or void.
            instances: uint16 [H, W], 0 = none; an instance's class is the one that most of its pixels have.
        """
        inside = instances > 0
        ids, guess, truth = instances[inside], prediction[inside].astype(np.int64), label[inside].astype(np.int64)
        for one in np.unique(ids):
            mine = ids == one
            values, counts = np.unique(truth[mine], return_counts=True)
            self._count(int(values[counts.argmax()]), guess[mine])

    def _count(self, of: int, guess: Map) -> None:
        """Add one instance of class `of` with predictions [n]."""
        if of == shards.IGNORE or self._sizes[of] == 0:
            return
        weight = self._sizes[of] / len(guess)
        right = int((guess == of).sum())
        near = int((self._of_class[guess] == self._of_class[of]).sum()) if self._of_class[of] >= 0 else right
        column = [right, len(guess) - right, near, len(guess) - near]
        self.table[:, of] += weight * torch.tensor(column, dtype=torch.float64)

    def class_scores(self, counts: Counts) -> dict[str, float | None]:
        """iIoU of each thing class; `counts` are those of the same images."""
        false = _false_positives(counts)
        return {
            name: _ratio(float(self.table[0, i]), float(self.table[1, i]), int(false[i]))
            for i, name in enumerate(self.classes.names)
            if self._sizes[i]
        }

    def category_scores(self, categories: CategoryCounts) -> dict[str, float | None]:
        """iIoU of each category that holds nothing but things."""
        false = _false_positives(categories.counts)
        out: dict[str, float | None] = {}
        for name in self.categories:
            members = [i for i, c in enumerate(self.classes.categories) if c == name]
            hits, misses = self.table[2, members].sum(), self.table[3, members].sum()
            out[name] = _ratio(float(hits), float(misses), int(false[categories.names.index(name)]))
        return out


def category_names(classes: ClassTable) -> list[str]:
    """The categories, in the order in which the class table first names them."""
    return list(dict.fromkeys(c for c in classes.categories if c is not None))


def instance_categories(classes: ClassTable) -> list[str]:
    """The categories whose classes are all things."""
    mixed = {c for c, thing in zip(classes.categories, classes.things, strict=True) if not thing}
    return [name for name in category_names(classes) if name not in mixed]


def mean_score(scores: Mapping[str, float | None]) -> float | None:
    """The mean over what has a score."""
    known = [value for value in scores.values() if value is not None]
    return sum(known) / len(known) if known else None


def _false_positives(counts: Counts) -> Tensor:
    return counts.table[2] - counts.table[0]


def _ratio(hits: float, misses: float, false: int) -> float | None:
    total = hits + misses + false
    return hits / total if total > 0 else None
