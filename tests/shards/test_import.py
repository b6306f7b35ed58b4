"""Opening shards is quick: what takes long to import waits until it is needed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numba", "cv2", "zarr", "torch", "scipy")


def test_importing_shards_brings_no_heavy_package():
    code = f"import sys, shards; print(*[name for name in {HEAVY} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.split() == []
