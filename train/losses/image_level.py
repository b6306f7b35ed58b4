"""Cross-entropy of average-pooled scores against image-level labels: LarvSeg's simple baseline.

    pairs = pairs_of(batch.tags, candidates, images)               # candidates int64 [c]
    loss_sum = pooled_loss_sum(cells, table[candidates], gains, pairs)      # cells [B, N, d], gains [B, N]

Source: LarvSeg, section 3.1. For every pair of an image and a class that it shows, the scores are averaged over the
image, and the softmax goes over the candidates without the image's other classes; the paper's loss is the mean over
the pairs. Scores are linear in the class vectors, so their average over an image is too:

    mean_n a_n gain_n (f_n . w_c - mu_n) = w_c . (mean_n a_n gain_n f_n) - const

and a constant is nothing to a softmax: one vector an image (a_n = 1) or a pair (a_n: train/losses/attention.py) stands
for all its cells, [V, d] against [C, d] whatever the image's size. Gains are train/models/cosine.py's.

The release resizes scores to the label's grid before it averages them; here the average is over the network's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ENTRIES = 1 << 22  # scores that are held for backward; more are computed a second time


class Pairs(NamedTuple):
    """Images and the classes that they show.

    Args:
        image: int64 [P], ascending.
        classes: int64 [P], of the run's table; ascending within an image.
        column: int64 [P], where the class stands among the candidates.
        present: bool [B, c], which candidates each image shows.
    """

    image: Tensor
    classes: Tensor
    column: Tensor
    present: Tensor

    def only(self, kept: Tensor) -> Pairs:
        """Some of the pairs (bool [P]); all of them are still present."""
        return Pairs(self.image[kept], self.classes[kept], self.column[kept], self.present)


def pairs_of(tags: Tensor, candidates: Tensor, images: int) -> Pairs:
    """The pairs of a batch.

    Args:
        tags: int64 [P, 2], rows (image, class), sorted and unique; every class among the candidates.
        candidates: int64 [c], ascending.
        images: B.

    Raises:
        ValueError: a class that is no candidate.
    """
    image, classes = tags[:, 0].contiguous(), tags[:, 1].contiguous()
    column = torch.searchsorted(candidates, classes)
    if bool((candidates[column.clamp(max=len(candidates) - 1)] != classes).any()):
        raise ValueError("an image label that is no candidate: expected candidates with all labels of the batch")
    present = torch.zeros(images, len(candidates), dtype=torch.bool, device=tags.device)
    present[image, column] = True
    return Pairs(image, classes, column, present)


def pooled_loss_sum(cells: Tensor, table: Tensor, gains: Tensor, pairs: Pairs) -> Tensor:
    """The baseline's loss, summed over the pairs; 0 with gradient 0 where there are none.

    Args:
        cells: [B, N, d] unit vectors, float32 or float64.
        table: [c, d] unit vectors of the candidates.
        gains: [B, N], see the module.
    """
    vectors = torch.einsum("bnd,bn->bd", cells, gains) / cells.shape[1]
    return vectors_loss_sum(vectors, table, pairs, pairs.image)


def vectors_loss_sum(vectors: Tensor, table: Tensor, pairs: Pairs, row: Tensor | None = None) -> Tensor:
    """- sum over the pairs of log softmax(vector . table), each over its class and the classes that are not present.

    Args:
        vectors: [V, d], of the images, or of the pairs themselves.
        table: [c, d].
        row: int64 [P], which vector is a pair's; None: each its own.
    """
    if row is None:
        rest, mine = _rest(vectors, table, pairs.present[pairs.image]), vectors
    else:
        rest, mine = _rest(vectors, table, pairs.present)[row], vectors[row]
    return _cost((mine * table[pairs.column]).sum(1), rest)


def _rest(vectors: Tensor, table: Tensor, present: Tensor) -> Tensor:
    """log sum exp of the scores of all classes that are not present: [V]; `_log_sum` over `_scores`, in parts."""
    rows = max(1, ENTRIES // max(1, len(table)))
    if len(vectors) <= rows:
        return _scored(vectors, table, present)
    parts = zip(vectors.split(rows), present.split(rows), strict=True)
    return torch.cat([checkpoint(_scored, part, table, here, use_reentrant=False) for part, here in parts])


def _scored(vectors: Tensor, table: Tensor, present: Tensor) -> Tensor:
    return _log_sum(vectors @ table.t(), present)


def _log_sum(scores: Tensor, present: Tensor) -> Tensor:
    """log sum exp over what is not present; the least finite number, not -inf, where all are: gradients stay finite."""
    return scores.masked_fill(present, torch.finfo(scores.dtype).min).logsumexp(1)


def _cost(own: Tensor, rest: Tensor) -> Tensor:
    """- sum log (e^own / (e^own + e^rest))."""
    return torch.nn.functional.logsigmoid(own - rest).neg().sum()
