"""Samples out of their members: what is not wanted is not decoded; metadata as strict JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards import FormatError
from shards.codec import ImageFormat, decode_meta, encode_image, encode_meta
from shards.codec.sample import decode_sample
from tests.shards.build import CLASSES, build, members, pair

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_metadata_comes_back_as_python_reads_it(meta):
    data = encode_meta(meta)
    got = decode_meta(data)
    assert got == meta
    assert encode_meta(got) == data
    assert repr(got) == repr(json.loads(data))  # types, and signs of zeros


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"a":"\xff"}', '{"a":1}'.encode("utf-16"),
        b'{"a":"\\ud800"}', b'{"a":1}x', b'{"a":01}', b"{'a':1}", b"", b"null", b"[1]", b"[" * 100_000,
        b'{"a":' * 100_000, b'{"a":' + b"9" * 10_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_strict_json_object_is_refused(data):
    with pytest.raises(FormatError, match=r"^here: metadata"):
        decode_meta(data, "here")


def test_parts_that_are_left_out_are_neither_decoded_nor_there():
    full = members(0, "1", "train", "k")
    whole = decode_sample(full, len(CLASSES), "here")
    assert whole.hard is not None
    assert whole.instances is not None
    broken = {**full, "inst.png": b"broken", "seg.png": b"broken"}
    sample = decode_sample(broken, len(CLASSES), "here", without=("instances", "hard"))
    assert sample.hard is sample.instances is None
    np.testing.assert_array_equal(sample.image, whole.image)
    assert sample.meta == whole.meta
    for left in ("instances", "hard"):
        with pytest.raises(FormatError, match=r"\[(seg|inst)\.png\]"):
            decode_sample(broken, len(CLASSES), "here", without=(left,))
    small = {**members(0, "1/2", "train", "k"), "soft.npz": b"broken"}
    assert decode_sample(small, len(CLASSES), "here", without=("soft",)).soft is None
    with pytest.raises(FormatError, match=r"soft\.npz"):
        decode_sample(small, len(CLASSES), "here", without=("hard", "instances"))


def test_a_dataset_leaves_out_what_its_caller_does(tmp_path):
    build(tmp_path)
    ds = shards.open(tmp_path, split="train")
    sample = ds.sample(1, without=("instances",))
    assert sample.instances is None
    np.testing.assert_array_equal(sample.hard, pair(1)[1])
    assert ds.sample(sample.key).instances is not None
    assert ds[1].instances is not None


def test_an_image_of_another_size_than_its_label_is_not_even_decoded(monkeypatch):
    full = members(0, "1", "train", "k")

    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("shards.codec.sample.decode_image", decoded)
    for form in ("png", "webp", "jpeg"):
        image = encode_image(np.zeros((40, 48, 3), np.uint8), ImageFormat(form))
        parts = {"jpg" if form == "jpeg" else form: image, **{k: v for k, v in full.items() if k != "png"}}
        with pytest.raises(FormatError, match=r"\[seg.png\]: \(32, 48\) found for an image of \(40, 48\)"):
            decode_sample(parts, len(CLASSES), "here")
