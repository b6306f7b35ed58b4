"""Fixtures of the prep tests."""

from __future__ import annotations

import pytest

from tests.prep.builds import SegPrep


@pytest.fixture
def seg_prep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SegPrep:
    """The seg-prep command, run in this process."""
    return SegPrep(monkeypatch, capsys)
