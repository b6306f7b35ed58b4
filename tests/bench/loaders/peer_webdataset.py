"""webdataset: our tar shards as they are, in WebLoader workers.

documented: `.shuffle(n).decode("rgb8").to_tuple(...)` and `.batched(n)` in WebLoader with batch_size=None, as in its
README (https://github.com/webdataset/webdataset#a-webdataset-pipeline-for-training) and its decoding page
(https://webdataset.github.io/webdataset/decoding/), where handle_extension gives one member its own decoder; here the
label, decoded to one channel by the library's own handler instead of to three.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import webdataset as wds
from webdataset.autodecode import ImageHandler

from tests.bench.loaders.members import tars
from tests.bench.loaders.work import Decode, Job, Pair, tensors

DISTRIBUTIONS = ("webdataset", "simplejpeg", "opencv-python-headless", "pillow")
BUFFER = 100  # samples, still encoded


def write(job: Job) -> None:
    """Nothing: it reads our shards."""


class Label:
    """A label of one channel, by webdataset's own image handler."""

    def __init__(self) -> None:
        self.handler = ImageHandler("l8", ["png"])

    def __call__(self, data: bytes) -> Any:
        return self.handler("png", data)


class Shared:
    """The decoder that all rivals share, on a sample's tuple."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def __call__(self, pair: Pair) -> Pair:
        return self.decode(*pair)


def dataset(job: Job) -> Any:
    """The pipeline of a worker."""
    urls = tars(job.shards)
    pipeline = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False, seed=1).shuffle(BUFFER)
    if job.mode == "documented":
        decoded = pipeline.decode(wds.handle_extension("seg.png", Label()), "rgb8")
        return decoded.to_tuple("jpg;png", "seg.png").batched(job.batch)
    pairs = pipeline.to_tuple("jpg;png", "seg.png").map(Shared(Decode(job.mode, job.classes)))
    return pairs.batched(job.batch, collation_fn=tensors)


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch; torch makes tensors of arrays on the way."""
    warnings.filterwarnings("ignore")
    yield from wds.WebLoader(dataset(job), batch_size=None, num_workers=job.count)
