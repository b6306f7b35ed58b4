"""`--weak-crop`: what a window stores, and what is counted once for its image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from prep.build.settings import Settings
from prep.pipeline import build
from prep.raw import DecodedLabel, RawSample
from shards.scale import Scale
from tests.fakes import save
from tests.prep.toy import ToyReader


@dataclass(frozen=True)
class Tallying(ToyReader):
    """One image, whose label counts one odd thing."""

    suffix: str = "jpg"

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        yield RawSample("x", root / f"x.{self.suffix}", label=root / "label")

    def decode_label(self, data: bytes, where: str, facts: Any) -> DecodedLabel:
        return DecodedLabel(np.repeat([[0, 1]], 40, axis=0).repeat(20, axis=1).astype(np.uint16), {"odd": 1})

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        return {"merge-audit.json": {split: dict(tally) for split, tally in tallies.items()}}


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "jpg"), ("png", "png"), ("webp", "png"), ("bmp", "png")])
def test_windows_keep_the_kind_of_image_and_count_a_label_once(tmp_path: Path, suffix: str, kind: str) -> None:
    save(np.full((40, 40, 3), 90, np.uint8), tmp_path / "raw" / f"x.{suffix}")
    (tmp_path / "raw/label").write_bytes(b"x")
    settings = Settings("toy", tmp_path / "raw", scales=Scale.parse_many("1"), weak=True, weak_crop=20)
    build(Tallying(suffix=suffix), settings, tmp_path / "out", quiet=True)
    found = shards.open(tmp_path / "out", "train")
    assert len(found) == 4
    assert {tuple(found.members(i)) for i in range(4)} == {(kind, "json")}
    assert [sample.weak.tolist() for sample in found if sample.weak is not None] == [[0], [1], [0], [1]]
    assert (tmp_path / "out/merge-audit.json").read_text().split() == ["{", '"train":', "{", '"odd":', "1", "}", "}"]
