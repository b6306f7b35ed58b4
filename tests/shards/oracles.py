"""The slow, obvious answers: one-hot planes resized in float64 by torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from shards import IGNORE
from shards.softlabel import U16


def one_hot(hard: U16, classes: int) -> torch.Tensor:
    """float64 [1, classes + 1, H, W]; the last plane is void."""
    ids = torch.from_numpy(np.where(hard == IGNORE, classes, hard).astype(np.int64))
    return F.one_hot(ids, classes + 1).permute(2, 0, 1)[None].double()  # [1, C + 1, H, W]


def resized(hard: U16, classes: int, size: tuple[int, int], filter: str) -> npt.NDArray[np.float64]:
    """Shares [h, w, classes + 1] by torch's own resize."""
    if size[1] == 1 and filter == "triangle":  # torch 2.12 antialiases into single columns wrongly: transpose
        return resized(hard.T, classes, (1, size[0]), filter).transpose(1, 0, 2)
    planes = one_hot(hard, classes)
    if filter == "box":
        out = F.interpolate(planes, size=size, mode="area")
    else:
        out = F.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=filter == "triangle")
    return out[0].permute(1, 2, 0).numpy()


def box_with_void_border(hard: U16, classes: int, k: int) -> npt.NDArray[np.float64]:
    """Shares [ceil(H / k), ceil(W / k), classes + 1] of k x k blocks, what is beyond the border counted as void."""
    h, w = -(-hard.shape[0] // k), -(-hard.shape[1] // k)
    grown = np.full((h * k, w * k), IGNORE, np.uint16)
    grown[: hard.shape[0], : hard.shape[1]] = hard
    return F.avg_pool2d(one_hot(grown, classes), k)[0].permute(1, 2, 0).numpy()


def shares(soft: object, classes: int) -> npt.NDArray[np.float64]:
    """A SoftLabel as [h, w, classes + 1], built from topk alone."""
    ids, weights = soft.topk(soft.max_classes)  # type: ignore[attr-defined]
    out = np.zeros((*ids.shape[1:], classes + 1))
    rows, columns = np.indices(ids.shape[1:])
    for id, weight in zip(ids, weights, strict=True):
        np.add.at(out, (rows, columns, np.where(id == IGNORE, classes, id)), weight / soft.denominator)  # type: ignore[attr-defined]
    return out
