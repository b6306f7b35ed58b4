"""The soft-label paper's claim on real CamVid: soft against nearest-neighbour labels, everything else equal.

    python -m tests.bench.camvid_study --jobs 2 --plot docs/camvid-study.svg
    python -m tests.bench.camvid_study --protocol rescale --scales 1/4,1/8 --out runs/camvid-study-rescale
    python -m tests.bench.camvid_study --table-only

Drives the public commands only (seg-prep, seg-train, seg-eval), one thread a run, --jobs runs at a time. For every
seed, training scale and arm it trains recipe camvid-efficientnet-lite0 from ImageNet weights and scores the result on
val at full source resolution. Arms: soft; nearest (the source label at each cell's centre, as Pillow and
torch "nearest-exact" take it); nearest-corner (at the cell's corner, as torch "nearest" and OpenCV take it).

Protocols: "stored" trains on images stored at the scale, on a random window of at most 90 x 120 cells, so that a step
costs the same at 1/2 and 1/4; "rescale" follows the paper: the source resized at random (bilinear) to between the
scale and twice the scale, then a crop of the scale's size. --fed says what the network is shown when it is scored:
"same" the scale it was trained at, or stored scales such as 1.

It may be stopped at any time: finished runs are skipped, a broken one is resumed. Writes OUT/results.jsonl, one line
a score, and prints Markdown tables: mean and sample deviation over seeds, gains paired by seed, and the same over
thin classes. Needs SEGSHARDS_DATA with camvid/ and weights/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

from tests.bench.timing import markdown
from tests.real import real_root

RECIPE = "camvid-efficientnet-lite0"
ARMS = ("soft", "nearest", "nearest-corner")
THIN = ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")
STORED = ("1", "1/2", "1/4", "1/8")
SOURCE = (360, 480)  # CamVid's size in this release
WINDOW = (90, 120)  # cells of a training crop at most
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NO_COLOR": "1"}
MODULES = {"seg-prep": "prep.cli", "seg-train": "train.cli", "seg-eval": "train.cli_eval"}

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    arm: str
    scale: str
    seed: int

    @property
    def folder(self) -> str:
        """The run's folder name."""
        return f"{self.arm}-{self.scale.replace('/', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    out: Path
    data: Path
    weights: Path
    steps: int
    fed: tuple[str, ...]
    protocol: str
    device: str
    overrides: tuple[str, ...]

    @property
    def shard_set(self) -> Path:
        """CamVid at all scales."""
        return self.out / "shards"

    def settings(self) -> dict[str, object]:
        """What decides the results; a folder is held to it."""
        return {
            "steps": self.steps,
            "protocol": self.protocol,
            "recipe": RECIPE,
            "weights": self.weights.name,
            "overrides": list(self.overrides),
        }


def call(command: str, *arguments: object, log: Path | None = None) -> None:
    """Run one of our commands; its output goes to a file, or is shown. Raises CalledProcessError."""
    code = f"import sys; from {MODULES[command]} import main; sys.argv[0] = {command!r}; main()"
    line = [sys.executable, "-c", code, *map(str, arguments)]
    if log is None:
        subprocess.run(line, env=ENVIRONMENT, check=True)
        return
    with log.open("a") as file:
        subprocess.run(line, env=ENVIRONMENT, check=True, stdout=file, stderr=subprocess.STDOUT)


def prepare(study: Study) -> None:
    """Hold the folder to its settings, and build the shards; a finished shard set says so at once."""
    study.out.mkdir(parents=True, exist_ok=True)
    note = study.out / "study.json"
    if note.exists() and json.loads(note.read_text()) != study.settings():
        raise SystemExit(f"{study.out} holds a study of {note.read_text().strip()}: choose another --out")
    note.write_text(json.dumps(study.settings()) + "\n")
    scales = ",".join(STORED)
    call("seg-prep", "camvid", "--root", study.data / "camvid", "--out", study.shard_set, "--scales", scales)


def geometry(protocol: str, scale: str) -> list[str]:
    """The settings that a protocol needs at a training scale."""
    ratio = Fraction(scale)
    height, width = (int(n * ratio) for n in SOURCE)
    if protocol == "rescale":
        span = f"augment.rescale=[{float(ratio)}, {float(2 * ratio)}]"
        return ['data.mode="rescale"', 'augment.filter="bilinear"', f"augment.crop=[{height}, {width}]", span]
    window = [min(height, WINDOW[0]), min(width, WINDOW[1])]
    return [f"augment.crop={window}"]


