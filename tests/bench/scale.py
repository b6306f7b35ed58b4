"""Many small images through `seg-prep imagenet21k`: rate, memory, resumption, and what 14 million would take.

    python -m tests.bench.scale [--samples 1000 10000 100000 1000000] [--form folders|tars] [--resume 100000]
                                [--workers 2] [--dir DIR]

Every build runs as a command of its own. Its processes are looked at twenty times a second: peak resident memory of the
parent and of the largest worker, and the CPU time of the parent, which writes alone and so bounds the rate however many
workers there are. `--resume N` kills a build of N images by SIGKILL halfway, runs it again and compares all published
bytes with those of an uninterrupted build. Files are made under --dir, or in a temporary folder, and removed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from prep.datasets import load_reader
from shards.codec import ImageFormat, encode_image
from tests.bench.timing import markdown
from tests.real import real_root

MILLION = 1_000_000
FALL11_IMAGES, FALL11_BYTES = 14_197_122, 1.31e12  # image-net.org, and the size of fall11_whole.tar
IMAGES_A_WNID = 650
TICK = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass
class Run:
    """What one command took: seconds, peak memory in MB, CPU seconds of the parent and of all workers."""

    code: int = -1
    seconds: float = 0.0
    parent_mb: float = 0.0
    worker_mb: float = 0.0
    parent_cpu: float = 0.0
    worker_cpu: float = 0.0


def pictures(count: int) -> list[tuple[bytes, bytes]]:
    """Small JPEGs, split after their first marker so that a comment between the halves makes each file its own."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        data = encode_image(cv2.resize(small, (32, 32), interpolation=cv2.INTER_CUBIC), ImageFormat("jpeg", 75))
        found.append((data[:2], data[2:]))
    return found


