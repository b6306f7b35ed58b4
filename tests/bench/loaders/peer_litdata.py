"""LitData: chunks written by `optimize`, StreamingDataset in StreamingDataLoader's workers.

documented: an image column is written as ld.Image(bytes=...) and comes back decoded as a uint8 tensor [3, H, W]
(https://github.com/Lightning-AI/litdata#readme); the label is decoded by torchvision, as LitData itself does it, to one
channel instead of three.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata as ld
import torch
from torchvision.io import ImageReadMode, decode_png

from tests.bench.loaders.members import encoded, tars
from tests.bench.loaders.work import Decode, Job, Pair, tensors

DISTRIBUTIONS = ("litdata", "torchvision", "simplejpeg", "opencv-python-headless", "pillow")


def documented(pair: tuple[bytes, bytes]) -> dict[str, Any]:
    """A sample with LitData's own image type."""
    return {"image": ld.Image(bytes=pair[0]), "label": pair[1]}


def plain(pair: tuple[bytes, bytes]) -> dict[str, Any]:
    """A sample as bytes."""
    return {"image": pair[0], "label": pair[1]}


def write(job: Job) -> None:
    """Chunks of as many samples as our shards hold, once for each kind of column."""
    pairs = [(image, label) for _, image, label in encoded(job.shards)]
    size = -(-len(pairs) // len(tars(job.shards)))
    for make in (documented, plain):
        folder = str(Path(job.data) / make.__name__)
        ld.optimize(make, inputs=pairs, output_dir=folder, chunk_size=size, num_workers=1, verbose=False)


class Documented(ld.StreamingDataset):  # type: ignore[misc]  # untyped base
    """Images decoded by LitData, labels by the library it uses."""

    def __getitem__(self, at: Any) -> Pair:
        found = super().__getitem__(at)
        label = torch.frombuffer(bytearray(found["label"]), dtype=torch.uint8)
        return found["image"], decode_png(label, ImageReadMode.GRAY)[0]


class Plain(ld.StreamingDataset):  # type: ignore[misc]  # untyped base
    """Pairs by the shared decoder."""

    decode: Decode

    def __getitem__(self, at: Any) -> Pair:
        found = super().__getitem__(at)
        return self.decode(found["image"], found["label"])


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch."""
    if job.mode == "documented":
        data = Documented(str(Path(job.data) / "documented"), shuffle=True, drop_last=False)
        yield from ld.StreamingDataLoader(data, batch_size=job.batch, num_workers=job.count)
        return
    data = Plain(str(Path(job.data) / "plain"), shuffle=True, drop_last=False)
    data.decode = Decode(job.mode, job.classes)
    yield from ld.StreamingDataLoader(data, batch_size=job.batch, num_workers=job.count, collate_fn=tensors)
