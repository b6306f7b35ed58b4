"""The shard set that benches read unless told of another: the demo's scenes, made for the moment by today's writer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def shards_or_demo(given: str | None) -> Iterator[str]:
    """The set that was asked for; where none was, that of `make demo` in a temporary folder."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        raw, out = f"{folder}/raw", f"{folder}/demo"
        _run("prep.scenes", raw)
        _run("prep.cli", "demo", "--root", raw, "--out", out, "--scales", "1,1/2,1/4", "--quiet")
        yield out


def _run(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True, stdout=subprocess.DEVNULL)
