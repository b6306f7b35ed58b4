"""Grain: ArrayRecord files, MapDataset read by its threads, or by its worker processes.

documented: MapDataset.source(ArrayRecordDataSource(...)).shuffle().map(...).batch()
(https://google-grain.readthedocs.io/en/latest/tutorials/data_sources/arrayrecord_data_source_tutorial.html), made an
iterator with ReadOptions for threads or with mp_prefetch for processes
(https://google-grain.readthedocs.io/en/latest/tutorials/dataset_basic_tutorial.html). Grain has no image decoder: its
pages decode in the user's own map, here with Pillow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
from array_record.python.array_record_module import ArrayRecordWriter

from tests.bench.loaders.members import encoded, tars
from tests.bench.loaders.work import Decode, Job, Pair, stack

DISTRIBUTIONS = ("grain", "array-record", "simplejpeg", "opencv-python-headless", "pillow")
SIZE = struct.Struct("<I")  # of the image, which comes before the label


def write(job: Job) -> None:
    """As many files as we have shards; a record is a sample, in a group of its own as the tutorial has it."""
    pairs = [(image, label) for _, image, label in encoded(job.shards)]
    size = -(-len(pairs) // len(tars(job.shards)))
    Path(job.data).mkdir(parents=True)
    for number, first in enumerate(range(0, len(pairs), size)):
        writer = ArrayRecordWriter(str(Path(job.data) / f"{number:05d}.array_record"), "group_size:1,uncompressed")
        for image, label in pairs[first : first + size]:
            writer.write(SIZE.pack(len(image)) + image + label)
        writer.close()


class Parse(grain.transforms.Map):  # type: ignore[misc]  # untyped base
    """A record, decoded."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def map(self, record: bytes) -> Pair:
        (size,) = SIZE.unpack_from(record)
        return self.decode(record[SIZE.size : SIZE.size + size], record[SIZE.size + size :])


def batches(job: Job) -> Iterator[Pair]:
    """Stacked batches of an epoch."""
    source = grain.sources.ArrayRecordDataSource(sorted(str(path) for path in Path(job.data).iterdir()))
    decode = Decode("pil" if job.mode == "documented" else job.mode, job.classes)
    data: Any = grain.MapDataset.source(source).shuffle(seed=1).map(Parse(decode))
    threads = job.count if job.kind == "threads" else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * job.batch)
    items = data.to_iter_dataset(options).batch(job.batch, batch_fn=stack)
    if job.kind == "workers":
        items = items.mp_prefetch(grain.MultiprocessingOptions(num_workers=job.count))
    yield from items
