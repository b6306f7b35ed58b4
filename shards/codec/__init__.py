"""Bytes <-> arrays: one codec a file. Every decoder checks names, types and sizes before it allocates anything.

image   jpg, png, webp    uint8 [H, W, 3]
hard    seg.png           uint16 [H, W], void 65535
soft    soft.npz          SoftLabel
meta    json              dict
"""

from __future__ import annotations

from shards.codec.hard import decode_hard, decode_instances, encode_hard, encode_instances
from shards.codec.image import ImageFacts, ImageFormat, decode_image, encode_image, image_facts, image_suffix
from shards.codec.meta import decode_meta, encode_meta
from shards.codec.soft import decode_soft, encode_soft

__all__ = [
    "ImageFacts",
    "ImageFormat",
    "decode_hard",
    "decode_image",
    "decode_instances",
    "decode_meta",
    "decode_soft",
    "encode_hard",
    "encode_image",
    "encode_instances",
    "encode_meta",
    "encode_soft",
    "image_facts",
    "image_suffix",
]
