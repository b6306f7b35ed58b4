"""One short file a dataset: `prep/datasets/<name>.py` holds `READER`; the command-line name has `-` for each `_`.

Adding a dataset is adding a file here and a fake of its layout to the tests.
"""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module

from prep.raw import Reader
from shards.errors import SettingsError


def dataset_names() -> tuple[str, ...]:
    """All datasets that can be read, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in modules))


def load_reader(name: str) -> Reader:
    """The reader of a dataset; SettingsError with the nearest name where there is none of that name."""
    names = dataset_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "seg-prep --list shows their layouts"
        raise SettingsError(f"dataset '{name}' is not known: expected one of {', '.join(names)}; {hint}")
    reader: Reader = import_module(f"prep.datasets.{name.replace('-', '_')}").READER
    return reader
