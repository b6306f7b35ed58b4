"""The procedural street scenes of `prep.scenes`: Cityscapes' layout and ids, the 14 classes that the scenes draw.

python -m prep.scenes data/demo-raw
seg-prep demo --root data/demo-raw --out data/demo
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prep.datasets.cityscapes import Cityscapes
from prep.indexed import decode_indices
from prep.raw import UInt16
from prep.taxonomy import load_classes, load_remap
from shards.classes import ClassTable
from shards.errors import LayoutError

# Mean instance sizes in pixels over the 64 training scenes of `python -m prep.scenes` with its default settings.
_INSTANCE_SIZES = {"person": 242.7, "rider": 506.8, "car": 963.7, "bicycle": 383.3}


class Demo(Cityscapes):
    """Reader of the scenes: the files lie as in Cityscapes, the class table is its own."""

    name = "demo"
    title = "Procedural street scenes (14 classes)"
    source = "python -m prep.scenes DIR"
    protocol: Mapping[str, Any] = MappingProxyType({"instance_sizes": _INSTANCE_SIZES})
    terms = "made by this project, Apache-2.0"

    @property
    def classes(self) -> ClassTable:
        return load_classes("demo-14")

    def splits(self, root: Path) -> tuple[str, ...]:
        if not (root / "leftImg8bit").is_dir():
            raise LayoutError(
                f"leftImg8bit/ not found under {root}: expected scenes; run `python -m prep.scenes {root}` first"
            )
        return super().splits(root)

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        return load_remap("demo-34_to_14", self.name).apply(decode_indices(data, where), where)


READER = Demo()
