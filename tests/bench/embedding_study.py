"""The embedding head against a channel a class: what is learnt at equal memory, and at equal steps.

    python -m tests.bench.embedding_study many       # 1,284 procedural classes, equal memory
    python -m tests.bench.embedding_study camvid     # real CamVid, equal steps (needs SEGSHARDS_DATA)

Drives the public commands only (seg-prep, seg-train, seg-eval), one thread a run, --jobs at a time, three seeds an arm.

many: the same small DeepLabV3+ on tests/fakes_many.py, equal steps. The dense head trains at batch 2, each embedding
head at the largest batch whose step takes no more memory. A step's memory is measured in a process of its own: the
high-water mark of network, loss and gradients, forward and backward, above what was resident just before.
camvid: recipe camvid-efficientnet-lite0 against essnet-camvid, from ImageNet weights, same steps, batch and crops.

Finished runs are skipped. Writes OUT/results.jsonl and prints a Markdown table: mean and sample deviation.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tests.bench.camvid_study import ENVIRONMENT, call, spread
from tests.bench.embedding_memory import ALLOCATOR, resident
from tests.bench.timing import markdown
from tests.fakes_many import write_many_classes
from tests.real import real_root
from train.config import load_recipe
from train.models import build_model
from train.objective import build_objective

Result = dict[str, Any]
MANY_CLASSES, MANY_IMAGES = 1284, {"train": 2000, "val": 200}
DENSE_BATCH = 2
SMALL = [
    'model.encoder="mobilenetv3_small_050"', "model.decoder_channels=64", 'data.scales=["1"]', 'eval.input_scale="1"',
    "augment.crop=[96, 96]", "optim.lr=0.003", "loop.image_every=0",
]  # fmt: skip
EMBEDDING = ['model.head="embedding"', "model.embedding_dim=12", "loss.k=8", "optim.embedding_lr_scale=10"]
SCORES = ("miou", "fwiou", "pixel_accuracy")


def step_memory(arm: str, batch: int) -> float:
    """Bytes that one training step of `many` takes at its peak, above what is resident before it."""
    code = f"from tests.bench.embedding_study import measure_step; print(measure_step({arm!r}, {batch}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, **ALLOCATOR}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure_step(arm: str, batch: int) -> float:
    """`step_memory`, in this process."""
    recipe, settings = settings_of("many", arm, batch)
    config = load_recipe(recipe, settings)
    model, objective = build_model(config.model, MANY_CLASSES).train(), build_objective(config)

    def step(count: int) -> None:
        images = torch.randint(256, (count, 3, 96, 96), dtype=torch.uint8)
        ids = torch.randint(MANY_CLASSES, (count, 1, 96, 96), dtype=torch.int32)
        cost, mass = objective(model(images), ids, torch.ones(count, 1, 96, 96))
        (cost / mass).backward()
        model.zero_grad()

    step(2)  # imports, compiled kernels, thread pools
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    step(batch)
    return resident("VmHWM") - before


def largest_batch(arm: str, budget: float) -> int:
    """The largest batch whose step stays within `budget` bytes."""
    low, high = 2, 4
    while high <= 256 and step_memory(arm, high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if step_memory(arm, middle) <= budget else (low, middle)
    return low


def settings_of(study: str, arm: str, batch: int) -> tuple[str, list[str]]:
    """(recipe, settings) of an arm."""
    if study == "camvid":
        recipe = "camvid-efficientnet-lite0" if arm == "dense" else "essnet-camvid"
        exact = ['loss.mode="exact"'] if arm == "exact" else []
        return recipe, ["augment.crop=[90, 120]", "loop.image_every=0", *exact]
    head = [] if arm == "dense" else [*EMBEDDING, f'loss.mode="{arm}"']
    return "demo", [*SMALL, *head, f"loop.batch={batch}"]


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
    call("seg-train", *options, log=out / f"{name}.log")
    seconds = time.monotonic() - began
    scores = out / name / "val.json"
    base = ["--run", out / name, "--shards", shards, "--split", "val", "--input-scale", shown]
    call("seg-eval", *base, "--device", "cpu", "--json", scores, log=out / f"{name}.log")
    found = json.loads(scores.read_text())
    result = {score: 100 * found[score] for score in SCORES} | {"seconds": seconds}
    note.write_text(json.dumps(result) + "\n")
    return result


def equal_memory(arms: Sequence[str], out: Path) -> dict[str, int]:
    """The batch of each arm, found once and kept."""
    note = out / "batches.json"
    if not note.exists():
        budget = step_memory("dense", DENSE_BATCH)
        batches = {arm: DENSE_BATCH if arm == "dense" else largest_batch(arm, budget) for arm in arms}
        peaks = {arm: round(step_memory(arm, batch) / 2**20, 1) for arm, batch in batches.items()}
        note.write_text(json.dumps({"batch": batches, "step_mb": peaks}) + "\n")
    found = json.loads(note.read_text())
    print(f"batches at equal memory: {found['batch']}; MB a step: {found['step_mb']}", flush=True)
    return dict(found["batch"])


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["many", "camvid"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--arms", default="dense,nearest,exact")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    out = options.out or Path(f"runs/embedding-study-{options.study}")
    out.mkdir(parents=True, exist_ok=True)
    shards, common = prepare(options.study, out)
    arms = options.arms.split(",")
    batches = equal_memory(arms, out) if options.study == "many" else dict.fromkeys(arms, 8)
    cases = list(product(options.seeds.split(","), arms))

    def one(case: tuple[str, str]) -> Result:
        seed, arm = case
        recipe, settings = settings_of(options.study, arm, batches[arm])
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
    for arm in arms:
        mine = [result for result in results if result["arm"] == arm]
        columns = [spread([result[name] for result in mine]) for name in (*SCORES, "seconds")]
        rows.append([arm, batches[arm], *columns])
    print(markdown(["head", "batch", "mIoU %", "fwIoU %", "pixel accuracy %", "seconds"], rows))


if __name__ == "__main__":
    main()
