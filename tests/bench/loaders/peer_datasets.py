"""Hugging Face datasets: Arrow files on disk, memory-mapped, in torch DataLoader's workers.

documented: image columns with `with_format("torch")` in a DataLoader with workers, uint8 tensors [3, H, W]
(https://huggingface.co/docs/datasets/use_with_pytorch); Image features decode with Pillow
(https://huggingface.co/docs/datasets/image_load). Other modes: Image(decode=False) and set_transform, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
from torch.utils.data import DataLoader

from tests.bench.loaders.members import encoded, tars
from tests.bench.loaders.work import Decode, Job, Pair, tensors

DISTRIBUTIONS = ("datasets", "pyarrow", "simplejpeg", "opencv-python-headless", "pillow")


def write(job: Job) -> None:
    """Arrow files, as many as we have shards."""
    rows = [
        {"image": {"bytes": image, "path": None}, "label": {"bytes": label, "path": None}}
        for _, image, label in encoded(job.shards)
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(job.data, num_shards=len(tars(job.shards)))


class Shared:
    """The decoder that all rivals share, on a batch of rows."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images, labels = ([cell["bytes"] for cell in rows[name]] for name in ("image", "label"))
        return {"pair": [self.decode(*pair) for pair in zip(images, labels, strict=True)]}


def stacked(rows: list[dict[str, Any]]) -> Pair:
    """A batch of the shared decoder's pairs."""
    return tensors([row["pair"] for row in rows])


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch."""
    data = datasets.load_from_disk(job.data)
    settings: dict[str, Any] = {"batch_size": job.batch, "shuffle": True, "num_workers": job.count}
    if job.mode == "documented":
        for batch in DataLoader(data.with_format("torch"), **settings):
            label = batch["label"]
            yield batch["image"], label[:, 0] if label.ndim == 4 else label
        return
    for name in ("image", "label"):
        data = data.cast_column(name, datasets.Image(decode=False))
    data.set_transform(Shared(Decode(job.mode, job.classes)))
    yield from DataLoader(data, **settings, collate_fn=stacked)
