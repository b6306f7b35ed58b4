"""Builds killed by SIGKILL at random moments end in the right bytes, and the torture finds builds that do not.

`make torture` runs a thousand trials.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.torture.sabotage import SABOTAGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and counts on it")


def torture(*arguments: str) -> str:
    """What `python -m tests.torture` prints; it must agree that all went as expected."""
    command = [sys.executable, "-m", "tests.torture", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_fifty_trials_end_in_the_bytes_of_an_undisturbed_build() -> None:
    said = torture("--trials", "50", "--seed", "51")  # kills counted in calls hit each phase, whatever the clock does
    cells = [cell.strip() for cell in said.splitlines()[-3].strip("|").split("|")]
    assert cells[:2] == ["all", "50"]
    assert cells[-1] == "50"
    assert all(int(kills) > 0 for kills in cells[2:5]), cells  # before the journal, encoding, publishing
    assert re.search(r"^zarr: .* in other threads, where [1-9]\d* kills hit$", said, re.MULTILINE), said


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_a_broken_build_is_caught(sabotage: str) -> None:
    assert "found by trial" in torture("--sabotage", sabotage, "--trials", "200", "--builds", "webdataset")
