"""SPDL: our tar shards through spdl.pipeline in threads, laid out as its example of a WebDataset-like pipeline.

documented: https://facebookresearch.github.io/spdl/latest/generated/webdataset_pipeline.html (tar files read whole and
walked by spdl.io.iter_tarfile, samples grouped, decoded concurrently, aggregated), decoding by spdl.io.load_image
(https://facebookresearch.github.io/spdl/latest/io/basic.html), to RGB, and to grey for the label.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import spdl.io
from spdl.pipeline import PipelineBuilder

from tests.bench.loaders.members import IMAGES, tars
from tests.bench.loaders.work import Decode, Job, Pair, stack

DISTRIBUTIONS = ("spdl", "spdl-io", "simplejpeg", "opencv-python-headless", "pillow")
BUFFER = 100  # samples, still encoded
RGB = spdl.io.get_video_filter_desc(pix_fmt="rgb24")
GREY = spdl.io.get_video_filter_desc(pix_fmt="gray")


def write(job: Job) -> None:
    """Nothing: it reads our shards."""


def samples(paths: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """(image, label) of tar files, grouped by key, shuffled in a buffer."""
    buffer: list[tuple[bytes, bytes]] = []
    order = random.Random(1)
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        image = b""
        for name, content in spdl.io.iter_tarfile(data):
            suffix = name.partition(".")[2]
            if suffix in IMAGES:
                image = bytes(content)
            elif suffix == "seg.png":
                buffer.append((image, bytes(content)))
                if len(buffer) > BUFFER:
                    yield buffer.pop(order.randrange(len(buffer)))
    order.shuffle(buffer)
    yield from buffer


def documented(sample: tuple[bytes, bytes]) -> Pair:
    """Decoded by SPDL (FFmpeg)."""
    image, label = (spdl.io.load_image(data, filter_desc=desc) for data, desc in zip(sample, (RGB, GREY), strict=True))
    return spdl.io.to_numpy(image), spdl.io.to_numpy(label).squeeze()


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch."""
    paths = tars(job.shards)
    random.Random(1).shuffle(paths)
    decode: Any = documented
    if job.mode != "documented":
        shared = Decode(job.mode, job.classes)
        decode = lambda sample: shared(*sample)  # noqa: E731
    pipeline = (
        PipelineBuilder()
        .add_source(samples(paths))
        .pipe(decode, concurrency=job.count)
        .aggregate(job.batch)
        .pipe(stack)
        .add_sink(3)
        .build(num_threads=job.count + 1)
    )
    with pipeline.auto_stop():
        yield from pipeline
