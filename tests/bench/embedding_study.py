"""The embedding head against a channel a class: what is learnt at equal memory, and at equal steps.

    python -m tests.bench.embedding_study many       # 1,284 procedural classes, equal memory
    python -m tests.bench.embedding_study camvid     # real CamVid, equal steps (needs SEGSHARDS_DATA)

Drives the public commands only (seg-prep, seg-train, seg-eval), one thread a run, --jobs at a time, three seeds an arm.
Peak memory is the largest resident set of the seg-train process, by the operating system.

many: the same small DeepLabV3+ on tests/fakes_many.py, equal steps. The dense head trains at batch 2, and the
embedding heads at the largest batch whose peak stays below that (--batch); what a batch costs is printed.
camvid: recipe camvid-efficientnet-lite0 against essnet-camvid, from ImageNet weights, same steps, batch and crops.

Finished runs are skipped. Writes OUT/results.jsonl and prints a Markdown table: mean and sample deviation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from tests.bench.camvid_study import ENVIRONMENT, MODULES, call, spread
from tests.bench.timing import markdown
from tests.fakes_many import write_many_classes
from tests.real import real_root

Result = dict[str, Any]
MANY_CLASSES, MANY_IMAGES = 1284, {"train": 2000, "val": 200}
DENSE_BATCH = 2
SMALL = [
    'model.encoder="mobilenetv3_small_050"', "model.decoder_channels=64", 'data.scales=["1"]', 'eval.input_scale="1"',
    "augment.crop=[96, 96]", "optim.lr=0.003", "loop.image_every=0",
]  # fmt: skip
EMBEDDING = ['model.head="embedding"', "model.embedding_dim=12", "loss.k=8"]
SCORES = ("miou", "fwiou", "pixel_accuracy")


def settings_of(study: str, arm: str, batch: int) -> tuple[str, list[str]]:
    """(recipe, settings) of an arm."""
    if study == "camvid":
        recipe = "camvid-efficientnet-lite0" if arm == "dense" else "essnet-camvid"
        exact = ['loss.mode="exact"'] if arm == "exact" else []
        return recipe, ["augment.crop=[90, 120]", "loop.image_every=0", *exact]
    head = [] if arm == "dense" else [*EMBEDDING, f'loss.mode="{arm}"']
    return "demo", [*SMALL, *head, f"loop.batch={DENSE_BATCH if arm == 'dense' else batch}"]


def prepare(study: str, out: Path) -> tuple[Path, list[str]]:
    """(shard set, further settings); what is there is not made again."""
    if study == "many":
        raw = out / "raw"
        if not (raw / "done").exists():
            write_many_classes(raw / "data", MANY_CLASSES, MANY_IMAGES)
            (raw / "done").touch()
        call("seg-prep", "folder", "--root", raw / "data", "--out", out / "shards", "--scales", "1")
        return out / "shards", []
    data = real_root()
    weights = sorted((data / "weights").glob("efficientnet_lite0*.safetensors")) if data else []
    if data is None or not weights:
        raise SystemExit("camvid/ and weights/ not found: set SEGSHARDS_DATA")
    call("seg-prep", "camvid", "--root", data / "camvid", "--out", out / "shards", "--scales", "1,1/4")
    return out / "shards", [f"model.weights={json.dumps(str(weights[0]))}"]


def run_case(out: Path, shards: Path, name: str, recipe: str, settings: Sequence[str], shown: str) -> Result:
    """Train and score one run, or read what it gave before."""
    note = out / f"{name}.json"
    if note.exists():
        return dict(json.loads(note.read_text()))
    words = [word for setting in settings for word in ("--set", setting)]
    resume = ["--resume"] if (out / name / "run.json").exists() else []
    began = time.monotonic()
    options = ["--shards", shards, "--recipe", recipe, "--out", out / name, "--device", "cpu", *words, *resume]
    peak = train_measured(options, out / f"{name}.log")
    seconds = time.monotonic() - began
    scores = out / name / "val.json"
    base = ["--run", out / name, "--shards", shards, "--split", "val", "--input-scale", shown]
    call("seg-eval", *base, "--device", "cpu", "--json", scores, log=out / f"{name}.log")
    found = json.loads(scores.read_text())
    result = {score: 100 * found[score] for score in SCORES} | {"peak_mb": peak, "seconds": seconds}
    note.write_text(json.dumps(result) + "\n")
    return result


def train_measured(options: Sequence[object], log: Path) -> float:
    """Run seg-train; its peak resident memory in MB."""
    code = f"import sys; from {MODULES['seg-train']} import main; sys.argv[0] = 'seg-train'; main()"
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, options)], env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"seg-train ended with {process.returncode}: see {log}")
    return usage.ru_maxrss / 1000


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["many", "camvid"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="of the embedding heads in `many`")
    parser.add_argument("--arms", default="dense,nearest,exact")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    out = options.out or Path(f"runs/embedding-study-{options.study}")
    out.mkdir(parents=True, exist_ok=True)
    shards, common = prepare(options.study, out)
    cases = list(product(options.seeds.split(","), options.arms.split(",")))

    def one(case: tuple[str, str]) -> Result:
        seed, arm = case
        recipe, settings = settings_of(options.study, arm, options.batch)
        loop = [f"loop.seed={seed}", f"loop.steps={options.steps}", "data.workers=0", "loop.checkpoint_every=250"]
        shown = "1" if options.study == "many" else "1/4"
        name = f"{arm}-seed{seed}"
        result = run_case(out, shards, name, recipe, [*settings, *common, *loop, *options.overrides], shown)
        print(f"{name}: {result}", flush=True)
        return {"arm": arm, "seed": int(seed), **result}

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, cases))
    (out / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    rows = []
    for arm in options.arms.split(","):
        mine = [result for result in results if result["arm"] == arm]
        columns = [spread([result[name] for result in mine]) for name in (*SCORES, "peak_mb", "seconds")]
        rows.append([arm, *columns])
    print(markdown(["head", "mIoU %", "fwIoU %", "pixel accuracy %", "peak MB", "seconds"], rows))


if __name__ == "__main__":
    main()
