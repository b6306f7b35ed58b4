"""Soft labels as .npz: exact, deterministic, readable by NumPy, and closed to damaged input."""

from __future__ import annotations

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import FormatError, SoftLabel, soften
from shards.codec import decode_soft, encode_soft
from tests.shards.strategies import soft_labels


@given(soft_labels())
def test_decode_gives_back_what_encode_took(soft):
    data = encode_soft(soft)
    assert decode_soft(data) == soft
    assert encode_soft(decode_soft(data)) == data


@pytest.mark.parametrize("shift", [0, 240, 245, 250, 60_000, 65_524])
def test_ids_of_any_width(shift):
    hard = np.random.default_rng(0).integers(0, 10, (24, 24)).astype(np.uint16) + np.uint16(shift)
    hard[:5] = 65535
    soft = soften(hard, "1/3")
    stored = np.load(io.BytesIO(encode_soft(soft)))["base"]
    assert stored.dtype == (np.uint8 if shift + 9 < 255 else np.uint16)
    assert decode_soft(encode_soft(soft)) == soft


def arrays_of(soft: SoftLabel) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(encode_soft(soft))))


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


SOFT = soften(np.random.default_rng(3).integers(0, 4, (20, 28)).astype(np.uint16), "1/4")


def test_plain_savez_of_the_same_arrays_is_accepted():
    assert decode_soft(packed(arrays_of(SOFT))) == SOFT


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("denominator", lambda a: np.array(0, np.uint16)),
        ("denominator", lambda a: np.array(3, np.uint16)),
        ("denominator", lambda a: a.astype(np.int64)),
        ("further", lambda a: a * 0),
        ("further", lambda a: a[:, :-1]),
        ("further", lambda a: np.append(a, a[:, :1], axis=1)),
        ("further", lambda a: a[:, ::-1].copy()),
        ("further", lambda a: a[:1]),
        ("further", lambda a: a[0]),
        ("further", lambda a: np.stack([a[0] * 0 + SOFT.base[0, 0].astype(a.dtype), a[1]])),
        ("further", lambda a: a.astype(np.int16)),
        ("mixed", lambda a: a | 255),
        ("mixed", lambda a: a * 0),
        ("mixed", lambda a: a[:-1]),
        ("mixed", lambda a: np.append(a, np.uint8(0))),
        ("mixed", lambda a: a.astype(np.uint16)),
        ("base", lambda a: a[:, :-1]),
        ("base", lambda a: a.ravel()),
        ("base", lambda a: a[:0]),
        ("base", lambda a: a.astype(np.float32)),
        ("base", lambda a: a.astype(np.uint16)),
        ("more", lambda a: np.zeros(3, np.uint8)),
    ],
)
def test_broken_invariants_are_named(name, change):
    arrays = arrays_of(SOFT)
    arrays[name] = change(arrays.get(name))
    with pytest.raises(FormatError, match=r"^there: "):
        decode_soft(packed(arrays), "there")


@given(st.integers(0, 10**9), st.booleans())
def test_damage_is_an_error_or_harmless(place, cut):
    """A flipped byte or a truncation never passes for another label (CRC), and never escapes as another error."""
    data = bytearray(encode_soft(SOFT))
    if cut:
        data = data[: place % len(data)]
    else:
        data[place % len(data)] ^= 1 + place % 255
    with contextlib.suppress(FormatError):
        assert decode_soft(bytes(data)) == SOFT


def test_weights_over_255_take_two_bytes():
    hard = np.zeros((64, 64), np.uint16)
    hard[:, ::3] = 1
    soft = soften(hard, "1/32")
    assert decode_soft(encode_soft(soft)) == soft
    assert np.load(io.BytesIO(encode_soft(soft)))["further"].dtype == np.uint16


def test_a_bomb_is_refused_before_it_is_read():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in arrays_of(SOFT):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for _ in range(700 if name == "base" else 1):
                    member.write(bytes(1 << 20))
    with pytest.raises(FormatError, match="larger than"):
        decode_soft(out.getvalue())


def test_pickled_objects_are_refused():
    arrays = {**arrays_of(SOFT), "ids": np.array([{}], object)}
    with pytest.raises(FormatError):
        decode_soft(packed(arrays))