def train(study: Study, case: Case) -> None:
    """One run, from wherever it stands."""
    run, log = study.out / case.folder, study.out / f"{case.folder}.log"
    scales = "1" if study.protocol == "rescale" else case.scale
    settings = [
        f'data.scales=["{scales}"]',
        f'data.labels="{case.arm}"',
        "data.workers=0",
        f"loop.seed={case.seed}",
        f"loop.steps={study.steps}",
        "loop.checkpoint_every=200",
        "loop.image_every=0",
        f"model.weights={json.dumps(str(study.weights))}",
        f'eval.input_scale="{case.scale}"',
        *geometry(study.protocol, case.scale),
        *study.overrides,
    ]
    options = [word for setting in settings for word in ("--set", setting)]
    resume = ["--resume"] if (run / "run.json").exists() else []
    base = ["--shards", study.shard_set, "--recipe", RECIPE, "--out", run, "--device", study.device]
    call("seg-train", *base, *options, *resume, log=log)


def scores_file(out: Path, case: Case, fed: str) -> Path:
    """Where the scores of a run lie that was shown images at scale `fed` ("same": its training scale)."""
    return out / case.folder / f"val-{fed.replace('/', '-')}.json"


def train_and_score(study: Study, case: Case) -> None:
    """One run and its scores; what is there already is not made again."""
    for fed in study.fed:
        path = scores_file(study.out, case, fed)
        if path.exists():
            continue
        if not (study.out / case.folder / "trained").exists():
            train(study, case)
            (study.out / case.folder / "trained").touch()
        partly = path.with_suffix(".part")
        base = ["--run", study.out / case.folder, "--shards", study.shard_set, "--split", "val"]
        shown = case.scale if fed == "same" else fed
        options = ["--device", study.device, "--input-scale", shown, "--json", partly]
        call("seg-eval", *base, *options, log=study.out / f"{case.folder}.log")
        partly.replace(path)


def collect(out: Path, cases: Iterable[Case], fed: Sequence[str]) -> list[Result]:
    """The results of all finished runs, also written to results.jsonl."""
    results = []
    for case, shown in product(cases, fed):
        path = scores_file(out, case, shown)
        if path.exists():
            scores = json.loads(path.read_text())
            results.append(
                {
                    "arm": case.arm,
                    "scale": case.scale,
                    "seed": case.seed,
                    "fed": shown,
                    "miou": 100 * scores["miou"],
                    "thin": 100 * statistics.mean(scores["per_class"][name] or 0.0 for name in THIN),
                    "pixel_accuracy": 100 * scores["pixel_accuracy"],
                    "per_class": scores["per_class"],
                    "step": scores["step"],
                }
            )
    partly = out / "results.jsonl.part"
    partly.write_text("".join(json.dumps(result) + "\n" for result in results))
    partly.replace(out / "results.jsonl")
    return results


def values(results: Sequence[Result], arm: str, scale: str, score: str) -> dict[int, float]:
    """A score by seed."""
    return {r["seed"]: r[score] for r in results if r["arm"] == arm and r["scale"] == scale}


def spread(numbers: Sequence[float], sign: str = "") -> str:
    """ "51.2 +- 0.4 (3)": mean, sample deviation, how many."""
    if not numbers:
        return "-"
    deviation = f"{statistics.stdev(numbers):.2f}" if len(numbers) > 1 else "?"
    return f"{statistics.mean(numbers):{sign}.2f} ± {deviation} ({len(numbers)})"


def table(results: Sequence[Result], arms: Sequence[str], scales: Sequence[str], score: str) -> str:
    """Markdown: a row for each scale, a column for each arm, and the gain of soft over each other arm."""
    others = [arm for arm in arms if arm != "soft"]
    rows = []
    for scale in scales:
        found = {arm: values(results, arm, scale, score) for arm in arms}
        row = [scale, *(spread(list(found[arm].values())) for arm in arms)]
        for other in others if "soft" in arms else []:
            seeds = found["soft"].keys() & found[other].keys()
            row.append(spread([found["soft"][seed] - found[other][seed] for seed in sorted(seeds)], "+"))
        rows.append(row)
    gains = [f"soft - {other}" for other in others] if "soft" in arms else []
    return markdown(["training scale", *arms, *gains], rows)


