"""Pictures of a batch for TensorBoard: image, label and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import shards
from shards.classes import ClassTable
from shards.picture import colourise
from train.batch import Batch
from train.inference import as_label, classes_of

MOST = 4  # samples in one picture


def of_batch(model: nn.Module, batch: Batch, classes: ClassTable) -> npt.NDArray[np.uint8]:
    """uint8 [n * H, 3 * W, 3]: a row for each of the first samples, the label hardened.

    The model is left in training mode.
    """
    images = batch.images[:MOST]
    model.eval()
    with torch.inference_mode():
        found = as_label(classes_of(model(images)))  # [n, H, W]
    model.train()
    labels = enlarged(heaviest(batch), images.shape[2:])
    rows = [
        np.concatenate([image, colourise(label, classes), colourise(prediction, classes)], axis=1)
        for image, label, prediction in zip(images.permute(0, 2, 3, 1).cpu().numpy(), labels, found, strict=True)
    ]
    return np.concatenate(rows)


def enlarged(labels: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[Any]:
    """Labels [n, h, w] at (H, W), each cell as the square that it stands for (`data.target_stride`)."""
    height, width = size
    factor = -(-height // labels.shape[1])
    return labels.repeat(factor, 1).repeat(factor, 2)[:, :height, :width]


def heaviest(batch: Batch) -> npt.NDArray[Any]:
    """The heaviest class of each cell, uint16 [n, H, W]; void where a cell has no weight."""
    ids, weights = batch.ids[:MOST].cpu().numpy(), batch.weights[:MOST].cpu().numpy()
    top = np.take_along_axis(ids, weights.argmax(1)[:, None], 1)[:, 0]
    return np.where(weights.sum(1) > 0, top, shards.IGNORE).astype(np.uint16)
