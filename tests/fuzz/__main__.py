"""Fuzz for a while: `python -m tests.fuzz TARGET... [--seconds 60] [--seed 1]`. Findings are written to found/."""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import FOUND, TARGETS, Target

SLOW = 2.0  # seconds; an input that takes longer is a finding


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("targets", nargs="*", default=[], metavar="TARGET", help=", ".join(TARGETS))
    options.add_argument("--seconds", type=float, default=60, help="for each target")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--keep", type=Path, default=FOUND, help="where findings go")
    asked = options.parse_args()
    found = 0
    for name in asked.targets or TARGETS:
        runs, findings = fuzz(TARGETS[name], name, asked.seconds, asked.seed, asked.keep)
        print(f"{name}: {runs} inputs, {findings} findings", flush=True)
        found += findings
    return 1 if found else 0


def fuzz(target: Target, name: str, seconds: float, seed: int, keep: Path) -> tuple[int, int]:
    """Mutate honest and kept inputs for a while; (inputs tried, findings)."""
    draw, runs, kinds = random.Random(f"{name} {seed}"), 0, set()
    pool = target.seeds() + [path.read_bytes() for path in sorted((FOUND / name).glob("*"))]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(draw.choice(pool), draw, pool)
        runs += 1
        began = time.process_time()
        try:
            taken = target.run(data)
        except Exception as error:
            kind = _kind(error)
            if kind not in kinds:
                kinds.add(kind)
                _keep(keep / name, data, kind)
                traceback.print_exc()
            continue
        if time.process_time() - began > SLOW and "slow" not in kinds:
            kinds.add("slow")
            _keep(keep / name, data, "slow")
        if taken and len(pool) < 500 and draw.random() < 0.02:
            pool.append(data)
    return runs, len(kinds)


def _kind(error: Exception) -> str:
    """The error's type and the last line of ours that it came from: one finding each."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}-{Path(frames[-1].filename).stem}-{frames[-1].lineno}"


def _keep(folder: Path, data: bytes, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
