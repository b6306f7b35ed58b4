"""The folder of a run: what it holds, how it begins, how it is opened again.

    runs/demo/run.json        resolved recipe, shard sets with their digests, class table, seed, versions
    runs/demo/checkpoint.pt   the last checkpoint (train/checkpoint.py)
    runs/demo/log.jsonl       one line a step; tensorboard/ beside it (train/runlog.py)

A run is opened by its folder alone; nothing in it is trusted before it is checked.
"""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from shards.classes import ClassTable
from shards.errors import FormatError, SegshardsError, UserError
from shards.manifest import publish_bytes
from train import config
from train.config import Recipe
from train.label_space import LabelSpace

NAME = "run.json"
FORMAT_VERSION = 1
# Settings that change when things are written or how things are read, and nothing that is learnt. loop.accumulate goes
# with the number of ranks: a run that goes on with fewer of them needs more parts (train/mixture.py, memory).
FREE = {
    "name", "description", "expected", "data.workers", "data.loader", "data.check", "loss.search", "loop.accumulate",
    "loop.checkpoint_every", "loop.log_every", "loop.image_every", "loop.eval_every",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a run is, before its first step.

    Args:
        folder: where it lives.
        recipe: resolved.
        classes: the class table of its shard sets.
        sources: per shard set "path", "dataset", "digest" and "filter"; in a mixture its "source" too.
        start: "path" and "digest" of the checkpoint whose network it began from (train/start.py), if any.
        space: of a mixture, which of the classes are base and which each source knows.
    """

    folder: Path
    recipe: Recipe
    classes: ClassTable
    sources: tuple[dict[str, str], ...]
    start: dict[str, str] | None = None
    space: LabelSpace | None = None

    @property
    def digests(self) -> list[str]:
        """The manifest digest of each shard set."""
        return [source["digest"] for source in self.sources]


def create(run: Run) -> None:
    """Make the run's folder and publish its run.json.

    Raises:
        UserError: as `check_free`.
    """
    check_free(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format_version": FORMAT_VERSION,
        "recipe": run.recipe.to_dict(),
        "sources": list(run.sources),
        "classes": run.classes.to_dict(),
        "classes_digest": run.classes.digest,
        "seed": run.recipe.loop.seed,
        "versions": versions(),
        **({"start": run.start} if run.start else {}),
        **({"space": run.space.to_dict()} if run.space else {}),
    }
    publish_bytes(run.folder / NAME, json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n")


def check_free(folder: Path) -> None:
    """Raise UserError where a folder holds a run already, or is a file."""
    if (folder / NAME).exists():
        raise UserError(f"{folder} holds a run already: add --resume to continue it, or give another --out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; expected a folder or a new path")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder, as far as its file system has locks: a second process that trains there at the same time
    would mix its checkpoints and its log with ours.

    Raises:
        UserError: another process holds it.
    """
    with open(folder / NAME, "rb+") as file:
        with suppress(ImportError):  # Windows
            import fcntl

            try:  # a lock of this process alone: data workers that outlive it have none
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(f"another process trains in {folder}: wait until it ends, or stop it") from None
        yield


def open_run(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        UserError: no run there.
        FormatError: its run.json is broken.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"no run in {folder} (no {NAME}); expected the --out folder of seg-train")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format_version"] != FORMAT_VERSION:
            raise FormatError(path, f"run format {values['format_version']!r}, expected {FORMAT_VERSION}")
        sources = tuple(_source(source) for source in values["sources"])
        classes = _classes(path, values["classes"])
        space = LabelSpace.from_dict(values["space"], classes) if "space" in values else None
        start = {key: str(values["start"][key]) for key in ("path", "digest")} if "start" in values else None
        return _checked(
            Run(folder, config.from_stored(values["recipe"], str(path)), classes, sources, start, space), path
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(path, f"not a readable run file ({type(error).__name__}: {error}); restore it") from None


def _source(values: dict[str, Any]) -> dict[str, str]:
    """What is kept of one shard set."""
    more = ("source",) if "source" in values else ()
    return {key: str(values[key]) for key in ("path", "dataset", "digest", "filter", *more)}


def _checked(run: Run, path: Path) -> Run:
    """The run itself; raises FormatError where its label space is not that of its recipe's mixture."""
    expected = len(run.recipe.mixture.sources) if run.recipe.mixture else 0
    found = len(run.space.known) if run.space else 0
    if found != expected:
        raise FormatError(path, f"label space of {found} sources, expected {expected} as in its recipe; restore it")
    return run


def _classes(path: Path, values: dict[str, Any]) -> ClassTable:
    """The class table of a run.json, with the file's name in what is said about it."""
    try:
        return ClassTable.from_dict(values)
    except SegshardsError as error:
        raise FormatError(path, f"{error}; restore it") from None


def check_same(old: Run, new: Run) -> None:
    """Raise UserError, naming what differs, unless `new` would do exactly what `old` does."""
    before, now = dict(_flat(old.recipe.to_dict())), dict(_flat(new.recipe.to_dict()))
    differ = [key for key in {**before, **now} if key not in FREE and before.get(key) != now.get(key)]
    differ = [key for key in differ if key.partition(".")[0] not in FREE]
    found = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differ[:4]]
    if old.digests != new.digests:
        found.append("the shard sets are not the same ones (their digests differ)")
    elif old.classes.digest != new.classes.digest or _space(old) != _space(new):
        found.append(f"the label space is not the same ({len(old.classes)} classes were, {len(new.classes)} are)")
    if found:
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UserError(
            f"{old.folder} was started with other settings: {'; '.join(found)}{more}; "
            "resume with the same settings, or give another --out"
        )


def _space(run: Run) -> dict[str, Any] | None:
    return run.space.to_dict() if run.space else None


def versions() -> dict[str, str]:
    """What this run was made with."""
    named = {}
    for name in ("segshards", "torch", "timm", "segmentation_models_pytorch", "numpy"):
        try:
            named[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            named[name] = "not installed"
    return {"python": platform.python_version(), **named}


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
