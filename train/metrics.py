"""Scores of a segmentation from int64 counts a class: O(C) memory, exact, and additive across images and ranks.

    counts = Counts.zeros(len(classes))
    counts.update(prediction, hard)            # for every image, at the source's resolution
    scores = counts.scores(classes.names)      # scores.miou, scores.per_class["road"], scores.to_dict()

Void pixels of the label count nowhere, whatever is predicted there. With TP, the label pixels L and the predicted
pixels P of a class (void left out), IoU = TP / (L + P - TP). The rule for absent classes is that of the official
Cityscapes evaluation: a class that is neither in the labels nor in the predictions (L + P = 0) has no IoU and is left
out of the mean; one that is only predicted (L = 0, P > 0) has IoU 0 and is in the mean. All scores lie in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import shards
from shards.errors import SettingsError


@dataclass(frozen=True)
class Scores:
    """What a split scored, each in 0..1; None where nothing was there to score.

    Args:
        miou: mean of the classes' IoU.
        pixel_accuracy: share of the label pixels that are right.
        mean_accuracy: mean, over the classes in the labels, of the share of their pixels that is right.
        fwiou: IoU weighted by the classes' share of the label pixels.
        per_class: IoU of each class by name, in the class table's order.
        pixels: label pixels that were scored.
    """

    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    fwiou: float | None
    per_class: dict[str, float | None]
    pixels: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Counts:
    """True positives, label pixels and predicted pixels of each class.

    Args:
        table: int64 [3, C], on any device; the rows in the order above. It is the whole state: ranks add theirs up
            (`torch.distributed.all_reduce(counts.table)`).
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    @classmethod
    def zeros(cls, num_classes: int, device: torch.device | str = "cpu") -> Counts:
        """Nothing seen yet."""
        return cls(torch.zeros(3, num_classes, dtype=torch.int64, device=device))

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image, or several.

        Args:
            prediction: integer [...], classes 0..C-1.
            label: integer of the same shape and device, classes 0..C-1, or void (65535).

        Raises:
            SettingsError: the shapes differ, or a class is not in 0..C-1.
        """
        if prediction.shape != label.shape:
            raise SettingsError(
                f"found predictions of shape {tuple(prediction.shape)} for labels of shape {tuple(label.shape)}; "
                "score at the label's own size"
            )
        labels = label.long()  # uint16 has no comparisons in torch
        seen = labels != shards.IGNORE
        truth, guess = labels[seen], prediction[seen].long()
        self.table += torch.stack([self._tally(truth[truth == guess]), self._tally(truth), self._tally(guess)])

    def merge(self, other: Counts) -> None:
        """Add another part's counts."""
        self.table += other.table.to(self.table.device)

    def scores(self, names: Sequence[str]) -> Scores:
        """The scores of what was counted; `names` are the C classes' names."""
        hits, label, predicted = self.table.double().cpu()  # each [C]
        iou = hits / (label + predicted - hits)  # 0 / 0: not a number, so no score
        accuracy = hits / label
        total = label.sum()
        weighted = torch.where(label > 0, label * iou, 0.0).sum()
        return Scores(
            miou=_mean(iou),
            pixel_accuracy=_number(hits.sum() / total),
            mean_accuracy=_mean(accuracy),
            fwiou=_number(weighted / total),
            per_class=dict(zip(names, map(_number, iou), strict=True)),
            pixels=int(self.table[1].sum()),
        )

    def _tally(self, classes: Tensor) -> Tensor:
        """How often each class occurs in an int64 [n]."""
        num_classes = self.table.shape[1]
        if classes.numel() and not (int(classes.min()) >= 0 and int(classes.max()) < num_classes):
            raise SettingsError(
                f"found class {int(classes.max())} (lowest {int(classes.min())}) among labels or predictions, expected "
                f"0 to {num_classes - 1} or void ({shards.IGNORE}); use the class table that the run was trained with"
            )
        return torch.bincount(classes, minlength=num_classes)


def _mean(values: Tensor) -> float | None:
    """The mean of what is a number."""
    return _number(values.nanmean())


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
