"""Write the golden shard sets: ``python -m tests.golden.make``. Only for a new format version."""

from __future__ import annotations

from pathlib import Path

from tests.shards.build import build

HERE = Path(__file__).parent


def main() -> None:
    """One set in each format, beside this file."""
    for format in ("webdataset", "zarr"):
        folder = HERE / f"v1-{format}"
        folder.mkdir()
        build(folder, format, samples=3)


if __name__ == "__main__":
    main()
