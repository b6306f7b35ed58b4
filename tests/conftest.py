"""What holds for every test: few threads, and one hypothesis profile."""

from __future__ import annotations

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

# Before NumPy, numba or torch start their pools: the tests run side by side, and sums must not depend on the machine.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["NO_COLOR"] = "1"  # commands that tests start print plain text

settings.register_profile(
    "segshards",
    deadline=None,  # the first call of a compiled kernel is slow
    max_examples=40,
    derandomize=bool(os.environ.get("CI")),  # a failure in CI is the change's, not the draw's
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("segshards")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Torch, where it is installed, on one thread: the same sums on every machine."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
