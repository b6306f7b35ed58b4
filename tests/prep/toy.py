"""A reader of two classes and one split, for tests of what is the same with every dataset; subclasses give samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prep.raw import BaseReader
from shards.classes import ClassTable


@dataclass(frozen=True)
class ToyReader(BaseReader):
    """Everything of a reader but its samples."""

    name: str = "toy"
    title: str = "Toy, 2 classes"
    layout: str = "anything"
    source: str = "here"
    terms: str = "none"

    @property
    def classes(self) -> ClassTable:
        return ClassTable.make(("a", "b"))

    def splits(self, root: Path) -> tuple[str, ...]:
        return ("train",)
