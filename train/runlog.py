"""What a run writes down: one JSON line a step, TensorBoard curves and pictures.

    runs/demo/log.jsonl       {"step": 1, "epoch": 0.02, "loss": 2.31, "lr": 0.01, "grad_norm": 4.2, ...}
    runs/demo/tensorboard/    tensorboard --logdir runs/demo

A resumed run goes on in the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from shards.errors import FormatError

NAME = "log.jsonl"


class RunLog:
    """The log of a run's folder; a context manager. An inactive one (ranks other than 0) writes nothing.

    Args:
        folder: the run's folder; it exists.
        step: steps that are done; what an interrupted run logged beyond them is dropped, as they run again.
        active: whether to write.
    """

    def __init__(self, folder: Path, step: int = 0, active: bool = True) -> None:
        self.active = active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        path = folder / NAME
        kept = [line for line in read_log(folder) if int(line["step"]) <= step and "summary" not in line]
        partial = path.with_name(NAME + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; `record` holds "step" and plain finite values."""
        if self.active:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()

    def curves(self, step: int, values: dict[str, float | None], group: str = "train") -> None:
        """One point on each TensorBoard curve; None is left out."""
        if self.active:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """A picture uint8 [H, W, 3] for TensorBoard."""
        if self.active:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what is buffered."""
        if self.active:
            self._file.close()
            self._board.close()
            self.active = False


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, oldest first; a last line that a crash cut short is left out.

    Raises:
        FormatError: a line in the middle is not JSON or has no step.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    out: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            raise FormatError(path, f"line {number} is not a log line ({error}); remove it") from None
        out.append(record)
    return out
