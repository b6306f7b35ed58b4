"""What classes look like in other images: for each class a ring of M images, each the mean of its K best cells.

    bank = MemoryBank(classes=[3, 4, 7], num_classes=8, dim=768, size=20)
    bank.add(class_ids, vectors)                       # after the step, in order
    usable, mean = bank.usable(ids), bank.means(ids)   # S = cell . mean

Source: LarvSeg (section 3.3, equation 3). There a class holds M x K unit vectors and S of a cell is the mean of its
cosines to all of them. A cell's vector has length 1, so that this is its product with the mean of the M x K vectors:
an image need only leave the mean of its K. That is not an approximation; it is K times smaller. For all 21,841 classes
of ImageNet-21K, vectors of 768 numbers, M = K = 20:

    the paper's, float32      21,841 x 20 x 20 x 768 x 4     26.8 GB
    "slots", float32          21,841 x 20 x 768 x 4           1.34 GB    the same scores
    "slots", float16          21,841 x 20 x 768 x 2           0.67 GB    rounded to 11 bits
    "running", float32        21,841 x 768 x 4                0.067 GB   the same until M images, then another weighting
    "running", float16        21,841 x 768 x 2                0.034 GB   likewise, rounded

"running" keeps one vector a class: the mean of its images until there are M, then each image counts 1 / M and all
before it (1 - 1 / M) together. The paper forgets an image after M others; here its share falls to 1 / e by then.

The bank moves with the network (`.to(device)`), and every result lies where the question did, so that a bank may also
stay in main memory beside a network on a GPU. On the CPU memory is taken as classes are seen. The contents are part of
the network's state, yet no buffers: wrappers for several processes send those around before each forward pass, and the
loop copies them each step. What is stored is the same on all ranks if `loss.memory_sync`; else it is rank 0's, which
all ranks, however many, start from when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from shards.errors import SettingsError
from train.config import Loss


class MemoryBank(nn.Module):
    """A ring of images, or a running mean, for each of some classes.

    Args:
        classes: the indices that have a place, ascending.
        num_classes: C, of all classes.
        dim: d of the vectors.
        size: M, images a class; a class with fewer is not used.
        dtype: float32 or float16, what is stored; sums are taken in float32.
        form: "slots" or "running".

    Raises:
        SettingsError: classes that are not ascending or lie outside of the C.
    """

    def __init__(
        self,
        classes: Sequence[int],
        num_classes: int,
        dim: int,
        size: int,
        dtype: torch.dtype = torch.float32,
        form: Literal["slots", "running"] = "slots",
    ) -> None:
        super().__init__()
        held = torch.as_tensor(np.asarray(classes, dtype=np.int64))
        ascending = bool((held.diff() > 0).all()) and bool(((held >= 0) & (held < num_classes)).all())
        if not ascending:
            raise SettingsError(f"a memory for classes {held.tolist()[:8]}: expected ascending, below {num_classes}")
        self.size, self.running = size, form == "running"
        self.place = torch.full((num_classes,), -1).index_copy_(0, held, torch.arange(len(held)))  # [C]; -1: none
        self.slots = _untouched((len(held), 1 if self.running else size, dim), dtype)
        self.count = torch.zeros(len(held), dtype=torch.int64)  # images seen of each class

    def holds(self, classes: Tensor) -> Tensor:
        """Which of `classes` (int64 [P]) have a place: bool [P]."""
        return (self.place[classes.to(self.place.device)] >= 0).to(classes.device)

    def usable(self, classes: Tensor) -> Tensor:
        """Which of `classes` (int64 [P]) have seen M images: bool [P]."""
        place = self.place[classes.to(self.place.device)]
        if not len(self.count):
            return torch.zeros_like(classes, dtype=torch.bool)
        return ((place >= 0) & (self.count[place] >= self.size)).to(classes.device)

    def means(self, classes: Tensor) -> Tensor:
        """The mean of all unit vectors of each class: float32 [P, d] for int64 [P]; usable classes only."""
        return self.slots[self._places(classes)].float().mean(1).to(classes.device)

    @torch.no_grad()
    def add(self, classes: Tensor, vectors: Tensor) -> None:
        """Let images be seen, in order: the newest takes the place of the oldest of its class.

        Args:
            classes: int64 [U]. Those without a place are left out.
            vectors: [U, d], the mean of an image's K unit vectors. One that is not finite is left out.
        """
        place = self.place[classes.to(self.place.device)]
        vectors = vectors.to(place.device)
        kept = (place >= 0) & vectors.isfinite().all(1)
        place, vectors = place[kept], vectors[kept].float()
        turn = occurrence(place)
        for k in range(int(turn.max()) + 1 if len(turn) else 0):  # one image of each class at a time
            now = turn == k
            self._write(place[now], vectors[now])

    def _write(self, place: Tensor, vectors: Tensor) -> None:
        """One image for each of some distinct classes."""
        if self.running:
            before = self.slots[place, 0].float()
            share = 1 / (self.count[place] + 1).clamp(max=self.size)
            self.slots[place, 0] = torch.lerp(before, vectors, share[:, None]).to(self.slots.dtype)
        else:
            self.slots[place, self.count[place] % self.size] = vectors.to(self.slots.dtype)
        self.count[place] += 1

    def _places(self, classes: Tensor) -> Tensor:
        place = self.place[classes.to(self.place.device)]
        if bool((place < 0).any()):
            raise ValueError("a class without a place in the memory: ask usable() first")
        return place

    @property
    def bytes(self) -> int:
        """What all classes take together."""
        return self.slots.numel() * self.slots.element_size() + self.count.numel() * self.count.element_size()

    def extra_repr(self) -> str:
        """What `print` shows."""
        classes, slots, dim = self.slots.shape
        return f"classes={classes}, slots={slots}, dim={dim}, size={self.size}, dtype={self.slots.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryBank:
        """To another device; never to another type, as torch asks of buffers."""
        device = fn(self.count.new_empty(0)).device
        self.place, self.slots, self.count = (tensor.to(device) for tensor in (self.place, self.slots, self.count))
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "slots"], destination[prefix + "count"] = self.slots, self.count

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {name: state_dict.get(prefix + name) for name in ("slots", "count")}
        missing_keys += [prefix + name for name, saved in given.items() if saved is None]
        slots, count = given["slots"], given["count"]
        if slots is None or count is None:
            return
        for name, saved, mine in (("slots", slots, self.slots), ("count", count, self.count)):
            if saved.shape != mine.shape or saved.dtype != mine.dtype:
                error_msgs.append(
                    f"{prefix}{name}: a memory of {list(saved.shape)} {saved.dtype}, expected {list(mine.shape)} "
                    f"{mine.dtype}"
                )
                return
        self.count.copy_(count)
        seen = self.count > 0  # what was never seen takes no memory here either
        self.slots[seen] = slots[seen.to(slots.device)].to(self.slots.device)


def occurrence(values: Tensor) -> Tensor:
    """How many equal values stand before each one: int64 [U] for [U]."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    first = torch.searchsorted(ordered, ordered)  # where the run of equal values begins
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(values), device=values.device) - first)


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose memory the system gives page by page, when first written."""
    kind = np.float16 if dtype == torch.float16 else np.float32
    return torch.from_numpy(np.zeros(shape, kind))


def give_memory(model: nn.Module, dim: int, num_classes: int, config: Loss, classes: Sequence[int]) -> None:
    """Let `model.bank` be the memory that a recipe's section asks for, of these classes; None of none.

    A model without one leaves out what a state dict holds of a memory: labels are found without it.
    """
    if len(classes):
        dtype = torch.float16 if config.memory_dtype == "float16" else torch.float32
        model.bank = MemoryBank(classes, num_classes, dim, config.memory_size, dtype, config.memory_form)
    else:
        model.register_module("bank", None)  # torch passes over what a state dict holds of a part that is None
