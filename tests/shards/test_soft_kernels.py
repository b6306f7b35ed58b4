"""Stored soft labels are read as the slow reader reads them: the same label, or an error for the same bytes."""

from __future__ import annotations

import io
import itertools
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import FormatError, SoftLabel, soften
from shards.codec import decode_soft, encode_soft, npz
from shards.codec.soft import DIMENSIONS, _refused, border_cells
from tests.shards import soft_oracle
from tests.shards.strategies import soft_labels

RANDOM = np.random.default_rng(3)
SOFT = soften(RANDOM.integers(0, 4, (20, 28)).astype(np.uint16), "1/4")


def outcome(decode: object, data: bytes) -> SoftLabel | str:
    try:
        return decode(data)  # type: ignore[operator]
    except FormatError:
        return "FormatError"


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@given(soft_labels(), st.integers(0, 2**32 - 1), st.sampled_from(["base", "mixed", "further", "denominator"]))
def test_changed_arrays_end_as_they_did(soft, seed, name):
    """One value of one array is changed: most are errors, some another label, and both readers agree on which."""
    random = np.random.default_rng(seed)
    arrays = {key: value.copy() for key, value in np.load(io.BytesIO(encode_soft(soft))).items()}
    assert decode_soft(packed(arrays)) == soft
    flat = arrays[name].reshape(-1)
    if flat.size:
        flat[random.integers(flat.size)] = random.choice([0, 1, 2, 3, 4, 15, 16, 128, 254, 255])
    data = packed({**arrays, name: flat.reshape(arrays[name].shape)})
    assert outcome(decode_soft, data) == outcome(soft_oracle.decode_soft, data)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 20))
def test_random_arrays_end_as_they_did(seed, height, width):
    """Few planes, tiny weights: random flags, ids and weights that fit each other more often than not."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 3, (height, width)).astype(np.uint8)
    first = random.random(base.size) < 0.2
    second = random.random(int(first.sum())) < 0.3
    bits = np.concatenate([first, second, np.zeros(int(second.sum()), bool)])
    entries = int(first.sum() + second.sum())
    further = np.stack([random.integers(0, 5, entries), random.integers(1, 4, entries)]).astype(np.uint8)
    data = packed({"base": base, "mixed": np.packbits(bits), "further": further, "denominator": np.array(9, np.uint16)})
    assert outcome(decode_soft, data) == outcome(soft_oracle.decode_soft, data)


def test_cells_of_very_many_classes():
    hard = np.arange(120 * 120, dtype=np.uint16).reshape(120, 120)
    soft = soften(hard, "1/60")
    assert soft.max_classes == 3600
    assert decode_soft(encode_soft(soft)) == soft
    arrays = dict(np.load(io.BytesIO(encode_soft(soft))))
    arrays["further"][0, 500] = arrays["further"][0, 100]
    with pytest.raises(FormatError, match="repeat"):
        decode_soft(packed(arrays))


SOUND = [[4], [1], [3, 1], [2, 2]]
UNSOUND = [[0], [5], [9], [0, 0], [4, 0], [6, 3], [1, 2]]


@pytest.mark.parametrize("weights", [*SOUND, *UNSOUND])
def test_weights_of_one_cell(weights):
    """A cell of class 0 and one or two others, of 9: what is left for class 0 is no less than theirs, none is 0."""
    flags = [1, 0, 0, 0] + [1, 0] * (len(weights) - 1) + [0] * (2 - len(weights))
    further = np.array([[1, 2][: len(weights)], weights], np.uint8)
    arrays = {"base": np.zeros((2, 2), np.uint8), "mixed": np.packbits(flags), "further": further}
    data = packed({**arrays, "denominator": np.array(9, np.uint16)})
    got = outcome(decode_soft, data)
    assert got == outcome(soft_oracle.decode_soft, data)
    assert (got != "FormatError") is (weights in SOUND)


@given(soft_labels())
def test_our_own_files_are_read_without_zipfile(soft):
    assert npz._plain(encode_soft(soft), tuple(DIMENSIONS), _refused) is not None


def test_every_truncation_and_every_flipped_bit_is_an_error_or_harmless():
    data = encode_soft(SOFT)
    for cut in range(len(data)):
        assert outcome(decode_soft, data[:cut]) == outcome(soft_oracle.decode_soft, data[:cut]) == "FormatError"
    for place, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        got = outcome(decode_soft, bytes(flipped))
        assert got in (SOFT, "FormatError"), (place, bit)
        if got == SOFT:  # a date, say: nothing that is less than the slow reader asks for
            assert outcome(soft_oracle.decode_soft, bytes(flipped)) == SOFT


@pytest.mark.parametrize(
    "change",
    [
        lambda data, local: data[:local] + b"x" + data[local:],  # something before a member
        lambda data, local: data + b"tail",
        lambda data, local: data[:-2] + b"\1\0c",  # a comment
        lambda data, local: data[: local + 8] + b"\0\0" + data[local + 10 :],  # stored, says the local header
    ],
)
def test_archives_unlike_ours_are_left_to_zipfile(change):
    data = encode_soft(SOFT)
    changed = change(data, data.index(b"PK\3\4", 4))
    assert npz._plain(changed, tuple(DIMENSIONS), _refused) is None
    assert outcome(decode_soft, changed) == outcome(soft_oracle.decode_soft, changed)


def test_headers_of_absurd_sizes_cost_nothing():
    arrays = dict(np.load(io.BytesIO(encode_soft(SOFT))))
    tracemalloc.start()
    try:
        for shape in ("(99999999, 99999999)", "(9999999999, 9999999999)", "(-1, 5)", "(5, 7, 1)", "(35,)", "()"):
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, array in arrays.items():
                    member = io.BytesIO()
                    np.save(member, array)
                    raw = member.getvalue()
                    if name == "base":
                        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
                        raw = raw[:8] + struct.pack("<H", len(text)) + text.encode() + array.tobytes()
                    archive.writestr(f"{name}.npy", raw)
            with pytest.raises(FormatError, match=r"^<memory>: "):
                decode_soft(out.getvalue())
        many = {**arrays, "mixed": np.zeros(30 << 20, np.uint8)}
        out = io.BytesIO()
        np.savez_compressed(out, **many)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(FormatError, match="flags of mixed cells"):
            decode_soft(out.getvalue())
        assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_borders_against_the_slow_ones(height, width, seed):
    from shards import kernels_soft

    base = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint16)
    edge = np.zeros((height, -(-width // 8) * 8), np.uint8)
    assert kernels_soft.mark_borders(base, edge) == edge.sum()
    np.testing.assert_array_equal(edge[:, :width], border_cells(base))
    assert not edge[:, width:].any()


def test_a_stream_of_more_than_the_directory_says_is_not_unpacked():
    arrays = {**dict(np.load(io.BytesIO(encode_soft(SOFT)))), "base": np.zeros(40 << 20, np.uint8)}
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    data, real = out.getvalue(), struct.pack("<I", (40 << 20) + 128)
    assert data.count(real) >= 1
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode_soft(data.replace(real, struct.pack("<I", 4000)))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
