"""Shards of segmentation data: the format, the soft label, random access, and batches in any order; without torch.

    >>> import shards
    >>> ds = shards.open("data/camvid", split="train", scale="1/2")      # or "https://...", "s3://...": by a cache here
    >>> sample = ds[0]                                                   # or ds["key"]
    >>> for batch in shards.Loader(ds, batch=16, seed=0).epoch(0): ...   # lists of samples, decoded ahead in threads
    >>> soft = shards.soften(hard, scale="1/4", filter="box")

``seg-shards --help`` looks into shard sets from the command line, checks them, and makes sets of others (shards.sets).
"""

from __future__ import annotations

from shards.cache import CacheSettings
from shards.classes import IGNORE, ClassTable
from shards.dataset import Sample, ShardDataset
from shards.dataset import open_split as open
from shards.errors import FormatError, LayoutError, SampleError, SegshardsError, SettingsError, UserError
from shards.loader import Loader
from shards.manifest import Manifest, load_manifest
from shards.order import epoch_order
from shards.resize import resize_image, resize_image_to
from shards.scale import Scale
from shards.soften import resize_pair, soften, soften_to
from shards.softlabel import SoftLabel

__version__ = "0.1.0"
__all__ = [
    "IGNORE",
    "CacheSettings",
    "ClassTable",
    "FormatError",
    "LayoutError",
    "Loader",
    "Manifest",
    "Sample",
    "SampleError",
    "Scale",
    "SegshardsError",
    "SettingsError",
    "ShardDataset",
    "SoftLabel",
    "UserError",
    "epoch_order",
    "load_manifest",
    "open",
    "resize_image",
    "resize_image_to",
    "resize_pair",
    "soften",
    "soften_to",
]
