"""LarvSeg's claim on real Clothing Co-Parsing: classes of which only tags are seen, learned as pixels.

    python -m tests.bench.ccp_study --jobs 2
    python -m tests.bench.ccp_study --table-only

Drives the public commands only (seg-prep, seg-train, seg-eval), one thread a run, --jobs runs at a time: recipe
larvseg-ccp from ImageNet weights. Classes are split by a rule that looks at no result: of the classes with at least 15
tagged photos in "weak" (and at most nine in ten: skin is in all) and 4 labelled ones in val, every second by rising id
is novel, its pixels void in training; all others with pixels in at least 5 training photos are base; the rest is void
everywhere, and so is "null", which is what is no garment.

Arms, at equal steps, crops and order of samples: "pixels" (both image losses off), "baseline" (average-pooled scores),
"attention" (baseline and CA-Classifier). Scores: val at full resolution, mIoU over all, base and novel classes. Stopped
runs go on, finished ones are not repeated. Prints Markdown: mean and sample deviation over seeds, and gains paired by
seed.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path

import numpy as np

import shards
from tests.bench.camvid_study import call, spread
from tests.bench.timing import markdown
from tests.real import real_root

RECIPE = "larvseg-ccp"
ARMS = {
    "pixels": ["loss.image_weight=0.0", "loss.attention_weight=0.0"],
    "baseline": ["loss.attention_weight=0.0"],
    "attention": [],
}
LEAST_TAGGED, LEAST_VAL, LEAST_TRAIN = 15, 4, 5
SCORES = {"miou": "mIoU, all", "miou_base": "base", "miou_novel": "novel"}


def photos_by_class(path: Path, split: str) -> np.ndarray:
    """In how many photos of a split each class is: int64 [C]."""
    opened = shards.open(path, split=split, scale="1")
    counts = np.zeros(len(opened.classes), np.int64)
    for index in range(len(opened)):
        sample = opened[index]
        shown = sample.weak if sample.hard is None else np.unique(sample.hard[sample.hard != shards.IGNORE])
        counts[np.asarray(shown, np.int64)] += 1
    return counts


def split_classes(path: Path) -> tuple[list[str], list[str]]:
    """Base and novel classes by name, by the rule at the top."""
    names = shards.open(path, split="train", scale="1").classes.names
    train, val, weak = (photos_by_class(path, split) for split in ("train", "val", "weak"))
    most = 0.9 * len(shards.open(path, split="weak", scale="1"))
    often = np.flatnonzero((weak >= LEAST_TAGGED) & (weak <= most) & (val >= LEAST_VAL))
    novel = set(often[::2].tolist())
    base = [i for i in range(len(names)) if i not in novel and train[i] >= LEAST_TRAIN and names[i] != "null"]
    return [names[i] for i in base], [names[i] for i in sorted(novel)]


def prepare(out: Path, data: Path) -> None:
    """Three shard sets: whole (to count), with base classes alone, with base and novel ones."""
    out.mkdir(parents=True, exist_ok=True)
    ccp = ("ccp", "--root", data / "ccp", "--scales", "1", "--quiet")
    call("seg-prep", *ccp, "--out", out / "whole")
    base, novel = split_classes(out / "whole")
    for name, classes in (("base", base), ("all", base + novel)):
        (out / f"{name}.tsv").write_text("\n".join(["name", *classes]) + "\n")
    (out / "split.json").write_text(json.dumps({"base": base, "novel": novel}, indent=1) + "\n")
    call("seg-prep", *ccp, "--classes", out / "base.tsv", "--split", "train", "--out", out / "ccp-base")
    call("seg-prep", *ccp, "--classes", out / "all.tsv", "--out", out / "ccp")


def run(arm: str, seed: int, options: argparse.Namespace, data: Path) -> None:
    """Train and score one run from wherever it stands."""
    folder = options.out / f"{arm}-seed{seed}"
    scores, log = folder / "val.json", folder.with_suffix(".log")
    if scores.exists():
        return
    weights = next((data / "weights").glob("efficientnet_lite0*.safetensors"))
    given = [
        *ARMS[arm],
        *options.overrides,
        f"model.weights={json.dumps(str(weights))}",
        f"loop.seed={seed}",
        f"loop.steps={options.steps}",
        "loop.checkpoint_every=100",
        "loop.image_every=0",
        "data.workers=0",
    ]
    settings = [word for setting in given for word in ("--set", setting)]
    sources = ["--shards", f"pixels={options.out / 'ccp-base'}", "--shards", f"tags={options.out / 'ccp'}"]
    resume = ["--resume"] if (folder / "run.json").exists() else []
    base = [*sources, "--recipe", RECIPE, "--out", folder, "--device", "cpu"]
    call("seg-train", *base, *settings, *resume, log=log)
    partly = folder / "val.part"
    where = ["--run", folder, "--shards", options.out / "ccp", "--split", "val", "--device", "cpu"]
    call("seg-eval", *where, "--json", partly, log=log)
    partly.replace(scores)
    print(f"done {folder.name}", flush=True)


def read(out: Path, arm: str, seeds: list[int]) -> dict[int, dict[str, float]]:
    """The scores in per cent, by seed."""
    paths = {seed: out / f"{arm}-seed{seed}" / "val.json" for seed in seeds}
    found = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
    return {seed: {name: 100 * scores[name] for name in SCORES} for seed, scores in found.items()}


def table(out: Path, seeds: list[int]) -> str:
    """A row a score: each arm, and what each arm gains over the one before it."""
    found = {arm: read(out, arm, seeds) for arm in ARMS}
    arms, rows = list(ARMS), []
    for score, title in SCORES.items():
        row = [title, *(spread([s[score] for s in found[arm].values()]) for arm in arms)]
        for before, after in pairwise(arms):
            both = sorted(found[before].keys() & found[after].keys())
            row.append(spread([found[after][seed][score] - found[before][seed][score] for seed in both], "+"))
        rows.append(row)
    gains = [f"{after} - {before}" for before, after in pairwise(arms)]
    return markdown(["CCP val (%)", *arms, *gains], rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ccp-study"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to every seg-train")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table-only", action="store_true", help="run nothing, show what is there")
    return parser.parse_args()


def main() -> None:
    """Run the study and show it."""
    options = parse()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.table_only:
        data = real_root()
        if data is None or not (data / "ccp").is_dir():
            raise SystemExit("ccp/ and weights/ not found: set SEGSHARDS_DATA")
        prepare(options.out, data)
        with ThreadPoolExecutor(options.jobs) as pool:  # whole seeds come first
            list(pool.map(lambda case: run(case[1], case[0], options, data), product(seeds, ARMS)))
    split = json.loads((options.out / "split.json").read_text())
    print(f"\n{len(split['base'])} base classes; novel: {', '.join(split['novel'])}; {options.steps} steps\n")
    print(table(options.out, seeds))


if __name__ == "__main__":
    main()
