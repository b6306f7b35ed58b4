"""Fixtures of the prep tests."""

from __future__ import annotations

import pytest

from prep.build import worker
from tests.prep.builds import SegPrep


@pytest.fixture(autouse=True)
def eager_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start worker processes, and leave the work to them, however small the build is."""
    monkeypatch.setattr(worker, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(worker, "any_ready", lambda first: True)


@pytest.fixture
def seg_prep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SegPrep:
    """The seg-prep command, run in this process."""
    return SegPrep(monkeypatch, capsys)
