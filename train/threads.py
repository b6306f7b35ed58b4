"""Threads of the numeric libraries, set before they are loaded.

OpenMP's threads spin while they wait. Where training, data workers and other programs share few cores, that spinning
takes the cores from those with work to do (measured: 15 times slower with two busy threads on two shared cores).
"""

from __future__ import annotations

import os


def yield_cores() -> None:
    """Let waiting OpenMP threads sleep, unless the environment says otherwise; call it before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
