"""The one place that finds real data: the folder in SEGSHARDS_DATA, or ../shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_root() -> Path | None:
    """The folder of real data, or None where there is none."""
    named = os.environ.get("SEGSHARDS_DATA")
    root = Path(named) if named else _BESIDE
    return root if root.is_dir() else None


def real_data(name: str) -> Path:
    """`<data>/<name>`, such as `real_data("camvid")`; the test is skipped, with the reason, where it is absent."""
    root = real_root()
    path = root / name if root is not None else None
    if path is None or not path.exists():
        pytest.skip(
            f"NOT TESTED ON REAL DATA: {name} not found in {root or os.environ.get('SEGSHARDS_DATA') or _BESIDE}; "
            "set SEGSHARDS_DATA to the folder that holds it"
        )
    return path
