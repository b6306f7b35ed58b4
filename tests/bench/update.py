"""`seg-prep --update` against a build from scratch, after one sample of the source is changed, added or removed.

    python -m tests.bench.update [--repeat 2] [--rounds 3] [--shard-size 8]

The source is CamVid's train split where it is at hand (SEGSHARDS_DATA), each file linked --repeat times under new
names; else procedural streets. Each round builds the changed source from scratch and updates a copy of the set of the
unchanged one, in turns, each in a fresh process; medians are printed, start-up included, and so is a run of the command
that lists the source and finds nothing to do. The two results must be equal: their manifests' digests are compared.

Beside it: what the digests cost a build (CPU time of reading and encoding with and without them), and their bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from prep.build import source
from prep.build.encode import Job, encode_sample
from prep.datasets import load_reader
from shards import Scale, load_manifest
from shards.codec import ImageFormat
from tests.bench.pipeline import ENVIRONMENT, SCALES, linked_camvid
from tests.bench.timing import markdown
from tests.real import real_root

Lines = list[str]  # of train.txt


def _replace(root: Path, lines: Lines, at: int, other: int) -> Lines:
    """Sample `at` gets the image and label of another one."""
    for place, donor in zip(lines[at].split(), lines[other].split(), strict=True):
        data = (root / donor).read_bytes()
        (root / place).unlink()
        (root / place).write_bytes(data)
    return lines


def _add(root: Path, lines: Lines, at: int, other: int) -> Lines:
    """A sample with the image and label of another one, under a name of its own."""
    places = []
    for number, donor in enumerate(lines[other].split()):
        folder = ("train", "trainannot")[number]
        places.append(f"{folder}/added_{Path(donor).name}")
        shutil.copyfile(root / donor, root / places[-1])
    return [*lines[:at], " ".join(places), *lines[at:]]


def _remove(root: Path, lines: Lines, at: int) -> Lines:
    return [*lines[:at], *lines[at + 1 :]]


EDITS: dict[str, Callable[[Path, Lines], Lines]] = {
    "nothing": lambda root, lines: lines,
    "1 changed": lambda root, lines: _replace(root, lines, len(lines) // 3, 7),
    "1 added at the front": lambda root, lines: _add(root, lines, 0, 9),
    "1 removed": lambda root, lines: _remove(root, lines, len(lines) // 2),
    "1 in 100 changed": lambda root, lines: [_replace(root, lines, at, 5) for at in range(11, len(lines), 100)][-1],
}


def seg_prep(root: Path, out: Path, shard_size: float, *options: str) -> tuple[float, str]:
    """(seconds, what it printed) of one run of the command."""
    command = [sys.executable, "-c", "from prep.cli import main; main()", "camvid", "--root", str(root)]
    command += ["--out", str(out), "--scales", SCALES, "--shard-size", str(shard_size), *options]
    begin = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    return time.perf_counter() - begin, done.stdout


def row(edit: str, base: Path, before: Path, folder: Path, shard_size: float, rounds: int) -> list[str]:
    """One line of the table."""
    root = folder / "raw"
    shutil.copytree(base, root, symlinks=True)
    lines = EDITS[edit](root, (root / "train.txt").read_text().splitlines())
    (root / "train.txt").write_text("\n".join(lines) + "\n")
    scratch, updates, said = [], [], ""
    for number in range(rounds):
        fresh, updated = folder / f"scratch{number}", folder / f"updated{number}"
        scratch.append(seg_prep(root, fresh, shard_size)[0])
        shutil.copytree(before, updated, copy_function=os.link)  # an update writes into no file that is there
        seconds, said = seg_prep(root, updated, shard_size, "--update")
        updates.append(seconds)
        if load_manifest(fresh).digest != load_manifest(updated).digest:
            raise SystemExit(f"{edit}: the update differs from a build from scratch")
        shutil.rmtree(fresh)
        shutil.rmtree(updated)
    counts = re.search(r"(\d+) shards kept, (\d+) rewritten", said)
    kept, rewritten = counts.groups() if counts else ("all", "0")
    slow, quick = statistics.median(scratch), statistics.median(updates)
    return [edit, f"{slow:.1f} s", f"{quick:.1f} s", f"{slow / quick:.1f}x", kept, rewritten]


def digest_cost(root: Path) -> str:
    """CPU time of encoding 60 samples with digests and without, in turns; and the bytes of a line."""
    cv2.setNumThreads(1)
    reader = load_reader("camvid")
    samples = list(reader.samples(root, "train"))[:60]
    job = Job(reader, root, Scale.parse_many(SCALES), "box", ImageFormat.parse("keep"))
    honest, times = source._digest, dict[bool, list[float]]({True: [], False: []})
    for number in range(9):
        for hashed in times:
            source._digest = honest if hashed else (lambda *_: "x" * 22)
            begin = time.process_time()
            for sample in samples:
                encode_sample(job, "train", sample)
            if number:
                times[hashed].append(time.process_time() - begin)
    source._digest = honest
    with_them, without = (statistics.median(times[hashed]) / len(samples) * 1000 for hashed in (True, False))
    return f"{with_them:.2f} ms of CPU a sample with digests, {without:.2f} without: {with_them / without - 1:+.1%}"


def scenes(root: Path, count: int) -> None:
    """Procedural streets in CamVid's layout: ids 0..10 of the labels, as they come."""
    from tests.fakes import fake_camvid

    fake_camvid(root, {"train": count}, size=(360, 480))
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(text.replace("/SegNet/CamVid/", ""))


def main() -> None:
    """Prepare a source, build it, edit it in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-size", type=float, default=8)
    arguments = parser.parse_args()
    data = real_root()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, before = folder / "base", folder / "before"
        if data is not None:
            count = linked_camvid(data, base, arguments.repeat)
        else:
            scenes(base, count := 100 * arguments.repeat)
        seg_prep(base, before, arguments.shard_size)
        shards = sum(len(part.shards) for part in load_manifest(before).splits["train"].scales.values())
        print(f"{count} samples, scales {SCALES}, {shards} shards of at most {arguments.shard_size:g} MB, ", end="")
        print(f"{arguments.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        rows = []
        for number, edit in enumerate(EDITS):
            part = folder / str(number)
            rows.append(row(edit, base, before, part, arguments.shard_size, arguments.rounds))
            shutil.rmtree(part)
        header = ["source", "from scratch", "--update", "ratio", "shards kept", "rewritten"]
        print(markdown(header, rows), end="\n\n")
        print(digest_cost(base))
        lines = (before / "train" / "sources.jsonl").stat().st_size
        stored = json.loads((before / "stats.json").read_text())["splits"]["train"]["bytes"]
        print(f"sources.jsonl: {lines / count:.0f} bytes a sample, of {sum(stored.values()) / count:.0f} stored")


if __name__ == "__main__":
    main()
