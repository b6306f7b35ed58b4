"""A sample out of its stored members: each decoded and checked, and all of them against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.codec.hard import decode_hard, decode_instances
from shards.codec.image import decode_image, image_size
from shards.codec.meta import decode_meta
from shards.codec.soft import decode_soft
from shards.errors import FormatError
from shards.softlabel import U16, SoftLabel

Part = Literal["hard", "soft", "instances"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of one scale.

    Args:
        key: unique within the split.
        image: uint8 [H, W, 3], RGB.
        hard: uint16 [H, W], void 65535; stored at scale 1 of labelled splits.
        soft: SoftLabel of H x W cells; stored at the other scales of labelled splits.
        weak: uint32 [L], classes that the image shows, where known.
        instances: uint16 [H, W], 0 none, 1..N; stored at scale 1 where the source has them.
        meta: key, split, source path, size of the source image, ...
    """

    key: str
    image: npt.NDArray[np.uint8]
    hard: U16 | None
    soft: SoftLabel | None
    weak: npt.NDArray[np.uint32] | None
    instances: U16 | None
    meta: dict[str, Any]


def decode_sample(members: Mapping[str, bytes], num_classes: int, where: str, without: tuple[Part, ...] = ()) -> Sample:
    """A Sample from its stored members.

    Args:
        members: suffix -> bytes.
        num_classes: C of the class table.
        where: what errors call the sample.
        without: what is neither decoded nor checked, and None in the sample.

    Raises:
        FormatError: naming the member.
    """
    image = next((s for s in ("jpg", "png", "webp") if s in members), None)
    if image is None or "json" not in members:
        raise FormatError(where, f"members {', '.join(members) or 'none'} found; expected an image and json")
    meta = decode_meta(members["json"], f"{where} [json]")
    hard, soft, instances = None, None, None
    if "seg.png" in members and "hard" not in without:
        hard = decode_hard(members["seg.png"], num_classes, f"{where} [seg.png]")
    if "soft.npz" in members and "soft" not in without:
        soft = decode_soft(members["soft.npz"], f"{where} [soft.npz]")
    if "inst.png" in members and "instances" not in without:
        instances = decode_instances(members["inst.png"], f"{where} [inst.png]")
    if soft is not None and soft.largest_id >= num_classes:
        raise FormatError(where, f"class id {soft.largest_id} found; expected ids below {num_classes}", "soft.npz")
    size = image_size(members[image], f"{where} [{image}]")
    for name, part in (("seg.png", hard), ("soft.npz", soft), ("inst.png", instances)):
        if part is not None and part.shape != size:  # before the image is decoded: a header may claim anything
            raise FormatError(where, f"{part.shape} found for an image of {size}", name)
    pixels = decode_image(members[image], f"{where} [{image}]")
    weak = weak_labels(meta, num_classes, where)
    return Sample(str(meta.get("key", "")), pixels, hard, soft, weak, instances, meta)


def weak_labels(meta: dict[str, Any], num_classes: int, where: str) -> npt.NDArray[np.uint32] | None:
    """The image-level label uint32 [L] in a sample's metadata, None where it has none; raises FormatError."""
    ids = meta.get("weak")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < num_classes for i in ids):
        raise FormatError(where, f"weak labels are not class ids below {num_classes}", "json")
    return np.array(ids, np.uint32)
