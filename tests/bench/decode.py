"""Decoders member by member: the slow ones (Pillow, zipfile, whole-array NumPy) against ours, on one thread and on two.

    python -m tests.bench.decode [--size 1024x2048] [--rounds 15]

The sample is a procedural street. Old and new take turns; medians over the rounds are printed, of CPU time where one
thread runs, which waiting for a core does not lengthen, and of wall time for the scaling: two threads that decode the
same member against one that does, 2.0 where nothing holds the other up. Scaling is only worth reading on an idle
machine with two cores; the last table bounds from a single thread how long each decoder holds the GIL. Between them:
what `import shards` takes, and a first sample in a fresh process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import simplejpeg

import shards
from prep.datasets import load_reader
from shards import kernels, kernels_cells, kernels_png, kernels_soft
from shards.codec import (
    ImageFormat,
    decode_hard,
    decode_image,
    decode_instances,
    decode_meta,
    decode_soft,
    encode_hard,
    encode_image,
    encode_instances,
    encode_meta,
    encode_soft,
    inflate,
)
from tests.bench.timing import alternate, markdown
from tests.shards import pillow_oracle, soft_oracle
from tests.train.batch_oracle import slow_targets
from train import batch_kernels
from train.batch import planar, targets_of

Job = Callable[[], object]
Case = tuple[str, Job, Job]  # what, the old way, the new way
FIRST = """
import time; a = time.perf_counter(); c = time.process_time()
import shards
b = time.perf_counter(); d = time.process_time()
shards.open({path!r}, split="train", scale={scale!r})[0]
print(b - a, d - c, time.perf_counter() - b, time.process_time() - d)
"""


def scene(folder: Path, size: str) -> tuple[np.ndarray, np.ndarray, int]:
    """A street: image uint8 [H, W, 3], hard label uint16 [H, W], number of classes."""
    command = [
        sys.executable,
        "-m",
        "prep.scenes",
        str(folder),
        "--train",
        "1",
        "--val",
        "1",
        "--size",
        size,
        "--quiet",
    ]
    subprocess.run(command, check=True)
    reader = load_reader("demo")
    sample = next(iter(reader.samples(folder, "train")))
    assert sample.label is not None
    image = decode_image(sample.image.read_bytes())
    return image, reader.decode_label(sample.label.read_bytes(), "bench"), len(reader.classes)


def old_hard(data: bytes, classes: int) -> np.ndarray:
    """A hard label through Pillow, checked and widened in whole-array passes."""
    stored = pillow_oracle.grey(data)
    hard = stored.astype(np.uint16)
    if classes <= 255:
        hard[hard == 255] = shards.IGNORE
    assert int(np.where(hard == shards.IGNORE, 0, hard).max(initial=0)) < classes
    return hard


def old_meta(data: bytes) -> object:
    """Metadata by the standard library."""
    import json

    return json.loads(data)


def image_cases(image: np.ndarray, scale: str) -> list[Case]:
    """The image of one scale as JPEG and as PNG."""
    cases: list[Case] = []
    for name, form in (("JPEG q95", ImageFormat("jpeg", 95)), ("PNG", ImageFormat("png"))):
        data = encode_image(image, form)
        np.testing.assert_array_equal(decode_image(data), pillow_oracle.picture(data))
        what = f"image {scale}, {name}, {len(data) / 1000:.0f} kB"
        cases.append((what, lambda d=data: pillow_oracle.picture(d), lambda d=data: decode_image(d)))
    return cases


def full_cases(hard: np.ndarray, classes: int) -> list[Case]:
    """What is stored at scale 1 beside the image."""
    small, large = encode_hard(hard, classes), encode_hard(hard, 300)
    instances = encode_instances((hard * 7).astype(np.uint16))
    meta = encode_meta({"key": "a/b_000", "split": "train", "source": "x.png", "size": [*hard.shape], "weak": [1, 2]})
    return [
        ("hard label, 8 bits", lambda: old_hard(small, classes), lambda: decode_hard(small, classes)),
        ("hard label, 16 bits", lambda: old_hard(large, 300), lambda: decode_hard(large, 300)),
        ("instances", lambda: pillow_oracle.grey(instances).astype(np.uint16), lambda: decode_instances(instances)),
        ("metadata", lambda: old_meta(meta), lambda: decode_meta(meta)),
    ]


def soft_cases(soft: shards.SoftLabel, image: np.ndarray, scale: str) -> list[Case]:
    """A stored soft label, and its way into a batch."""
    data = encode_soft(soft)
    assert decode_soft(data) == soft_oracle.decode_soft(data) == soft
    targets = targets_of(soft)
    ids, weights = (
        np.empty((targets.planes, *soft.shape), np.int32),
        np.empty((targets.planes, *soft.shape), np.float32),
    )

    def old_batch() -> None:
        made = slow_targets(soft, "mask", 8)
        ids[:], weights[:] = 0, 0
        known = made.base != shards.IGNORE
        np.copyto(ids[0], made.base, where=known)
        weights[0] = known
        for plane in range(made.planes):
            ids.reshape(len(ids), -1)[plane, made.cells] = made.ids[plane]
            weights.reshape(len(ids), -1)[plane, made.cells] = made.weights[plane]

    return [
        (f"soft label {scale}", lambda: soft_oracle.decode_soft(data), lambda: decode_soft(data)),
        (f"soft label {scale} -> planes", old_batch, lambda: targets_of(soft).fill(ids, weights)),
        (
            f"image {scale} -> flipped planes",
            lambda: np.ascontiguousarray(np.ascontiguousarray(image[:, ::-1]).transpose(2, 0, 1)),
            lambda: planar(np.asarray(cv2.flip(image, 1), np.uint8)),
        ),
    ]


def scaling(job: Job, seconds: float) -> float:
    """Rate of two threads over that of one, each doing the job a few times."""
    times = max(2, int(0.05 / max(seconds, 1e-6)))

    def loop() -> None:
        for _ in range(times):
            job()

    def crew(count: int) -> None:
        threads = [threading.Thread(target=loop) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    took = alternate({"one": lambda: crew(1), "two": lambda: crew(2)}, 7)
    return 2 * took["one"] / took["two"]


def several(job: Job, least: float = 0.005) -> tuple[Job, int]:
    """The job so many times that a turn is no shorter than ``least`` seconds, and how many."""
    job()
    begin = time.process_time()
    job()
    times = max(1, round(least / max(time.process_time() - begin, 1e-6)))

    def turn() -> None:
        for _ in range(times):
            job()

    return turn, times


class Released:
    """Counts the seconds in calls that let go of the GIL: kernels, inflate, checksums, libjpeg-turbo."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for module in (kernels, kernels_png, kernels_soft, kernels_cells, batch_kernels):
            for name, value in vars(module).items():
                if hasattr(value, "py_func") and not name.startswith("_"):  # private ones are called by kernels
                    setattr(module, name, self.counted(value))
        fast = inflate._zlib
        inflate._zlib = SimpleNamespace(
            error=fast.error, crc32=self.counted(fast.crc32), decompressobj=lambda wrapping: self.stream(fast, wrapping)
        )
        simplejpeg.decode_jpeg = self.counted(simplejpeg.decode_jpeg)

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its seconds added up."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed

    def stream(self, fast: Any, wrapping: int) -> Any:
        """A zlib stream whose seconds are counted."""
        real = fast.decompressobj(wrapping)

        class Stream:
            decompress = staticmethod(self.counted(real.decompress))
            unused_data = property(lambda _: real.unused_data)
            eof = property(lambda _: real.eof)

        return Stream()

    def held(self, job: Job) -> float:
        """Milliseconds of the job outside those calls: it holds the GIL for so long at most."""
        job()
        outside = []
        for _ in range(30):
            self.seconds, begin = 0.0, time.perf_counter()
            job()
            outside.append(time.perf_counter() - begin - self.seconds)
        return statistics.quantiles(outside, n=4)[0] * 1e3  # the lower quartile: others may have had the core


