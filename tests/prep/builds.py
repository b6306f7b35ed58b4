"""Helpers of the prep tests: run a build or the command in this process, and compare what it wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prep.build.settings import Settings
from prep.cli import command
from prep.datasets import load_reader
from prep.pipeline import Outcome, build
from shards.scale import Scale
from shards.terminal import main_of


def run_build(
    dataset: str,
    root: Path,
    out: Path,
    *,
    scales: str = "1,1/2",
    given: Mapping[str, str] | None = None,
    **options: Any,
) -> Outcome:
    """`prep.pipeline.build`, quiet; settings and run options by name, the reader's own options in `given`."""
    run = {name: options.pop(name) for name in ("workers", "fresh", "update") if name in options}
    given = dict(given or {})
    settings = Settings(dataset, root, scales=Scale.parse_many(scales), options=tuple(sorted(given.items())), **options)
    return build(load_reader(dataset).bind(root, given), settings, out, quiet=True, **run)


def tree(out: Path) -> dict[str, bytes]:
    """Every published file but stats.json (which holds times) -> its bytes."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if path.name != "stats.json"}


def quarantine(out: Path) -> list[dict[str, str]]:
    """The lines of quarantine.jsonl."""
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def die(_: object) -> None:
    """What a worker runs that the system kills."""
    os._exit(9)


def die_at_start(*_: object) -> None:
    """A worker's start that ends it."""
    os._exit(9)


class SegPrep:
    """Runs the command as the console script does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *args: object) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of `seg-prep ARGS`."""
        self._monkeypatch.setattr("sys.argv", ["seg-prep", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main_of(command)()
        text = self._capsys.readouterr()
        return int(end.value.code or 0), text.out, text.err

    def refused(self, *args: object) -> str:
        """The one line that `seg-prep ARGS` refuses with; fails where it does anything else."""
        code, _, err = self(*args)
        lines = [line for line in err.splitlines() if line.strip() and not line.startswith(("Usage:", "Try "))]
        assert code == 2, (code, err)
        assert len(lines) == 1, err
        assert "Traceback" not in err
        return lines[0]


__all__ = ["SegPrep", "quarantine", "run_build", "tree"]
