"""Checkpoints: one file that holds all that a run needs to go on exactly where it stopped.

Plain tensors, numbers, strings, lists and dicts only, so that a checkpoint is read with `weights_only=True` and can
run no code. Written beside its place, synced, then renamed: a reader sees the old one or the new one, never half.

No random state is kept: the randomness of a step is a pure function of (seed, step, rank), see `train.loop`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from shards.errors import FormatError, naming
from shards.manifest import sync_folder

FORMAT_VERSION = 1
NAME = "checkpoint.pt"
NORMS = "checkpoint-norms.pt"  # the last checkpoint with exact BatchNorm statistics (train/norm_statistics.py)
NORMS_OF, NORMS_SAMPLES = "norms_of", "norms_samples"  # in its `versions`: the digest of what it was made of, samples
CLASS_TABLE = "classes.weight"  # of an embedding head: [C, d]
# What zipfile and torch raise where a file is none of torch's, or a part of it is not what it says.
UNREADABLE = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
REMEDY = "restore the file from a copy, or train again into a new --out"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimiser steps.

    Args:
        model: the state dict of the model (never of its DDP wrapper).
        optimiser: the state dict of the optimiser.
        step: optimiser steps done.
        recipe: the resolved recipe, as plain values.
        classes: the class table, as plain values.
        classes_digest: its digest.
        digests: the digest of every shard set that the run reads, in order.
        versions: of torch and of this project's other parts, for the reader.
    """

    model: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    step: int
    recipe: dict[str, Any]
    classes: dict[str, Any]
    classes_digest: str
    digests: list[str]
    versions: dict[str, str]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Publish `checkpoint` at `path`, atomically: a crash at any moment leaves the earlier file or this one.

    Raises:
        OSError: it cannot be written (disk full); the earlier file is as it was, and nothing else stays.
    """
    partial = path.with_name(path.name + ".partial")
    values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    try:
        with naming(partial), open(partial, "wb") as file:
            _write({"format_version": FORMAT_VERSION, **values}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk every byte counts
        raise
    sync_folder(path.parent)


class _Sink:
    """Passes on what torch writes, and keeps the first error: torch puts one of its own in its place."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _write(values: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save` that raises OSError where the file cannot be written."""
    sink = _Sink(file)
    try:
        torch.save(values, cast(IO[bytes], sink))
    except (RuntimeError, OSError):
        if sink.error is None:
            raise
        raise sink.error from None


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its tensors on the CPU, its shape checked.

    Raises:
        FormatError: absent, cut short, corrupted, of another version or with parts missing.
    """
    if not path.is_file():
        raise FormatError(path, "no checkpoint here; expected the folder of a run that seg-train has saved")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums and compares none
            damaged = archive.testzip()
        values = torch.load(path, map_location="cpu", weights_only=True) if damaged is None else None
    except pickle.UnpicklingError as error:
        raise FormatError(path, f"damaged, or holds more than tensors and plain values; {REMEDY}") from error
    except UNREADABLE as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise FormatError(path, f"not a readable checkpoint ({reason}); {REMEDY}") from error
    if damaged is not None:
        raise FormatError(path, f"damaged: the checksum of its part {damaged} differs; {REMEDY}")
    return _checked(path, values)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def best(folder: Path, exact_norms: bool = True) -> tuple[Path, Checkpoint]:
    """The checkpoint of a run to predict with: the one with exact BatchNorm statistics where that was made of the
    run's last, else the last.

    Raises:
        FormatError: as `load`.
    """
    last, exact = folder / NAME, folder / NORMS
    if exact_norms and exact.is_file() and last.is_file():
        saved = load(exact)
        if saved.versions.get(NORMS_OF) == digest(last):
            return exact, saved
    return last, load(last)


def norms_of(folder: Path, exact_norms: bool = True) -> str:
    """What the BatchNorm statistics of `best` are, in words."""
    path, saved = best(folder, exact_norms)
    if path.name == NORMS:
        return f"exact averages over {saved.versions[NORMS_SAMPLES]} training samples"
    stale = exact_norms and (folder / NORMS).is_file()
    return "moving averages" + (f" ({NORMS} is of another step: run seg-norms again)" if stale else "")


def _checked(path: Path, values: object) -> Checkpoint:
    """`values` as a Checkpoint, after a look at the type of every part."""
    if not isinstance(values, dict) or "format_version" not in values:
        raise FormatError(path, f"not a checkpoint of seg-train; {REMEDY}")
    version = values.pop("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(path, f"checkpoint format {version!r}, expected {FORMAT_VERSION}; {REMEDY}")
    expected: dict[str, type] = {
        "model": Mapping, "optimiser": dict, "step": int, "recipe": dict,
        "classes": dict, "classes_digest": str, "digests": list, "versions": dict,
    }  # fmt: skip
    for name, kind in expected.items():
        if not isinstance(values.get(name), kind):
            raise FormatError(path, f"{name!r} is missing or not a {kind.__name__}; {REMEDY}")
    if set(values) != set(expected):
        raise FormatError(path, f"unknown parts {sorted(set(values) - set(expected))}; {REMEDY}")
    if not all(isinstance(tensor, torch.Tensor) for tensor in values["model"].values()):
        raise FormatError(path, f"'model' holds something else than tensors; {REMEDY}")
    return Checkpoint(**values)


def belongs(checkpoint: Checkpoint, classes_digest: str, digests: list[str], path: Path) -> None:
    """Raise FormatError unless the checkpoint was saved with this class table and these shard sets."""
    if checkpoint.classes_digest != classes_digest:
        raise FormatError(path, "saved with another class table than its run.json; restore both from one copy")
    if checkpoint.digests != digests:
        raise FormatError(path, "saved with other shard sets than its run.json; restore both from one copy")


def fit(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Load the checkpoint's weights into `model`.

    Raises:
        FormatError: names or shapes differ from the model's; a class table of another size is named as such.
    """
    table, saved = model.state_dict().get(CLASS_TABLE), checkpoint.model.get(CLASS_TABLE)
    if table is not None and saved is not None and table.shape != saved.shape:
        raise FormatError(
            path,
            f"holds {saved.shape[0]} class embeddings of {saved[0].numel()} numbers, the run needs {table.shape[0]} of "
            f"{table.shape[1]}: a class table cannot grow; {REMEDY}",
        )
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise FormatError(path, f"does not fit the model of its own recipe ({str(error)[:160]}); {REMEDY}") from error


def fit_optimiser(optimiser: torch.optim.Optimizer, checkpoint: Checkpoint, path: Path) -> None:
    """Load the checkpoint's optimiser state into `optimiser`.

    Raises:
        FormatError: its groups differ from the optimiser's.
    """
    try:
        optimiser.load_state_dict(checkpoint.optimiser)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(path, f"optimiser state does not fit ({str(error)[:160]}); {REMEDY}") from error
