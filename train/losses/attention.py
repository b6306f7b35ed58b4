"""Where in an image is a class that only its tags name? LarvSeg's category-wise attentive classifier.

    source = Memory(bank.usable, bank.means)                         # or OneImage(K)
    maps, which = attention_maps(cells, table, candidates, pairs, asked, source, Background())
    loss_sum = attended_loss_sum(cells, table, gains, pairs.only(which), maps, tau)
    bank.add(pairs.classes, best_means(cells, table, pairs, K))      # afterwards

Source: LarvSeg, section 3.3, equations 3 to 5, and facts of its release. For a pair of an image and a class in it

    S_fg   a cell's mean cosine to what the memory holds of the class
    S_bg   the mean of the same over the image's other classes (those that the memory knows); where there are none, over
           all known classes that the classifier sees here (the mean cosine of their best `top` cells is above
           `threshold`) and that lie elsewhere (maps of mean 0 and unbiased deviation 1 have a mean squared difference
           to S_fg's above `distance`); where there are none either, 1 - S_fg
    A      sigmoid(norm(S_fg - S_bg)), norm: mean 0, variance 1 over the image's cells; no gradient goes through it

and the loss of train/losses/image_level.py is taken on scores times A / tau. Without background A is
sigmoid(norm(S_fg)); the release's norm there runs over one number, so that its A is 1/2 everywhere: a bug.

All of it is linear in a cell's vector: S_fg - S_bg is its product with one vector a pair, the mean of the class less
the mean of its background (twice the class's mean for 1 - S_fg, as a constant is nothing to norm). Only the look for
background classes in an image with one known label needs cells x classes cosines: in chunks, without gradient.

Chosen where the sources are silent: a class without a full ring is never background (the release takes its random
start); where none of the other labels is known, the look for others follows; a map that is flat is not elsewhere. An
image with fewer than K cells gives all of them. "One image": a class is what this image's K best cells of it are (the
release keeps a memory of one image, so that its background classes are those of earlier images).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from train.losses.image_level import Pairs, vectors_loss_sum

COSINES = 1 << 22  # cells x classes that are looked at together
MEANS = 256  # classes whose means are taken out of a memory together
SOFTENING = 1e-5  # added to the variance of S_fg - S_bg
SLACK = 0.01  # above what bfloat16 can move a product of two unit vectors by: 2^-8, and 2^-9 of the result


@dataclass(frozen=True)
class Background:
    """How classes that no label names are found to be background: how many best cells, and the two thresholds."""

    top: int = 5
    threshold: float = 0.35
    distance: float = 2.0


@dataclass(frozen=True)
class Memory:
    """What is known of classes, whatever the image.

    Args:
        usable: int64 [P] classes -> bool [P], which are known.
        means: int64 [P] of these -> [P, d], the mean of their unit vectors.
    """

    usable: Callable[[Tensor], Tensor]
    means: Callable[[Tensor], Tensor]

    def of_pairs(self, cells: Tensor, table: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The pairs' means [P, d] and whether they are known, bool [P]; means that are not known are 0."""
        known = self.usable(pairs.classes)
        means = cells.new_zeros(len(known), cells.shape[2])
        means[known] = self.means(pairs.classes[known]).to(cells.dtype)
        return means, known

    def of_classes(self, cells: Tensor, table: Tensor, classes: Tensor) -> Tensor:
        """Means [n, d] of usable classes [n] whose vectors are `table` [n, d], for an image's cells [N, d]."""
        return self.means(classes).to(cells.dtype)


