"""MosaicML Streaming: MDS shards, StreamingDataset in StreamingDataLoader's workers.

documented: an image column is a PIL image, `Image.open` of the stored bytes
(https://docs.mosaicml.com/projects/streaming/en/stable/preparing_datasets/dataset_format.html, encodings jpeg and png),
which the dataset class for ADE20K turns into arrays in __getitem__
(https://docs.mosaicml.com/projects/streaming/en/stable/_modules/streaming/vision/ade20k.html). Columns are stored with
encoding "bytes" here, so that the very same JPEG and PNG are in the shards (encoding png would write its own), and
opened by the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

try:  # Streaming imports torchvision and uses none of its operators, which load beside a torch of their registry alone
    import torchvision  # noqa: F401
except RuntimeError:
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from tests.bench.loaders.members import encoded, tars
from tests.bench.loaders.work import Decode, Job, Pair, tensors

DISTRIBUTIONS = ("mosaicml-streaming", "simplejpeg", "opencv-python-headless", "pillow")


def write(job: Job) -> None:
    """MDS shards of about the size of ours."""
    total = sum(len(image) + len(label) for _, image, label in encoded(job.shards))
    columns = {"image": "bytes", "label": "bytes"}
    with MDSWriter(out=job.data, columns=columns, size_limit=max(4096, total // len(tars(job.shards)))) as out:
        for _, image, label in encoded(job.shards):
            out.write({"image": image, "label": label})


class Pairs(StreamingDataset):  # type: ignore[misc]  # untyped base
    """Decoded pairs."""

    def __init__(self, decode: Decode, **settings: Any) -> None:
        super().__init__(**settings)
        self.decode = decode

    def __getitem__(self, at: int) -> Pair:
        found = super().__getitem__(at)
        return self.decode(found["image"], found["label"])


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch."""
    decode = Decode("pil" if job.mode == "documented" else job.mode, job.classes)
    data = Pairs(decode, local=job.data, shuffle=True, batch_size=job.batch)
    yield from StreamingDataLoader(data, batch_size=job.batch, num_workers=job.count, collate_fn=tensors)
