"""What a ladder's auxiliary losses are worth on real CamVid: soft targets, nearest ones, none; all else equal.

    python -m tests.bench.auxiliary_study --jobs 2
    python -m tests.bench.auxiliary_study --table-only

Drives the public commands only (seg-prep, seg-train, seg-eval), one thread a run, --jobs runs at a time: recipe
ldn121-16-2-camvid-half-imagenet with another encoder, EfficientNet-Lite0 from ImageNet weights, 32 -> 4, on crops that
a CPU can bear. Arms: "soft" (loss.aux_targets, the paper's), "nearest" (the label at each cell's centre), "none"
(model.auxiliary = false). Scores: val at full resolution. Stopped runs go on, finished ones are not repeated. Prints
Markdown: mean and sample deviation over seeds, gains paired by seed, and the same over thin classes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from tests.bench.camvid_study import THIN, call, spread
from tests.bench.timing import markdown
from tests.real import real_root

RECIPE = "ldn121-16-2-camvid-half-imagenet"
ARMS = {
    "soft": [],
    "nearest": ['loss.aux_targets="nearest"'],
    "none": ["model.auxiliary=false"],
}
NETWORK = ['model.encoder="tf_efficientnet_lite0"', "model.down=32", "model.up=4", 'model.segments="none"']


def settings(arm: str, seed: int, options: argparse.Namespace, weights: Path) -> list[str]:
    """The words of --set for one run."""
    given = [
        *NETWORK,
        *ARMS[arm],
        f"model.weights={json.dumps(str(weights))}",
        f"augment.crop=[{options.crop}, {options.crop}]",
        f"loop.seed={seed}",
        f"loop.steps={options.steps}",
        f"loop.batch={options.batch}",
        "loop.accumulate=1",
        "loop.checkpoint_every=100",
        "loop.image_every=0",
        "data.workers=0",
    ]
    return [word for setting in given for word in ("--set", setting)]


def run(arm: str, seed: int, options: argparse.Namespace, data: Path) -> None:
    """Train and score one run from wherever it stands."""
    weights = next((data / "weights").glob("efficientnet_lite0*.safetensors"))
    folder, shard_set = options.out / f"{arm}-seed{seed}", options.out / "shards"
    scores, log = folder / "val.json", folder.with_suffix(".log")
    if scores.exists():
        return
    resume = ["--resume"] if (folder / "run.json").exists() else []
    base = ["--shards", shard_set, "--recipe", RECIPE, "--out", folder, "--device", "cpu"]
    call("seg-train", *base, *settings(arm, seed, options, weights), *resume, log=log)
    partly = folder / "val.part"
    call("seg-eval", "--run", folder, "--shards", shard_set, "--device", "cpu", "--json", partly, log=log)
    partly.replace(scores)
    print(f"done {folder.name}", flush=True)


def read(out: Path, arm: str, seeds: list[int]) -> dict[int, dict[str, float]]:
    """mIoU, thin classes' mIoU and pixel accuracy in per cent, by seed."""
    found = {}
    for seed in seeds:
        path = out / f"{arm}-seed{seed}" / "val.json"
        if path.exists():
            scores = json.loads(path.read_text())
            thin = statistics.mean(scores["per_class"][name] or 0.0 for name in THIN)
            found[seed] = {
                "mIoU": 100 * scores["miou"],
                "thin classes": 100 * thin,
                "pixel accuracy": 100 * scores["pixel_accuracy"],
            }
    return found


def table(out: Path, seeds: list[int]) -> str:
    """A row a score: each arm, and the gain of soft targets over each other arm."""
    found = {arm: read(out, arm, seeds) for arm in ARMS}
    others = [arm for arm in ARMS if arm != "soft"]
    rows = []
    for score in ("mIoU", "thin classes", "pixel accuracy"):
        row = [score, *(spread([s[score] for s in found[arm].values()]) for arm in ARMS)]
        for other in others:
            both = sorted(found["soft"].keys() & found[other].keys())
            row.append(spread([found["soft"][seed][score] - found[other][seed][score] for seed in both], "+"))
        rows.append(row)
    return markdown(["CamVid val (%)", *ARMS, *(f"soft - {other}" for other in others)], rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/auxiliary-study"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS), help="which to run; the table shows all that are there")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table-only", action="store_true", help="run nothing, show what is there")
    return parser.parse_args()


def main() -> None:
    """Run the study and show it."""
    options = parse()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.table_only:
        data = real_root()
        if data is None or not (data / "camvid").is_dir():
            raise SystemExit("camvid/ and weights/ not found: set SEGSHARDS_DATA")
        options.out.mkdir(parents=True, exist_ok=True)
        call("seg-prep", "camvid", "--root", data / "camvid", "--out", options.out / "shards", "--scales", "1")
        with ThreadPoolExecutor(options.jobs) as pool:  # whole seeds come first
            list(pool.map(lambda case: run(case[1], case[0], options, data), product(seeds, options.arms.split(","))))
    print(f"\n{options.steps} steps of {options.batch} crops of {options.crop} x {options.crop}\n")
    print(table(options.out, seeds))


if __name__ == "__main__":
    main()
