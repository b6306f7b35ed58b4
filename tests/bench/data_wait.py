"""How much of a training step waits for data: seg-train on the demo, its feed in threads, in processes, and chosen.

    python -m tests.bench.data_wait [--shards DIR] [--recipe demo] [--steps 120] [--rounds 3] [--workers 1]

Runs take turns. Printed are medians over the rounds: the share of a step that is spent waiting (median and mean over
the steps after the first 20, mean weighted by time), what `data.workers = 0` makes of it (the price of the data in the
loop itself), and samples a second. Without --shards it makes the demo's set for the moment.
The target holds where the network is the bottleneck: the demo's is one on a CPU, if a core is left for the data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.demo_set import shards_or_demo
from tests.bench.timing import markdown, met

WARM = 20  # steps that are left out: the queue fills, memory is allocated
RIVALS = {
    "in the loop": ["data.workers=0"],
    "threads": ["data.loader=threads"],
    "processes": ["data.loader=processes"],
    "auto": ["data.loader=auto"],
}


def run(given: argparse.Namespace, options: list[str]) -> dict[str, float | str]:
    """One training run: what its log says of waiting."""
    with tempfile.TemporaryDirectory() as place:
        words = ["--shards", given.shards, "--recipe", given.recipe, "--out", f"{place}/run", "--device", given.device]
        sets = [f"loop.steps={given.steps}", "loop.image_every=0", f"data.workers={given.workers}", *options]
        words += [word for one in sets for word in ("--set", one)]
        subprocess.run([sys.executable, "-m", "train.cli", *words, "--quiet"], check=True)
        lines = [json.loads(line) for line in Path(place, "run/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "data_wait" in line][WARM:]
    seconds = sum(line["seconds"] for line in steps)
    return {
        "median": statistics.median(line["data_wait"] for line in steps),
        "mean": sum(line["data_wait"] * line["seconds"] for line in steps) / seconds,
        "rate": statistics.median(line["samples_per_second"] for line in steps),
        "feed": next((line["feed"]["loader"] for line in lines if "feed" in line), "-"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--device", default="cpu")
    for name, value in (("steps", 120), ("rounds", 3), ("workers", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float | str]]] = {name: [] for name in RIVALS}
    with shards_or_demo(given.shards) as given.shards:
        for _ in range(given.rounds):
            for name, options in RIVALS.items():
                found[name].append(run(given, options))
    report(given, found)


def report(given: argparse.Namespace, found: dict[str, list[dict[str, float | str]]]) -> None:
    """Print the table and the verdict."""
    rows = [
        [
            name,
            ", ".join(sorted({str(one["feed"]) for one in runs})),
            *(f"{100 * statistics.median(float(one[key]) for one in runs):.2f} %" for key in ("median", "mean")),
            f"{statistics.median(float(one['rate']) for one in runs):.1f}",
        ]
        for name, runs in found.items()
    ]
    print(f"{given.recipe} on {given.device}, {given.workers} data workers, {given.steps} steps, {given.rounds} rounds")
    print(markdown(["data.loader", "chosen", "waiting, median step", "waiting, mean", "samples/s"], rows))
    waited = 100 * statistics.median(float(one["median"]) for one in found["auto"])
    print(f"\nauto waits {waited:.2f} % of a median step (target at most 2 %: {met(waited <= 2)})")


if __name__ == "__main__":
    main()
