"""Softening against one-hot planes resized by torch: time, scratch memory, and the time a label PNG takes to decode.

    python -m tests.bench.soften [--rounds 7]

Prints, for labels of 1024 x 2048 pixels and 19 classes on one thread (a procedural street, and 300 wavy regions),
the median milliseconds of `shards.soften`, of one-hot + torch resize, and their ratio, for each filter and scale;
then the memory that `soften` needs beside its result; then 1/2 + 1/4 + 1/8 against decoding the label PNG.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import shards
from shards.codec import encode_hard
from tests.bench.maps import U16, regions, street
from tests.bench.timing import alternate, markdown

CLASSES, FACTORS, SIZE = 19, (2, 4, 8), (1024, 2048)


def naive(hard: U16, factor: int, how: str) -> torch.Tensor:
    """One-hot planes (void = the last) resized by torch, float32 [1, C + 1, h, w]."""
    ids = torch.from_numpy(np.where(hard == shards.IGNORE, CLASSES, hard).astype(np.int64))
    planes = F.one_hot(ids, CLASSES + 1).permute(2, 0, 1)[None].float()
    if how == "box":
        return F.avg_pool2d(planes, factor)
    size = (hard.shape[0] // factor, hard.shape[1] // factor)
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=how == "triangle")


def speed(name: str, hard: U16, rounds: int) -> list[list[str]]:
    """Rows of (map, filter, scale, soften, torch, ratio)."""
    rows = []
    for how in ("box", "bilinear", "triangle"):
        for factor in FACTORS:
            scale = f"1/{factor}"
            both = alternate(
                {"ours": partial(shards.soften, hard, scale, how), "torch": partial(naive, hard, factor, how)}, rounds
            )
            ours, theirs = both["ours"] * 1e3, both["torch"] * 1e3
            rows.append([name, how, scale, f"{ours:.2f} ms", f"{theirs:.0f} ms", f"{theirs / ours:.0f}x"])
    return rows


def against_png(name: str, hard: U16, rounds: int) -> str:
    """All three scales (box) against decoding the label PNG."""
    data = encode_hard(hard, CLASSES)
    times = alternate(
        {
            "soft": lambda: [shards.soften(hard, f"1/{factor}", "box") for factor in FACTORS],
            "png": lambda: np.asarray(Image.open(io.BytesIO(data))),
        },
        5 * rounds,
    )
    soft, png = times["soft"] * 1e3, times["png"] * 1e3
    return f"{name}: 1/2 + 1/4 + 1/8 take {soft:.1f} ms, decoding the label PNG {png:.1f} ms: {soft / png:.2f} of it"


def scratch(hard: U16, scale: str, how: str) -> float:
    """MB that NumPy held at the peak of one call beyond what the call returned."""
    shards.soften(hard, scale, how)
    tracemalloc.start()
    soft = shards.soften(hard, scale, how)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del soft
    return (peak - kept) / 1e6


RESIDENT = """
import sys, pathlib, numpy as np, shards
def mb(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6
def grows(call):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = mb("VmRSS:")
    kept = call()
    return mb("VmHWM:") - before
path, scale, how = sys.argv[1:]
hard = np.load(path)
shards.soften(hard[:64, :64].copy(), scale, how)  # compiled and loaded, and nothing large freed that could be reused
growth = grows(lambda: shards.soften(hard, scale, how))
known = grows(lambda: np.ones(64_000_000, np.uint8))
print(growth, known)
"""


def resident(hard: U16, scale: str, how: str) -> str:
    """Growth of a fresh process' resident memory at the peak of one call, its result included; Linux only.

    The same process then allocates 64 MB: where that does not show, the figure is worth nothing and is not given.
    """
    if not Path("/proc/self/clear_refs").exists():
        return "not measured"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hard.npy"
        np.save(path, hard)
        command = [sys.executable, "-c", RESIDENT, str(path), scale, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, known = (float(number) for number in done.stdout.split())
    return f"{growth:.1f} MB" if abs(known - 64) < 8 else "not measured"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    maps = {"street": street(0, SIZE), "regions": regions(0, CLASSES, SIZE, 300)}
    rows = [row for name, hard in maps.items() for row in speed(name, hard, rounds)]
    print(markdown(["label", "filter", "scale", "soften", "one-hot + torch", "ratio"], rows), end="\n\n")
    memory = [
        [name, how, f"1/{k}", f"{scratch(hard, f'1/{k}', how):.1f} MB", resident(hard, f"1/{k}", how)]
        for name, hard in maps.items()
        for how in ("box", "bilinear", "triangle")
        for k in FACTORS
    ]
    header = ["label", "filter", "scale", "scratch (peak less result)", "growth of the process, result included"]
    print(markdown(header, memory), end="\n\n")
    for name, hard in maps.items():
        print(against_png(name, hard, rounds))


if __name__ == "__main__":
    main()
