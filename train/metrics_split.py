"""Everything that is scored on one split: classes always, categories and instances where the manifest knows them.

`metrics = SplitMetrics(dataset.classes, dataset.manifest.protocol)`, then `metrics.update(prediction, sample.hard,
sample.instances)` image by image at the source's resolution, and `metrics.to_dict()["miou"]`. Ranks add up what
`metrics.tables()` lists.

Where classes are known to be base (annotated with pixels) or novel, the mean IoU is also given of each group: over the
classes of the group that have an IoU (train/metrics.py), with pixels of all classes counted as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.classes import ClassTable
from train.metrics import Counts
from train.metrics_instance import CategoryCounts, InstanceCounts, mean_score


class SplitMetrics:
    """Counts of one split and the scores that follow from them.

    Args:
        classes: the shard set's class table.
        protocol: its manifest's protocol; "instance_sizes" (name -> mean pixels of an instance) turns on iIoU.
        device: where predictions lie, so that counting does not move them.
        outside: predictions may be C: none of the classes, which is wrong for each.
        base: bool [C], which classes are base; the others are novel. None: not known.
    """

    def __init__(
        self,
        classes: ClassTable,
        protocol: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        outside: bool = False,
        base: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.classes, self.device, self.base = classes, device, base
        counted = _with_outside(classes) if outside else classes
        self.counts = Counts.zeros(len(counted), device)
        self.categories = CategoryCounts(counted, device) if any(classes.categories) else None
        sizes = (protocol or {}).get("instance_sizes")
        self.instances = InstanceCounts(counted, sizes) if sizes else None
        self._images = torch.zeros(2, dtype=torch.int64)  # scored; of these with an instance map

    def update(
        self, prediction: Tensor, hard: np.ndarray[Any, Any], instances: np.ndarray[Any, Any] | None = None
    ) -> None:
        """Count one image.

        Args:
            prediction: integer [H, W] on `device`, classes (C where none of them, see `outside`).
            hard: uint16 [H, W], classes or void (65535).
            instances: uint16 [H, W], 0 = none, or None where the dataset has none.
        """
        label = torch.from_numpy(hard.astype(np.int64)).to(self.device)
        self.counts.update(prediction, label)
        if self.categories is not None:
            self.categories.update(prediction, label)
        if self.instances is not None and instances is not None:
            self.instances.update(prediction.cpu().numpy(), hard, instances)
            self._images[1] += 1
        self._images[0] += 1

    def tables(self) -> list[Tensor]:
        """The whole state, for ranks to add up in place (some tables lie on the CPU, whatever `device` is)."""
        tables = [self.counts.table, self._images]
        if self.categories is not None:
            tables.append(self.categories.counts.table)
        if self.instances is not None:
            tables.append(self.instances.table)
        return tables

    def merge(self, other: SplitMetrics) -> None:
        """Add another part of the split."""
        for mine, theirs in zip(self.tables(), other.tables(), strict=True):
            mine += theirs.to(mine.device)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: miou, pixel_accuracy, mean_accuracy, fwiou, per_class, pixels, images; where known
        miou_base, miou_novel, per_class_group, category_miou, per_category, iiou, per_class_iiou, category_iiou,
        per_category_iiou. All scores in 0..1."""
        scores = Counts(self.counts.table[:, : len(self.classes)]).scores(self.classes.names)
        out = {**scores.to_dict(), "images": int(self._images[0])}
        if self.base is not None:
            out |= _group_scores(scores.per_class, self.base)
        if self.categories is not None:
            per_category = self.categories.scores()
            out |= {"category_miou": mean_score(per_category), "per_category": per_category}
        if self.instances is not None and int(self._images[1]):
            out |= self._instance_scores(self.instances)
        return out

    def _instance_scores(self, instances: InstanceCounts) -> dict[str, Any]:
        per_class = instances.class_scores(self.counts)
        out: dict[str, Any] = {"iiou": mean_score(per_class), "per_class_iiou": per_class}
        if self.categories is not None:
            per_category = instances.category_scores(self.categories)
            out |= {"category_iiou": mean_score(per_category), "per_category_iiou": per_category}
        return out


def _with_outside(classes: ClassTable) -> ClassTable:
    """The classes and, behind them, a place for predictions that are none of them."""
    columns = classes.to_dict()
    name = next(mark for mark in map("-".__mul__, range(1, len(classes) + 2)) if mark not in columns["names"])
    last = {"names": name, "colours": (0, 0, 0), "wnids": None, "categories": None, "things": None}
    return ClassTable.from_dict({key: [*values, last[key]] for key, values in columns.items()})


def _group_scores(per_class: Mapping[str, float | None], base: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The mean IoU of base and of novel classes, and which class is which."""
    group = {name: "base" if seen else "novel" for name, seen in zip(per_class, base, strict=True)}
    means = {
        f"miou_{which}": mean_score({name: iou for name, iou in per_class.items() if group[name] == which})
        for which in ("base", "novel")
    }
    return {**means, "per_class_group": group}