def files(samples: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(wnid, [(name, bytes)]) of so many different images, spread over as many wnids as ImageNet would."""
    wnids = [wnid for wnid in load_reader("imagenet21k").classes.wnids if wnid]
    used = min(len(wnids), max(20, samples // IMAGES_A_WNID))
    halves = pictures(500)
    for number, wnid in enumerate(wnids[:used]):
        folder = []
        for n in range(samples * number // used, samples * (number + 1) // used):
            start, rest = halves[n % len(halves)]
            folder.append((f"{wnid}_{n}.JPEG", start + b"\xff\xfe\0\x0a%08d" % n + rest))
        yield wnid, folder


def make(root: Path, samples: int, form: str) -> None:
    """ROOT/<wnid>/*.JPEG or ROOT/<wnid>.tar."""
    root.mkdir(parents=True)
    for wnid, folder in files(samples):
        if form == "folders":
            (root / wnid).mkdir()
            for name, data in folder:
                (root / wnid / name).write_bytes(data)
            continue
        with tarfile.open(root / f"{wnid}.tar", "w:", format=tarfile.GNU_FORMAT) as tar:
            for name, data in folder:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def command(root: Path, out: Path, workers: int, *options: str) -> list[str]:
    """`seg-prep imagenet21k`."""
    start = [sys.executable, "-c", "from prep.cli import main; main()", "imagenet21k", "--root", str(root)]
    return [*start, "--out", str(out), "--workers", str(workers), "--quiet", *options]


def run(words: list[str], kill_at: int | None = None, out: Path | None = None) -> Run:
    """Run a command and watch it; with `kill_at`, SIGKILL it once its shards in `out` have so many bytes."""
    found, begin = Run(), time.perf_counter()
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        look(process.pid, found)
        if kill_at is not None and out is not None and size(out / ".build") > kill_at:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    found.code, found.seconds = process.returncode, time.perf_counter() - begin
    return found


def look(pid: int, found: Run) -> None:
    """Take in what the system says of a process and of its children now."""
    try:
        found.parent_mb = max(found.parent_mb, peak_mb(pid))
        found.parent_cpu = cpu(pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found.worker_mb = max([found.worker_mb, *(peak_mb(int(child)) for child in children)])
        found.worker_cpu = max(found.worker_cpu, sum(cpu(int(child)) for child in children))
    except (OSError, IndexError, ValueError):
        return  # a process has just ended


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def digests(out: Path) -> dict[str, str]:
    """sha256 of every published file but stats.json, which holds times."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != "stats.json":
            with open(path, "rb") as file:
                found[path.relative_to(out).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def measure(folder: Path, samples: int, form: str, workers: int) -> list[object]:
    """One build of so many images, as a row of the table."""
    root, out = folder / "in", folder / "out"
    make(root, samples, form)
    listing = run([*command(root, out, workers), "--dry-run"])
    found = run(command(root, out, workers))
    if found.code:
        raise SystemExit(f"seg-prep ended with {found.code} on {samples} images")
    row = [
        f"{samples:,}",
        f"{found.seconds:.1f}",
        f"{samples / found.seconds:,.0f}",
        f"{samples / listing.seconds:,.0f}",
    ]
    row += [f"{found.parent_mb:.0f}", f"{found.worker_mb:.0f}"]
    row += [f"{value / samples * 1e6:.0f}" for value in (found.parent_cpu, found.worker_cpu)]
    shutil.rmtree(out)
    shutil.rmtree(root)
    return list(row)


def check_resume(folder: Path, samples: int, form: str, workers: int) -> str:
    """Kill a build halfway and go on; what was seen, as a line."""
    root, whole, out = folder / "in", folder / "whole", folder / "out"
    make(root, samples, form)
    first = run(command(root, whole, workers))
    written = sum(path.stat().st_size for path in whole.rglob("*.tar"))
    killed = run(command(root, out, workers), kill_at=written // 2, out=out)
    rest = run(command(root, out, workers))
    same = digests(whole) == digests(out)
    shutil.rmtree(folder)
    if killed.code != -signal.SIGKILL or rest.code or not same:
        raise SystemExit(f"resume failed: killed {killed.code}, went on {rest.code}, bytes equal: {same}")
    return (
        f"{samples:,} images, killed after {killed.seconds:.1f} s, went on for {rest.seconds:.1f} s (without a break "
        f"{first.seconds:.1f} s): all published bytes equal"
    )


def real_images(root: Path, copies: int) -> tuple[int, float] | None:
    """Links to the full-size real samples, each under some names: (images, mean bytes); None where there are none."""
    data = real_root()
    if data is None or not (data / "imagenet/sample").is_dir():
        return None
    found = sorted((data / "imagenet/sample").glob("*/*.JPEG"))
    for path in found:
        (root / path.parent.name).mkdir(parents=True)
        for n in range(copies):
            (root / path.parent.name / f"{path.stem}_{n}.JPEG").symlink_to(path)
    return copies * len(found), sum(path.stat().st_size for path in found) / len(found)


def estimate(folder: Path, workers: int) -> str:
    """What 14 million real images would take on this machine, from some thousands of them, as lines."""
    images = real_images(folder / "in", 400)
    if images is None:
        return "no real samples at hand (SEGSHARDS_DATA): no estimate"
    count, mean = images
    start = run([*command(folder / "in", folder / "out", workers), "--dry-run", "--limit", "1"])
    found = run(command(folder / "in", folder / "out", workers))
    share = FALL11_BYTES / FALL11_IMAGES / mean  # decoding, hashing and writing go with bytes
    seconds = {
        f"as measured, {workers} workers": found.seconds - start.seconds,
        "the parent's CPU time": found.parent_cpu - start.parent_cpu,
        f"the workers' CPU time over {workers}": found.worker_cpu / workers,
        "reading and writing at 200 MB/s": 2 * mean * count / 200e6,
    }
    lines = [
        f"  {what}: {each / count * 1e3:.2f} ms an image, {each / count * share * FALL11_IMAGES / 3600:.1f} h"
        for what, each in seconds.items()
    ]
    head = (
        f"{count:,} real images of {mean / 1e3:.0f} kB; {FALL11_IMAGES:,} of {mean * share / 1e3:.0f} kB would take, "
        "by each of these alone:"
    )
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="*", default=[1000, 10_000, 100_000, MILLION])
    parser.add_argument("--form", choices=("folders", "tars"), default="tars")
    parser.add_argument("--resume", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        for samples in options.samples:
            row = measure(Path(name), samples, options.form, options.workers)
            rows.append(row)
            print(" | ".join(map(str, row)), flush=True)
        header = [
            "images",
            "s",
            "images/s",
            "listed/s",
            "parent MB",
            "worker MB",
            "parent µs/image",
            "workers µs/image",
        ]
        print(markdown(header, rows))
        if options.resume:
            print(check_resume(Path(name) / "resume", options.resume, options.form, options.workers))
        print(estimate(Path(name) / "real", options.workers))


if __name__ == "__main__":
    main()
