"""What a step of a mixture minimises: pixel labels as ever, image labels by pooled and by attended scores.

    objective = build_mixed_objective(recipe, space, model.bank)
    kind, mass = objective.mass(batch)                   # known before the forward pass
    loss_sum, logged = objective(output, batch)          # sums; / mass of their kind over the whole step
    updates.append(objective.observed(place))            # what the memory is to be told, after each micro-batch
    objective.apply_updates(gathered(updates, ranks))    # once, after the optimiser's step, on every rank

The loss of a step is (LarvSeg, equation 6, with the means of each kind)

    sum of pixel costs / their weights  +  sum over (image, label) of (image_weight cls + attention_weight aux) / pairs

where pairs without attention (their class has no full ring, or is no foreground) have aux = 0 and count all the same.
The memory learns from all pairs of its classes in the order of micro-batches, images and classes, so that neither the
number of ranks nor that of micro-batches a rank changes it (`loss.memory_sync`; else each rank has a memory of what it
saw itself, and rank 0's is the one that is stored).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from train.batch import Batch
from train.config import Loss, Recipe
from train.label_space import LabelSpace
from train.losses import single_class_only
from train.losses.attention import Background, Memory, OneImage, attended_loss_sum, attention_maps, best_means
from train.losses.cosine import drawn
from train.losses.image_level import Pairs, pairs_of, pooled_loss_sum
from train.models.cosine import Cosined, gains
from train.models.ladder import Laddered
from train.models.memory_bank import MemoryBank
from train.objective import build_objective

Output = Tensor | Cosined | Laddered
LOGGED = {"pixel": ("seg",), "image": ("cls", "aux")}  # what a batch of each kind logs


class Updates(NamedTuple):
    """What a memory is to be told.

    Args:
        classes: int64 [U].
        vectors: float32 [U, d], the mean of the K best unit vectors of an image.
        places: int64 [U], of the micro-batch in the step, over all ranks.
    """

    classes: Tensor
    vectors: Tensor
    places: Tensor


@dataclass(frozen=True)
class Seen:
    """The cells of an image batch and what they are compared with.

    Args:
        cells: [B, N, d] unit vectors, those of the image, not of its padding.
        table: [c, d] of the candidates.
        candidates: int64 [c].
        gains: [B, N].
        pairs: images and their labels.
    """

    cells: Tensor
    table: Tensor
    candidates: Tensor
    gains: Tensor
    pairs: Pairs


def remembered(recipe: Recipe, space: LabelSpace | None) -> list[int]:
    """The classes that a run keeps a memory of, ascending: `build_model`'s argument. None without attention over
    several images; the novel ones, or all where all labels are foreground."""
    loss = recipe.loss
    if space is None or recipe.model.head != "cosine" or not loss.attention_weight or loss.attention == "image":
        return []
    if recipe.mixture is None or all(source.labels == "pixel" for source in recipe.mixture.sources):
        return []
    return [c for c, base in enumerate(space.base.tolist()) if loss.foreground == "present" or not base]


def build_mixed_objective(recipe: Recipe, space: LabelSpace, bank: MemoryBank | None = None) -> MixedObjective:
    """The loss of a mixture's steps; `bank`: the network's own, None where it has none."""
    sources = recipe.mixture.sources if recipe.mixture is not None else ()
    inattentive = frozenset(index for index, source in enumerate(sources) if not source.attention)
    return MixedObjective(build_objective(recipe), recipe.loss, space, bank, inattentive)


class MixedObjective(nn.Module):
    """See the module.

    Args:
        pixel: the loss of pixel batches, as `train.objective.build_objective` gives it.
        config: the recipe's section.
        space: classes, base and novel ones, and what each source knows.
        bank: the memory; None: nothing is remembered, and "memory" gives no attention.
        inattentive: sources whose image labels have no attention and leave nothing in the memory (Table 4).
    """

    def __init__(
        self,
        pixel: nn.Module,
        config: Loss,
        space: LabelSpace,
        bank: MemoryBank | None,
        inattentive: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.pixel, self.config, self.inattentive = pixel, config, inattentive
        self.bank = (bank,)  # in a tuple: the memory is the model's to move and to store
        self.known = [torch.from_numpy(known) for known in space.known]
        self.novel = torch.from_numpy(~space.base)
        self._seen: list[tuple[Tensor, Tensor]] = []  # classes [U], vectors [U, d] of each forward pass
        self._device = torch.device("cpu")

    def mass(self, batch: Batch) -> tuple[str, Tensor]:
        """What the loss sum of a batch is to be divided by, over a whole step: its kind, and a number, float64."""
        if batch.tags is not None:
            return "image", torch.tensor(len(batch.tags), dtype=torch.float64, device=batch.tags.device)
        weights = batch.weights if self.config.multi_class_cells else single_class_only(batch.weights)
        return "pixel", weights.sum(dtype=torch.float64)

    def forward(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss sum with its weights, and its parts without them, detached: "seg", or "cls" and "aux"."""
        self._device = batch.images.device
        if batch.tags is not None:
            return self._image_loss(output, batch, batch.tags)
        loss_sum = self._pixel_loss(output, batch)
        return loss_sum, {"seg": loss_sum.detach()}

    def observed(self, place: int) -> Updates:
        """What the forward passes since the last call saw of the memory's classes; nothing without a memory.

        Args:
            place: of the micro-batch in the step, over all ranks: they are remembered in this order.
        """
        (bank,), seen, self._seen = self.bank, self._seen, []
        width = 0 if bank is None else bank.slots.shape[2]
        classes = torch.cat([torch.zeros(0, dtype=torch.int64, device=self._device), *(ids for ids, _ in seen)])
        vectors = torch.cat([torch.zeros(0, width, device=self._device), *(found.float() for _, found in seen)])
        return Updates(classes, vectors, torch.full_like(classes, place))

    def apply_updates(self, updates: Updates) -> None:
        """Tell the memory, if there is one, in the order of places; what has one place stays in its order."""
        (bank,) = self.bank
        if bank is not None:
            order = torch.argsort(updates.places, stable=True)
            bank.add(updates.classes[order], updates.vectors[order])

    def _pixel_loss(self, output: Output, batch: Batch) -> Tensor:
        known = self.known[batch.source]
        loss_sum: Tensor
        if isinstance(output, Cosined):
            loss_sum, _ = self.pixel(output, batch.ids, batch.weights, None if bool(known.all()) else known)
        else:
            loss_sum, _ = self.pixel(*narrowed(output, batch.ids, batch.weights, known), batch.weights)
        return loss_sum

    def _image_loss(self, output: Output, batch: Batch, tags: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(output, Cosined):
            raise TypeError(f"image labels with {type(output).__name__}: expected a cosine head (train.mixture.check)")
        candidates = self._candidates(batch.source, tags)
        pairs = pairs_of(tags, candidates, len(batch.images))
        with torch.autocast(tags.device.type, enabled=False):
            seen = look(output, candidates, pairs)
            pooled = pooled_loss_sum(seen.cells, seen.table, seen.gains, pairs)
            attended = pooled.new_zeros(())
            if batch.source not in self.inattentive:
                attended = self._attended(seen)
                self._observe(seen)
        loss_sum = self.config.image_weight * pooled + self.config.attention_weight * attended
        return loss_sum, {"cls": pooled.detach(), "aux": attended.detach()}

    def _candidates(self, source: int, tags: Tensor) -> Tensor:
        """The classes that a softmax over images goes over: those of the source, or some of them, and all labels."""
        known = self.known[source].to(tags.device)
        present = torch.zeros_like(known).index_fill_(0, tags[:, 1], True)
        allowed, sampled = known | present, self.config.sampled_classes
        return drawn(present, allowed, sampled) if sampled else allowed.nonzero()[:, 0]

    def _attended(self, seen: Seen) -> Tensor:
        source = self._source()
        if source is None or not self.config.attention_weight:
            return seen.cells.new_zeros(())
        maps, which = attention_maps(
            seen.cells, seen.table, seen.candidates, seen.pairs, self.asked(seen.pairs.classes), source,
            background_of(self.config),
        )  # fmt: skip
        pairs, tau = seen.pairs.only(which), self.config.attention_tau
        return attended_loss_sum(seen.cells, seen.table, seen.gains, pairs, maps, tau)

    def _source(self) -> Memory | OneImage | None:
        """What is known of classes."""
        (bank,) = self.bank
        if self.config.attention == "image":
            return OneImage(self.config.memory_top)
        return None if bank is None else Memory(bank.usable, bank.means)

    def asked(self, classes: Tensor) -> Tensor:
        """Which of the labels [P] are foreground: bool [P]."""
        if self.config.foreground == "present":
            return torch.ones_like(classes, dtype=torch.bool)
        return self.novel.to(classes.device)[classes]

    def _observe(self, seen: Seen) -> None:
        """Keep what the memory is to be told of a batch."""
        (bank,) = self.bank
        if bank is None:
            return
        pairs = seen.pairs.only(bank.holds(seen.pairs.classes))
        self._seen.append((pairs.classes, best_means(seen.cells, seen.table, pairs, self.config.memory_top)))


def look(output: Cosined, candidates: Tensor, pairs: Pairs) -> Seen:
    """A batch's cells, with the candidates and the gains that scores have among these."""
    rows, columns = (-(-side // output.step) for side in output.size)
    features = output.features[:, :, :rows, :columns].flatten(2).transpose(1, 2)  # [B, N, d]
    cells = features if features.dtype == torch.float64 else features.float()
    table = output.table if len(candidates) == len(output.table) else output.table[candidates]
    steep = gains(cells.flatten(0, 1), table, output.gamma, output.standardised)
    return Seen(cells, table, candidates, steep.view(cells.shape[:2]), pairs)


def background_of(config: Loss) -> Background | None:
    """How background is found, by the recipe."""
    if not config.background:
        return None
    return Background(config.background_top, config.background_threshold, config.background_distance)


def narrowed(
    output: Tensor | Laddered, ids: Tensor, weights: Tensor, known: Tensor
) -> tuple[Tensor | Laddered, Tensor]:
    """Logits [B, c, H, W] of the classes that can be wrong alone, and the targets' places among them.

    Args:
        output: logits [B, C, H, W], or those of a ladder.
        ids, weights: [B, K, H, W].
        known: bool [C].
    """
    if bool(known.all()):
        return output, ids
    kept = known.nonzero()[:, 0].to(ids.device)
    place = torch.full((len(known),), -1, device=ids.device)
    place[kept] = torch.arange(len(kept), device=ids.device)
    places = place[torch.where(weights > 0, ids.long(), kept[0])]
    if isinstance(output, Tensor):
        return output[:, kept], places
    steps, pools = (tuple(logits[:, kept] for logits in found) for found in (output.steps, output.pools))
    return Laddered(output.logits[:, kept], steps, pools), places


def gathered(updates: Sequence[Updates], ranks: int) -> Updates:
    """The updates of a step's micro-batches (at least one), those of all ranks where there are several.

    Every rank calls it, and gets the same.
    """
    classes, vectors, places = (torch.cat(column) for column in zip(*updates, strict=True))
    if ranks == 1:
        return Updates(classes, vectors, places)
    count = torch.tensor([len(classes)], device=classes.device)
    counts = [torch.empty_like(count) for _ in range(ranks)]
    distributed.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    numbers = _all_rows(torch.stack([classes, places], 1), sizes)
    return Updates(numbers[:, 0], _all_rows(vectors, sizes), numbers[:, 1])


def _all_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows [n, x] of all ranks, `sizes` of each, rank by rank."""
    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in sizes]
    if len(padded):
        distributed.all_gather(found, padded)
    return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])
