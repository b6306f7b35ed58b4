"""Cross-entropy of a cosine head's scores against sparse soft targets: the pixel loss (train/models/cosine.py).

Where targets lie on the grid of the features, the softmax is exact over all candidates and nothing of size
[cells, C] exists (train/losses/dot.py). Where they are finer, dense scores of the coarse grid are resized bilinearly
to theirs, as in LarvSeg's release: for few classes only.

Candidates are the classes that can be wrong: those of the source at hand, or all, or (loss.sampled_classes) the
classes present and some others drawn at random. Scores are standardised over the candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import SettingsError
from train.config import Loss
from train.losses.dot import dot_cross_entropy_sums
from train.losses.soft import single_class_only, soft_cross_entropy
from train.models.cosine import Cosined, gains, without_autocast

MOST = 2 << 30  # bytes of dense scores and their gradient


class CosineLoss(nn.Module):
    """forward(output, ids [B, K, h', w'], weights [B, K, h', w'], candidates bool [C] or None) -> (loss_sum,
    weight_sum), sums that add up over micro-batches and ranks.

    Raises:
        SettingsError: a target that is no candidate, or dense scores of more than 2 GiB.
    """

    def __init__(self, config: Loss) -> None:
        super().__init__()
        if config.kind != "cross-entropy":
            raise SettingsError(f'loss.kind = "{config.kind}": expected "cross-entropy" with model.head = "cosine"')
        self.multi_class_cells, self.sampled = config.multi_class_cells, config.sampled_classes

    def forward(
        self, output: Cosined, ids: Tensor, weights: Tensor, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.multi_class_cells:
            weights = single_class_only(weights)
        table = output.table
        if candidates is not None or self.sampled:
            table, ids = among(output.table, ids, weights, candidates, self.sampled)
        cropped = _on_grid(output, (ids.shape[2], ids.shape[3]))
        if cropped is None:
            return soft_cross_entropy(dense_scores(output, table, (ids.shape[2], ids.shape[3])), ids, weights)
        steep = steep_rows(output._replace(features=cropped), table)
        return dot_cross_entropy_sums(steep, table, rows_of(ids), rows_of(weights))


def rows_of(planes: Tensor) -> Tensor:
    """[B, X, H, W] -> [B * H * W, X]."""
    return planes.permute(0, 2, 3, 1).reshape(-1, planes.shape[1])


def steep_rows(output: Cosined, table: Tensor) -> Tensor:
    """Features times their gains over the candidates `table` [c, d]: their products with it are the scores.

    Returns:
        [B * h * w, d].
    """
    features = rows_of(output.features)
    return gains(features, table, output.gamma, output.standardised)[:, None] * features


def among(
    table: Tensor, ids: Tensor, weights: Tensor, candidates: Tensor | None, sampled: int
) -> tuple[Tensor, Tensor]:
    """The candidates' vectors [c, d], and the targets' places among them, of the shape of `ids`.

    Args:
        table: [C, d].
        ids, weights: targets of any shape.
        candidates: bool [C]; None: all.
        sampled: as in `drawn`.

    Raises:
        SettingsError: a target that is no candidate.
    """
    present = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    present[ids[weights > 0].long()] = True
    allowed = torch.ones_like(present) if candidates is None else candidates.to(present.device)
    strange = (present & ~allowed).nonzero()
    if len(strange):
        raise SettingsError(f"a target holds class id {int(strange[0])}, which is no class of its source")
    kept = drawn(present, allowed, sampled) if sampled else allowed.nonzero()[:, 0]
    place = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    place[kept] = torch.arange(len(kept), device=table.device)
    return table[kept], place[torch.where(weights > 0, ids.long(), 0)]


def drawn(present: Tensor, allowed: Tensor, sampled: int) -> Tensor:
    """The classes present and `sampled` others, all of them where there are fewer, drawn with torch's generator.

    Args:
        present, allowed: bool [C]; what is present is allowed.
        sampled: how many others.

    Returns:
        int64 [c], rising.
    """
    chance = torch.rand(len(allowed), device=allowed.device).masked_fill(~allowed, -1.0).masked_fill(present, 2.0)
    count = min(int(allowed.sum()), int(present.sum()) + sampled)
    return chance.topk(count).indices.sort().values


def _on_grid(output: Cosined, grid: tuple[int, int]) -> Tensor | None:
    """The features [B, d, h', w'] of the targets' cells, where the targets have a cell for each; else None."""
    cells = tuple(-(-side // output.step) for side in output.size)
    return output.features[:, :, : grid[0], : grid[1]] if cells == grid else None


def dense_scores(output: Cosined, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scores of the candidates on a finer grid, bilinearly out of those at the features' stride: [B, c, h', w'].

    Args:
        output: of the network.
        table: [c, d], the candidates' vectors.
        grid: (h', w') of the result: a cell for each target_stride x target_stride pixels of the image.

    Raises:
        SettingsError: they would need more than 2 GiB, or the grid is coarser or none of the image's.
    """
    batch, (rows, columns) = len(output.features), output.features.shape[2:]
    cell = _cell(output.size, grid)
    if cell > output.step:
        raise SettingsError(f"data.target_stride = {cell}: expected at most {output.step}, the network's stride")
    needed = 8 * batch * len(table) * grid[0] * grid[1]
    if needed > MOST:
        raise SettingsError(
            f"scores of {len(table)} classes on {batch} x {grid[0]} x {grid[1]} cells take {needed / 2**30:.0f} GiB, "
            f"expected at most {MOST >> 30}: set data.target_stride = {output.step}, where none are held, or "
            f"loss.sampled_classes"
        )
    steep = steep_rows(output, table)
    with without_autocast(steep.device):
        scores = (steep @ table.t()).view(batch, rows, columns, -1).permute(0, 3, 1, 2)  # [B, c, h, w]
    whole = (rows * output.step // cell, columns * output.step // cell)
    resized = F.interpolate(scores, size=whole, mode="bilinear", align_corners=False)
    return resized[..., : grid[0], : grid[1]]


def _cell(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """How many pixels of the image a target's cell is wide."""
    for cell in (1, 2, 4, 8, 16, 32):
        if all(-(-side // cell) == cells for side, cells in zip(size, grid, strict=True)):
            return cell
    raise SettingsError(
        f"targets of {grid[0]} x {grid[1]} cells for images of {size[0]} x {size[1]}: expected a cell for each k x k "
        f"pixels, k = data.target_stride"
    )
