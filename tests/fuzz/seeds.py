"""Honest inputs of the parsers: what fuzzing starts from."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from prep.build.source import DIGEST_TEXT
from prep.datasets import load_reader
from shards import ClassTable, soften
from shards.codec import encode_hard, encode_instances, encode_meta, encode_soft
from shards.codec.image import ImageFormat, encode_image
from shards.index import encode_index
from shards.tar import IndexEntry, sample_blocks
from tests.fakes_cocolvis import box, compressed
from tests.fakes_imagenet import tar_bytes
from tests.fakes_voc_ade_coco import sbd_mat, stuff10k_mat
from train.config import load_recipe


@cache
def label() -> np.ndarray:
    random = np.random.default_rng(1)
    coarse = random.integers(0, 5, (4, 5)).astype(np.uint16)
    label = np.repeat(np.repeat(coarse, 6, 0), 5, 1)
    label[3:6] = 65535
    return label


@cache
def members() -> dict[str, bytes]:
    hard = label()
    pixels = np.random.default_rng(2).integers(0, 255, (*hard.shape, 3)).astype(np.uint8)
    return {
        "jpg": encode_image(pixels, ImageFormat("jpeg", 80)),
        "png": encode_image(pixels, ImageFormat("png")),
        "webp": encode_image(pixels, ImageFormat("webp")),
        "seg.png": encode_hard(hard, 5),
        "inst.png": encode_instances((hard == 1).astype(np.uint16)),
        "soft.npz": encode_soft(soften(hard, "1/2", "box")),
        "json": encode_meta({"key": "a/b", "size": [24, 25], "split": "train", "scale": "1", "weak": [0, 1]}),
    }


def soft_seeds() -> list[bytes]:
    wide = label().astype(np.uint16)
    wide[wide == 3] = 900
    every = [soften(label, scale, filter) for label in (label(), wide) for scale, filter in WAYS]
    return [encode_soft(soft) for soft in every]


WAYS = (("1/2", "box"), ("1/3", "bilinear"), ("1/4", "triangle"))


@cache
def shard() -> tuple[bytes, IndexEntry]:
    parts = {name: members()[name] for name in ("jpg", "seg.png", "json")}
    entry = IndexEntry("a/b", 0, {name: len(data) for name, data in parts.items()})
    return sample_blocks("a/b", parts), entry


def index_seeds() -> list[bytes]:
    entry = shard()[1]
    entries = [IndexEntry(f"k{i}", i * entry.length, entry.sizes) for i in range(3)]
    return [encode_index(entries), encode_index([])]


def images() -> list[bytes]:
    return [members()[name] for name in ("jpg", "png", "webp", "seg.png", "inst.png")]


def palettes() -> list[bytes]:
    out = io.BytesIO()
    picture = Image.fromarray(label().astype(np.uint8) % 5).convert("P")
    picture.save(out, "PNG", bits=4)
    return [out.getvalue(), members()["seg.png"], members()["inst.png"]]


def text(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def manifest_seeds() -> list[bytes]:
    golden = Path(__file__).parents[1] / "golden"
    return [path.read_bytes() for path in sorted(golden.glob("v1-*/manifest.json"))[:2]]


def mat_seeds() -> list[bytes]:
    small = label()[:6, :7].clip(0, 20).astype(np.uint8)
    return [sbd_mat(small), stuff10k_mat(small, 3)]


def tar_seeds() -> list[bytes]:
    files = {"n01440764_1.JPEG": b"x" * 700, "deep/" * 30 + "n01440764_2.JPEG": b"y" * 20}
    return [tar_bytes(files, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)]


PACKED = compressed(box(3, 4, 9, 7, (24, 30)))["counts"]
ANNOTATION = (
    '{"id":1,"image_id":1,"category_id":2,"iscrowd":0,"segmentation":[[1,1,9.5,2,8,9]]}\n'
    '{"id":2,"image_id":1,"category_id":3,"segmentation":{"counts":[3,700,17],"size":[24,30]}}\n'
    '{"id":3,"image_id":1,"category_id":3,"segmentation":{"counts":"PACKED","size":[24,30]}}'
).replace("PACKED", json.dumps(PACKED)[1:-1])
COCO = (
    '{"info":{"a":"b"},"images":[{"id":1,"width":30,"height":24,"file_name":"a.jpg","coco_url":"x/y/a.jpg"}],'
    '"annotations":[{"id":1,"image_id":1,"category_id":2,"segmentation":[[1,1,9,2,8,9]]}],'
    '"categories":[{"id":2,"name":"cat","synset":"cat.n.01"}]}'
)
JOURNAL = (
    '{"version":1,"settings":{}}\n'
    '{"chunk":0,"split":"val","closed":[],"open":[],"counts":{"samples":1,"pixels":{"0":3},"images":{"0":1},'
    '"mixed":{"1/2":[1,2]}},"bad":[{"key":"a","split":"val","source":"b","reason":"c"}],"seconds":0.1}\n'
)
SOURCE_LINE = '["%s",1,{"0":3,"65535":2},{"1":1},[0,0,1,9],{"merged":2}]\n' % ("a" * DIGEST_TEXT)


def class_maps() -> list[bytes]:
    names = load_reader("camvid").classes.names
    return ["\n".join(["from\tto", *(f"{name}\tthing {i % 3}" for i, name in enumerate(names))]).encode()]


def run_files() -> list[bytes]:
    """A run.json as seg-train writes it."""
    classes = ClassTable.make(["a", "b"])
    values = {
        "format_version": 1,
        "recipe": load_recipe("demo").to_dict(),
        "sources": [{"path": "data/x", "dataset": "x", "digest": "d", "filter": "box"}],
        "classes": classes.to_dict(),
        "classes_digest": classes.digest,
        "seed": 0,
        "versions": {},
    }
    return [json.dumps(values).encode()]


PANOPTIC = (
    '{"images":[{"id":1,"file_name":"a.jpg","width":3,"height":2}],"annotations":[{"image_id":1,"file_name":"a.png",'
    '"segments_info":[{"id":7,"category_id":1,"iscrowd":0}]}],"categories":[{"id":1,"name":"person"}]}'
)
RECIPE = 'description = "x"\n[data]\nscales = ["1/2"]\n[loop]\nsteps = 3\n[optim]\nlr = 0.1\n'
