"""Everything that is scored on one split: classes always, categories and instances where the manifest knows them.

`metrics = SplitMetrics(dataset.classes, dataset.manifest.protocol)`, then `metrics.update(prediction, sample.hard,
sample.instances)` image by image at the source's resolution, and `metrics.to_dict()["miou"]`. Ranks add up what
`metrics.tables()` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
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
    """

    def __init__(
        self, classes: ClassTable, protocol: Mapping[str, Any] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.classes, self.device = classes, device
        self.counts = Counts.zeros(len(classes), device)
        self.categories = CategoryCounts(classes, device) if any(classes.categories) else None
        sizes = (protocol or {}).get("instance_sizes")
        self.instances = InstanceCounts(classes, sizes) if sizes else None
        self._images = torch.zeros(2, dtype=torch.int64)  # scored; of these with an instance map

    def update(
        self, prediction: Tensor, hard: np.ndarray[Any, Any], instances: np.ndarray[Any, Any] | None = None
    ) -> None:
        """Count one image.

        Args:
            prediction: integer [H, W] on `device`, classes.
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
        category_miou, per_category, iiou, per_class_iiou, category_iiou, per_category_iiou. All scores in 0..1."""
        out = {**self.counts.scores(self.classes.names).to_dict(), "images": int(self._images[0])}
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
