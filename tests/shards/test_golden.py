"""Format version 1 as first published stays readable, and this release still writes the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import shards
from shards import soften
from shards.verify import verify
from tests import golden
from tests.shards.build import SCALES, build, pair

HERE = Path(golden.__file__).parent


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_golden_sets_read_as_ever(format):
    folder = HERE / f"v1-{format}"
    assert list(verify(folder)) == []
    for scale in SCALES:
        ds = shards.open(folder, split="train", scale=scale)
        for i, sample in enumerate(ds):
            hard = pair(i)[1]
            if scale == "1":
                np.testing.assert_array_equal(sample.hard, hard)
            else:
                assert sample.soft == soften(hard, scale)


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_layout_and_uncompressed_bytes_are_unchanged(tmp_path, format):
    """Names, indexes' keys and metadata; compressed members may differ between zlib builds, their content may not."""
    build(tmp_path, format, samples=3)
    old, new = (sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (HERE / f"v1-{format}", tmp_path))
    assert old == new
    for scale in SCALES:
        before, after = (shards.open(f, split="train", scale=scale) for f in (HERE / f"v1-{format}", tmp_path))
        for i in range(3):
            assert list(before.members(i)) == list(after.members(i))
            assert before.members(i)["json"] == after.members(i)["json"]
            np.testing.assert_array_equal(before[i].image, after[i].image)
