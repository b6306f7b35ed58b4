"""Rate of `seg-prep` against a bare loop that only decodes, resizes and encodes, with the same libraries.

    python -m tests.bench.pipeline [--repeat 4] [--rounds 3]

The source is CamVid's train split where it is at hand (SEGSHARDS_DATA), each file linked --repeat times under new
names so that start-up matters little; else procedural streets. Bare loop, one worker and two workers take turns, each
in a fresh process on one thread a process; medians over the rounds are printed. A command's start-up is the time of
the same command with --limit 1 and is printed beside; rates are samples over time less start-up, and over all of it.

Other work on the machine distorts times, so the ratio of CPU time is printed as well. seg-prep does all that the bare
loop does and more: a ratio above 1 says that the machine was busy, not that seg-prep is fast.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import simplejpeg

import shards
from prep.datasets import load_reader
from prep.decode import decode_source
from shards.codec import ImageFormat, encode_hard, encode_image, encode_soft
from tests.bench.timing import markdown
from tests.real import real_root

FACTORS = (2, 4, 8)
SCALES = "1," + ",".join(f"1/{k}" for k in FACTORS)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Seconds(NamedTuple):
    """What something took, by the clock and of CPUs."""

    wall: float
    cpu: float


def linked_camvid(data: Path, root: Path, repeat: int) -> int:
    """CamVid's train split, each file linked `repeat` times; the number of samples."""
    lines = []
    for sub in ("train", "trainannot"):
        (root / sub).mkdir(parents=True)
    images = sorted((data / "camvid" / "train").iterdir())
    for n in range(repeat):
        for image in images:
            label = next((data / "camvid" / "trainannot").glob(f"{image.stem}.*"))
            (root / "train" / f"r{n}_{image.name}").symlink_to(image)
            (root / "trainannot" / f"r{n}_{label.name}").symlink_to(label)
            lines.append(f"train/r{n}_{image.name} trainannot/r{n}_{label.name}")
    (root / "train.txt").write_text("\n".join(lines) + "\n")
    return len(lines)


def bare(dataset: str, root: Path) -> Seconds:
    """Time of the bare loop over a split: decode, resize, encode; nothing is checked, ordered, hashed or written."""
    reader = load_reader(dataset)
    cv2.setNumThreads(1)
    samples = list(reader.samples(root, "train"))

    def one(image_path: Path, label_path: Path) -> None:
        data = image_path.read_bytes()
        jpeg = data[:2] == b"\xff\xd8"
        rgb = simplejpeg.decode_jpeg(data, colorspace="RGB") if jpeg else decode_source(data, "bench").pixels
        hard = reader.decode_label(label_path.read_bytes(), "bench")
        encode_hard(hard, len(reader.classes))
        form = ImageFormat("jpeg", 95) if jpeg else ImageFormat("png")
        for k in FACTORS:
            size = (-(-rgb.shape[1] // k), -(-rgb.shape[0] // k))
            encode_image(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), form)
            encode_soft(shards.soften(hard, f"1/{k}", "box"))

    for sample in samples[:2]:
        one(sample.image, sample.label or Path())
    begin, cpu = time.perf_counter(), time.process_time()
    for sample in samples:
        one(sample.image, sample.label or Path())
    return Seconds(time.perf_counter() - begin, time.process_time() - cpu)


def timed(command: list[str]) -> Seconds:
    """Time of a command in a fresh process, its own children included."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def seg_prep(dataset: str, root: Path, workers: int, *options: str) -> Seconds:
    """Time of one whole build."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", "from prep.cli import main; main()", dataset, "--root", str(root)]
        command += ["--out", f"{out}/shards", "--split", "train", "--scales", SCALES, "--workers", str(workers)]
        return timed([*command, "--quiet", *options])


def bare_in_process(dataset: str, root: Path) -> Seconds:
    """Time of the bare loop in a fresh process, its start-up left out."""
    command = [sys.executable, "-m", "tests.bench.pipeline", "--bare", dataset, str(root)]
    out = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    wall, cpu = map(float, out.split())
    return Seconds(wall, cpu)


def middle(times: list[Seconds]) -> Seconds:
    """Median of either kind."""
    return Seconds(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def compare(dataset: str, root: Path, count: int, rounds: int) -> None:
    """Print the table."""
    loop: list[Seconds] = []
    whole: dict[int, list[Seconds]] = {1: [], 2: []}
    start: dict[int, list[Seconds]] = {1: [], 2: []}
    print(f"{count} samples of {dataset}, scales {SCALES}, {rounds} rounds; load before: {os.getloadavg()[0]:.1f}")
    for workers in start:
        seg_prep(dataset, root, workers, "--limit", "4")  # the disk's cache and numba's
    for _ in range(rounds):
        loop.append(bare_in_process(dataset, root))
        for workers in start:
            start[workers].append(seg_prep(dataset, root, workers, "--limit", "1"))
            whole[workers].append(seg_prep(dataset, root, workers))
    base, rows, net = middle(loop), [], {}
    rows.append(["bare loop", "-", f"{count / base.wall:.1f}", f"{count / base.wall:.1f}", "1.00", "1.00"])
    for workers in start:
        total, begin = middle(whole[workers]), middle(start[workers])
        net[workers] = Seconds(total.wall - begin.wall, total.cpu - begin.cpu)
        row = [f"seg-prep, workers: {workers}", f"{begin.wall:.1f} s ({begin.wall / total.wall:.0%})"]
        row += [f"{count / net[workers].wall:.1f}", f"{count / total.wall:.1f}"]
        rows.append([*row, f"{base.wall / net[workers].wall:.2f}", f"{base.cpu / net[workers].cpu:.2f}"])
    header = [
        "what",
        "start-up",
        "samples/s less start-up",
        "samples/s in all",
        "rate / bare loop",
        "CPU time: bare / this",
    ]
    print(markdown(header, rows), end="\n\n")
    in_all = middle(whole[1]).wall / middle(whole[2]).wall
    print(f"two workers against one: {net[1].wall / net[2].wall:.2f}x less start-up, {in_all:.2f}x in all")
    for name, times in {"bare": loop, "one": whole[1], "two": whole[2]}.items():
        print(f"  {name}: " + ", ".join(f"{t.wall:.1f} s ({t.cpu:.1f} s of CPU)" for t in times))
    if net[1].wall < base.wall or max(t.wall for t in loop) > 1.2 * min(t.wall for t in loop):
        print("the machine was busy: the rounds differ, or one worker beat the bare loop; trust the CPU column only")


def main() -> None:
    """Prepare a source and compare, or (--bare, used by itself) run the bare loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", nargs=2, metavar=("DATASET", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(*bare(arguments.bare[0], Path(arguments.bare[1])))
        return
    data = real_root()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if data is not None:
            count = linked_camvid(data, root, arguments.repeat)
            compare("camvid", root, count, arguments.rounds)
        else:
            count = 100 * arguments.repeat
            scenes = [sys.executable, "-m", "prep.scenes", str(root), "--train", str(count), "--val", "1", "--quiet"]
            subprocess.run(scenes, check=True)
            compare("demo", root, count, arguments.rounds)


if __name__ == "__main__":
    main()