@dataclass(frozen=True)
class OneImage:
    """What an image alone tells of its classes: the mean of the `top` cells that the classifier likes best.

    The paper's Table 5: a memory of one image that is filled before it is asked.
    """

    top: int

    def usable(self, classes: Tensor) -> Tensor:
        """Every class is."""
        return torch.ones_like(classes, dtype=torch.bool)

    def of_pairs(self, cells: Tensor, table: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """As `Memory.of_pairs`."""
        return best_means(cells, table, pairs, self.top), self.usable(pairs.classes)

    def of_classes(self, cells: Tensor, table: Tensor, classes: Tensor) -> Tensor:
        """As `Memory.of_classes`."""
        return _best(table @ cells.t(), self.top) @ cells


def best_means(cells: Tensor, table: Tensor, pairs: Pairs, top: int) -> Tensor:
    """The mean of each pair's K cells of the highest cosine to its class: [P, d], without gradient.

    Args:
        cells: [B, N, d] unit vectors.
        table: [c, d] unit vectors of the candidates.
        top: K; all N cells where there are fewer.
    """
    cells, table = cells.detach(), table.detach()
    chosen = _best(_over_cells(cells, table[pairs.column], pairs.image), top)
    return _pooled(cells, chosen, pairs.image)


def attention_maps(
    cells: Tensor,
    table: Tensor,
    candidates: Tensor,
    pairs: Pairs,
    asked: Tensor,
    source: Memory | OneImage,
    background: Background | None,
) -> tuple[Tensor, Tensor]:
    """A of those pairs that are asked for and known, and which these are.

    Args:
        cells: [B, N, d] unit vectors, float32 or float64.
        table: [c, d] unit vectors of the candidates.
        candidates: int64 [c].
        pairs: P pairs, all of the batch: the others of an image are background.
        asked: bool [P], pairs that want a map.
        source: what is known of classes.
        background: how classes that no label names are found; None: S_fg alone makes the map.

    Returns:
        A: [Q, N] in (0, 1), without gradient; which pairs these are: bool [P].
    """
    cells, table = cells.detach(), table.detach()
    means, known = source.of_pairs(cells, table, pairs)
    which = known & asked
    directions = means
    if background is not None:
        taken, alone = _named(means, known, pairs)
        look = _Look(cells, table, candidates, source, background)
        for pair in (which & alone).nonzero()[:, 0].tolist():
            image = int(pairs.image[pair])
            taken[pair] = look.background(image, pairs.present[image], means[pair])
        directions = means - taken
    scores = _over_cells(cells, directions[which], pairs.image[which])  # [Q, N]
    centred = scores - scores.mean(1, keepdim=True)
    return torch.sigmoid(centred * (centred.square().mean(1, keepdim=True) + SOFTENING).rsqrt()), which


def attended_loss_sum(
    cells: Tensor, table: Tensor, gains: Tensor, pairs: Pairs, maps: Tensor, tau: float = 1.0
) -> Tensor:
    """The loss of attentively pooled scores, summed over the pairs; 0 with gradient 0 where there are none.

    Args:
        cells: [B, N, d]; table: [c, d]; gains: [B, N].
        pairs: those that have a map.
        maps: [P, N], A.
        tau: what scores are divided by.
    """
    weights = maps * gains[pairs.image] / (tau * cells.shape[1])
    return vectors_loss_sum(_pooled(cells, weights, pairs.image), table, pairs)


def _named(means: Tensor, known: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The mean [P, d] of the known classes of a pair's image but its own, and the pairs whose image has none."""
    images = len(pairs.present)
    sums = means.new_zeros(images, means.shape[1]).index_add_(0, pairs.image, means)
    counts = means.new_zeros(images).index_add_(0, pairs.image, known.to(means.dtype))
    others = counts[pairs.image] - known.to(means.dtype)
    return (sums[pairs.image] - means) / others.clamp(min=1)[:, None], others == 0


class _Look:
    """The look for background in images with one known label; arguments as of `attention_maps`."""

    def __init__(
        self, cells: Tensor, table: Tensor, candidates: Tensor, source: Memory | OneImage, settings: Background
    ) -> None:
        self.cells, self.table, self.candidates = cells, table, candidates
        self.source, self.settings = source, settings

    @cached_property
    def usable(self) -> Tensor:
        """Columns of the classes that may be background: int64, ascending."""
        return self.source.usable(self.candidates).nonzero()[:, 0]

    def background(self, image: int, present: Tensor, own: Tensor) -> Tensor:
        """What to take from S_fg: the mean [d] over the classes found; less S_fg where there are none.

        Args:
            image: which.
            present: bool [c], candidates that it shows.
            own: [d], the mean of the one that is known.
        """
        cells = self.cells[image]
        seen = self._seen(cells)
        seen = seen[~present[seen]]
        foreground, total, count = _standard(cells @ own), torch.zeros_like(own), 0
        for columns in seen.split(MEANS):
            means = self.source.of_classes(cells, self.table[columns], self.candidates[columns])  # [m, d]
            maps = _standard(means @ cells.t())  # [m, N]
            elsewhere = ((maps - foreground).square().mean(1) > self.settings.distance) & maps.any(1)
            total, count = total + means[elsewhere].sum(0), count + int(elsewhere.sum())
        return total / count if count else -own

    @cached_property
    def sought(self) -> Tensor:
        """The vectors of the usable classes; where that is faster, in bfloat16 for a first look."""
        rows = self.table[self.usable]
        return rows.bfloat16() if rows.dtype == torch.float32 and quick_bfloat16(rows.device) else rows

    def _seen(self, cells: Tensor) -> Tensor:
        """Columns of usable classes whose best cells [N, d] score above the threshold: int64, ascending."""
        top, threshold = min(self.settings.top, len(cells)), self.settings.threshold
        slack = SLACK if self.sought.dtype == torch.bfloat16 else 0.0
        first, found = cells.to(self.sought.dtype).t(), [self.usable[:0]]
        size = max(1, COSINES // len(cells))
        for rows, columns in zip(self.sought.split(size), self.usable.split(size), strict=True):
            high = columns[(rows @ first).amax(1) > threshold - slack]  # few: the closer look is for these alone
            best = (self.table[high] @ cells.t()).topk(top, dim=1).values.mean(1)
            found.append(high[best > threshold])
        return torch.cat(found)


def quick_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are faster than of float32 ones."""
    told = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cuda" or (device.type == "cpu" and told is not None and bool(told()))


def _standard(maps: Tensor) -> Tensor:
    """Mean 0 and unbiased deviation 1 over the last axis; 0 where a map is flat."""
    centred = maps - maps.mean(-1, keepdim=True)
    deviation = (centred.square().sum(-1, keepdim=True) / max(1, maps.shape[-1] - 1)).sqrt()
    return torch.where(deviation > 0, centred / deviation, 0.0)


def _best(scores: Tensor, top: int) -> Tensor:
    """Weights [P, N] whose sum over N is 1: the K highest of scores [P, N] equally."""
    count = min(top, scores.shape[1])
    return torch.zeros_like(scores).scatter_(1, scores.topk(count, dim=1).indices, 1 / count)


def _over_cells(cells: Tensor, vectors: Tensor, image: Tensor) -> Tensor:
    """The product of each vector [P, d] with the cells of its image: [P, N]."""
    place, padded = _by_image(vectors, image, len(cells))
    return (padded @ cells.transpose(1, 2))[image, place]


def _pooled(cells: Tensor, weights: Tensor, image: Tensor) -> Tensor:
    """The sum of an image's cells with each pair's weights [P, N]: [P, d]."""
    place, padded = _by_image(weights, image, len(cells))
    return (padded @ cells)[image, place]


def _by_image(rows: Tensor, image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Rows [P, x] of images (ascending) -> [B, R, x], R the most of an image, and each one's place there, int64 [P]."""
    place = torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)
    most = int(place.max()) + 1 if len(place) else 0
    padded = rows.new_zeros(images, most, rows.shape[1]).index_put((image, place), rows)
    return place, padded
