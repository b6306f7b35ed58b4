"""What a run says once of its batches: labels that it cuts short, images that teach it nothing. The loop holds one."""

from __future__ import annotations

from dataclasses import dataclass, field

from shards.terminal import say
from train.batch import Batch
from train.config import Recipe


@dataclass
class Oddities:
    """Looks at every batch and speaks the first time that it meets a thing.

    Args:
        recipe: of the run.
    """

    recipe: Recipe
    said: set[tuple[str, int]] = field(default_factory=set)

    def look(self, batch: Batch, quiet: bool = False) -> None:
        """Say what is odd of a batch and has not been said; nothing where `quiet`."""
        if batch.capped:
            most = self.recipe.data.max_classes_per_cell
            self._say(
                ("capped", 0),
                f"{batch.capped} cells of a batch hold more than {most} classes: their lightest are left out and the "
                "rest renormalised (data.max_classes_per_cell)",
                quiet,
            )
        if batch.untagged and self.recipe.mixture is not None:
            name = self.recipe.mixture.sources[batch.source].name
            self._say(
                ("untagged", batch.source),
                f"{batch.untagged} of {len(batch.keys)} images of a batch of {name!r} have no tag: they add nothing to "
                'the loss (log.jsonl counts them as "untagged")',
                quiet,
            )

    def _say(self, kind: tuple[str, int], text: str, quiet: bool) -> None:
        if kind not in self.said:
            say(text, quiet)
        self.said.add(kind)