def class_table(results: Sequence[Result], scales: Sequence[str]) -> str:
    """Markdown: mean IoU of each class, soft less nearest, at each scale."""
    rows = []
    for name in results[0]["per_class"]:
        row = [name]
        for scale in scales:
            mean = {}
            for arm in ("soft", "nearest"):
                found = [r["per_class"][name] or 0.0 for r in results if r["arm"] == arm and r["scale"] == scale]
                mean[arm] = 100 * statistics.mean(found) if found else float("nan")
            row.append(f"{mean['soft']:.1f} ({mean['soft'] - mean['nearest']:+.1f})")
        rows.append(row)
    return markdown(["class: soft (gain over nearest)", *scales], rows)


def plot(results: Sequence[Result], arms: Sequence[str], scales: Sequence[str], path: Path) -> None:
    """Means with deviations over the training scale, for all classes and for the thin ones."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for axis, score, title in zip(axes, ("miou", "thin"), ("all 11 classes", "thin classes"), strict=True):
        for arm in arms:
            found = [list(values(results, arm, scale, score).values()) for scale in scales]
            places = [i for i, numbers in enumerate(found) if numbers]
            means = [statistics.mean(found[i]) for i in places]
            errors = [statistics.stdev(found[i]) if len(found[i]) > 1 else 0.0 for i in places]
            axis.errorbar(places, means, yerr=errors, marker="o", capsize=3, label=arm)
        axis.set_xticks(range(len(scales)), scales)
        axis.set(title=title, xlabel="training scale", ylabel="mean IoU (%) at full resolution")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/camvid-study"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--scales", default="1/2,1/4,1/8")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--fed", default="same,1", help="scales shown when scoring: same, or stored ones such as 1")
    parser.add_argument("--protocol", default="stored", choices=["stored", "rescale"])
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to every seg-train")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "auto"])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves: .svg or .png")
    parser.add_argument("--table-only", action="store_true", help="run nothing, show what is there")
    return parser.parse_args()


def run_all(study: Study, cases: Sequence[Case], jobs: int) -> list[str]:
    """Run what is not finished, `jobs` at a time; the names of the runs that failed."""
    prepare(study)
    failed: list[str] = []

    def one(case: Case) -> None:
        try:
            train_and_score(study, case)
            print(f"done {case.folder}", flush=True)
        except subprocess.CalledProcessError as error:
            failed.append(case.folder)
            print(f"FAILED {case.folder} (exit {error.returncode}): see {study.out / case.folder}.log", flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        list(pool.map(one, cases))
    except KeyboardInterrupt:  # the runs got it as well: they save and end
        pool.shutdown(cancel_futures=True)
        raise SystemExit("stopped; run the same command again to go on") from None
    pool.shutdown()
    return failed


def show(results: Sequence[Result], arms: Sequence[str], scales: Sequence[str], shown: str) -> None:
    """Print the tables of the scores with one kind of input."""
    print(f"\nFed at {shown}: mean IoU (%) on CamVid val at full resolution, mean ± sample deviation (seeds)\n")
    print(table(results, arms, scales, "miou"))
    print(f"\nThin classes ({', '.join(THIN)})\n")
    print(table(results, arms, scales, "thin"), end="\n\n")
    print(class_table(results, scales))


def main() -> None:
    """Run the study and show it."""
    options = parse()
    arms, scales = options.arms.split(","), options.scales.split(",")
    fed = tuple(options.fed.split(","))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    cases = [Case(arm, scale, seed) for seed, scale, arm in product(seeds, scales, arms)]  # whole seeds come first
    failed: list[str] = []
    if not options.table_only:
        data = real_root()
        weights = sorted((data / "weights").glob("efficientnet_lite0*.safetensors")) if data else []
        if data is None or not weights or not (data / "camvid").is_dir():
            raise SystemExit("camvid/ and weights/efficientnet_lite0*.safetensors not found: set SEGSHARDS_DATA")
        study = Study(
            options.out,
            data,
            weights[0],
            options.steps,
            fed,
            options.protocol,
            options.device,
            tuple(options.overrides),
        )
        failed = run_all(study, cases, options.jobs)
    results = collect(options.out, cases, fed)
    print(f"\n{len(results)} of {len(cases) * len(fed)} scores; " + (options.out / "study.json").read_text().strip())
    for shown in fed:
        part = [result for result in results if result["fed"] == shown]
        if part:
            show(part, arms, scales, "the training scale" if shown == "same" else f"scale {shown}")
    same = [result for result in results if result["fed"] == fed[0]]
    if options.plot and same:
        plot(same, arms, scales, options.plot)
        print(f"\ncurves: {options.plot}")
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
