"""Coverage-guided fuzzing: `python -m tests.fuzz.guided TARGET --seconds 300 --keep FOLDER`.

atheris is no need of the project (`pip install atheris`). It takes the process, stops at the first finding, and
writes that input to FOLDER; copy it to tests/fuzz/found/TARGET/ once the parser is mended.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found]

OURS = ["shards", "prep", "train", "zipfile", "json", "tomllib"]
COMPILED = [  # by numba, which cannot compile what is instrumented
    *("shards.kernels", "shards.kernels_png", "shards.kernels_soft", "shards.kernels_cells"),
    *("prep.coco.runs", "prep.coco.elements", "prep.coco.paint"),
]

with atheris.instrument_imports(include=OURS, exclude=COMPILED):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("target", choices=TARGETS)
    options.add_argument("--seconds", type=int, default=300)
    options.add_argument("--keep", type=Path, required=True)
    asked = options.parse_args()
    target, corpus = TARGETS[asked.target], asked.keep / f"{asked.target}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)

    def once(data: bytes) -> None:
        target.run(data)

    limits = [f"-max_total_time={asked.seconds}", "-timeout=20", "-rss_limit_mb=4000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, f"-artifact_prefix={asked.keep}/{asked.target}-"], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
