"""Several sources in one run: which of them each part of a step belongs to, and what of the recipe each one sees.

    seg-train --shards pixels=data/cocostuff --shards tags=data/ade20k --recipe larvseg-wa150 --out runs/larvseg

Parts are numbered over the whole run: step s of a mixture of P parts holds parts s * P to (s + 1) * P - 1. Which
source a part belongs to is a periodic sequence that follows from the shares alone (Tijdeman, "The chairman assignment
problem", Discrete Mathematics 32, 1980): every window of one cycle holds each source exactly as often as its quota
says, and after any number of parts no source is a whole part ahead of its share or behind it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.errors import SettingsError, UserError
from shards.order import generator
from shards.store import Place, as_place
from train.config import Recipe
from train.schema_mixture import Mixture

MOST = 10_000  # parts in a cycle
_NAMED = re.compile(r"^([a-z][a-z0-9_-]{0,31})=(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Turns:
    """The order in which sources take turns, part by part, for ever.

    Args:
        quotas: parts of each source in a cycle, in the order of the recipe's sources.
    """

    quotas: tuple[int, ...]

    def of(self, part: int) -> int:
        """The source that a part belongs to."""
        return int(self._order[part % len(self._order)])

    def before(self, part: int) -> npt.NDArray[np.int64]:
        """How many parts of each source come before `part`, int64 [sources]."""
        cycles, place = divmod(part, len(self._order))
        counts: npt.NDArray[np.int64] = cycles * np.asarray(self.quotas, np.int64) + self._counts[place]
        return counts

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        """One cycle, int64 [sum(quotas)]. Among the sources that may have the next part without being too far ahead,
        the one that would be too far behind soonest has it; the first of those that are equal."""
        quotas = np.asarray(self.quotas, np.int64)
        length, slack = int(quotas.sum()), max(1, 2 * (len(quotas) - 1))
        order, counts = np.zeros(length, np.int64), np.zeros(len(quotas), np.int64)
        for part in range(length):
            owed = (quotas * (part + 1) - length * counts) * slack  # in parts, times length * slack
            deadline = np.where(owed >= length, (length * (slack - 1) - owed) / quotas, np.inf)
            order[part] = deadline.argmin()
            counts[order[part]] += 1
        return order

    @cached_property
    def _counts(self) -> npt.NDArray[np.int64]:
        """Parts of each source before each place of the cycle, int64 [sum(quotas), sources]."""
        taken = np.eye(len(self.quotas), dtype=np.int64)[self._order]
        counts: npt.NDArray[np.int64] = np.cumsum(taken, 0) - taken
        return counts


def turns(mixture: Mixture) -> Turns:
    """How the sources of a mixture take turns; shares count as the nearest fractions with denominators up to `MOST`.

    Raises:
        SettingsError: the shares have no cycle of at most `MOST` parts.
    """
    shares = [Fraction(source.share).limit_denominator(MOST) for source in mixture.sources]
    whole = math.lcm(*(share.denominator for share in shares))
    quotas = [int(share * whole) for share in shares]
    common = math.gcd(*quotas)
    if not min(quotas) or sum(quotas) // common > MOST:
        given = ", ".join(f"{source.name} {source.share:g}" for source in mixture.sources)
        raise SettingsError(
            f"mixture.sources: the shares {given} take more than {MOST:,} parts to come out even: round them"
        )
    return Turns(tuple(quota // common for quota in quotas))


def of_source(recipe: Recipe, index: int) -> Recipe:
    """The recipe as source `index` sees it: its own split, crop, rescale and seed."""
    assert recipe.mixture is not None
    source = recipe.mixture.sources[index]
    own = {"crop": source.crop or recipe.augment.crop, "rescale": source.rescale or recipe.augment.rescale}
    seed = int(generator("source", recipe.loop.seed, source.name).integers(2**32))
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"split": source.split}),
            "augment": recipe.augment.model_copy(update=own),
            "loop": recipe.loop.model_copy(update={"seed": seed}),
        }
    )


def check(recipe: Recipe, ranks: int) -> None:
    """Raise SettingsError where a mixture does not fit the rest of its recipe, or the number of processes."""
    if recipe.mixture is None:
        return
    turns(recipe.mixture)
    if recipe.model.head == "embedding":
        raise SettingsError('model.head = "embedding" has no mixtures: expected "dense" or "cosine", or no [mixture]')
    for source in recipe.mixture.sources:
        if source.labels == "image" and recipe.model.head != "cosine":
            raise SettingsError(
                f'source {source.name!r} has labels = "image": expected model.head = "cosine", found '
                f'"{recipe.model.head}"'
            )
        if source.rescale is not None and recipe.data.mode != "rescale":
            raise SettingsError(
                f'source {source.name!r} has rescale: expected data.mode = "rescale" (stored scales cannot be rescaled)'
            )
    _check_parts(recipe, recipe.mixture.parts, ranks)


def _check_parts(recipe: Recipe, parts: int, ranks: int) -> None:
    """Raise SettingsError unless each process's micro-batches lie in one part each."""
    loop = recipe.loop
    if loop.batch % parts:
        raise SettingsError(f"loop.batch = {loop.batch}: expected a multiple of mixture.parts = {parts}")
    if loop.batch % (ranks * loop.accumulate) or (ranks * loop.accumulate) % parts:
        raise SettingsError(
            f"mixture.parts = {parts}: expected it to divide {ranks} processes x {loop.accumulate} (loop.accumulate), "
            f"and these loop.batch = {loop.batch}: a micro-batch has one source; set loop.accumulate"
        )


def named_paths(words: Sequence[str], recipe: Recipe) -> dict[str, tuple[Place, ...]]:
    """The folders and URLs of `--shards`, by the source that each is for; without a mixture all of them under "".

    Raises:
        UserError: a bare folder for a mixture, NAME=DIR for another recipe, an unknown name, a name without a folder.
    """
    if recipe.mixture is None:
        return {"": tuple(_bare(word, recipe) for word in words)}
    names = [source.name for source in recipe.mixture.sources]
    found: dict[str, list[Place]] = {name: [] for name in names}
    for word in words:
        match = _NAMED.match(word)
        if match is None or not match[2]:
            raise UserError(f"--shards {word}: recipe {recipe.name} has sources {', '.join(names)}: expected NAME=DIR")
        if match[1] not in found:
            near = difflib.get_close_matches(match[1], names, 1, 0)[0]
            raise UserError(f"--shards {word}: recipe {recipe.name} has no source {match[1]!r}; did you mean {near!r}?")
        found[match[1]].append(as_place(match[2]))
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        raise UserError(
            f"source {missing[0]!r} of recipe {recipe.name} has no shard set: add --shards {missing[0]}=DIR"
        )
    return {name: tuple(paths) for name, paths in found.items()}


def _bare(word: str, recipe: Recipe) -> Place:
    """The folder or URL itself; raises UserError where it is NAME=DIR and no such folder is there."""
    match = _NAMED.match(word)
    if match and not Path(word).exists():
        raise UserError(f"--shards {word}: recipe {recipe.name} has no [mixture]: expected a folder, without a name")
    return as_place(word)