def compare(cases: list[Case], rounds: int) -> None:
    """Print the table."""
    rows = []
    for what, old, new in cases:
        turns = {"old": several(old), "new": several(new)}
        took = alternate({name: turn for name, (turn, _) in turns.items()}, rounds, time.process_time)
        took = {name: seconds / turns[name][1] for name, seconds in took.items()}
        ratio = took["old"] / took["new"]
        milliseconds = [f"{took[name] * 1e3:.3f}" for name in ("old", "new")]
        scales = [f"{scaling(job, took[name]):.2f}" for name, job in (("old", old), ("new", new))]
        rows.append([what, *milliseconds, f"{ratio:.1f}", *scales])
    header = ["what", "old, ms", "new, ms", "old / new", "old: 2 threads / 1", "new: 2 threads / 1"]
    print(markdown(header, rows), end="\n\n")


def first_sample(folder: Path, size: str, rounds: int) -> None:
    """Print what a fresh process takes for the import, and then for its first sample."""
    raw, out = folder / "raw-first", folder / "shards"
    scene(raw, size)
    command = [sys.executable, "-c", "from prep.cli import main; main()", "demo", "--root", str(raw), "--out", str(out)]
    subprocess.run([*command, "--scales", "1,1/4", "--quiet"], check=True)
    for scale in ("1", "1/4"):
        code, runs = FIRST.format(path=str(out), scale=scale), []
        for _ in range(rounds + 1):
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            runs.append([float(word) for word in done.stdout.split()])
        wall, cpu, next_wall, next_cpu = map(statistics.median, zip(*runs[1:], strict=True))
        print(
            f"scale {scale}: import shards {wall:.2f} s ({cpu:.2f} s of CPU), "
            f"open and first sample {next_wall:.2f} s ({next_cpu:.2f} s of CPU)"
        )


def main() -> None:
    """Make a sample and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x2048")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        image, hard, classes = scene(Path(folder) / "raw", arguments.size)
        print(f"{arguments.size}, {classes} classes; load before: {os.getloadavg()[0]:.1f}")
        cases = [*image_cases(image, "1"), *full_cases(hard, classes)]
        for scale in ("1/2", "1/4"):
            small, soft = shards.resize_pair(image, hard, scale, "box")
            cases += [*image_cases(small, scale), *soft_cases(soft, small, scale)]
        compare(cases, arguments.rounds)
        first_sample(Path(folder), arguments.size, 5)
        released = Released()
        rows = [[what, f"{released.held(new):.3f}"] for what, _, new in cases if "flipped" not in what]
        print("", markdown(["what", "new: GIL held at most, ms"], rows), sep="\n")


if __name__ == "__main__":
    main()
