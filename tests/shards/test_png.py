"""The PNG reader: Pillow's pixels, or an error; never a picture out of damaged bytes, never more memory than pixels."""

from __future__ import annotations

import importlib.util
import io
import itertools
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import IGNORE, FormatError
from shards.codec import decode_hard, decode_image, decode_instances, encode_hard, encode_instances, inflate, png
from tests.shards import pillow_oracle

MAGIC = b"\x89PNG\r\n\x1a\n"
CHANNELS = {(8, 0): 1, (16, 0): 2, (8, 2): 3}  # bytes a pixel by depth and colour type


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def written(
    filtered: bytes, size: tuple[int, int], depth: int, colour: int, parts: int = 1, extra: bytes = b""
) -> bytes:
    """A PNG of filtered rows, its pixels in some chunks, other chunks on both sides."""
    deflated = zlib.compress(filtered, 6)
    cuts = [len(deflated) * i // parts for i in range(parts + 1)]
    pixels = b"".join(chunk(b"IDAT", deflated[a:b]) for a, b in itertools.pairwise(cuts))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0))
    return MAGIC + header + extra + pixels + extra + chunk(b"IEND", b"")


def decoded(data: bytes, depth: int, colour: int) -> np.ndarray:
    if colour == 2:
        return decode_image(data)
    return decode_instances(data) if depth == 16 else decode_hard(data, 255)


@given(
    st.sampled_from(sorted(CHANNELS)),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
)
def test_any_filters_give_pillows_pixels(kind, width, height, seed, parts):
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (height, 1 + width * CHANNELS[kind])).astype(np.uint8)
    rows[:, 1:] *= random.random((height, rows.shape[1] - 1)) < random.choice([0.02, 0.2, 1.0])  # labels: mostly zeros
    rows[:, 0] = random.choice(5, height, p=random.dirichlet([0.5] * 5))
    extra = chunk(b"pHYs", bytes(9)) if seed % 2 else b""
    data = written(rows.tobytes(), (height, width), *kind, parts, extra)
    header = png.png_header(data)
    assert (png.read_rgb if kind[1] == 2 else png.read_grey)(data, header) is not None  # not left to Pillow
    want = np.array(Image.open(io.BytesIO(data))).astype(np.uint16)
    np.testing.assert_array_equal(decoded(data, *kind), np.where(want == 255, IGNORE, want) if kind == (8, 0) else want)


@pytest.mark.parametrize("kind", sorted(CHANNELS))
def test_one_odd_byte_goes_on_through_zeros(kind):
    """Paeth rows of zeros but for one byte: what it changes goes on to the right and below, in every filter."""
    for place, below in itertools.product(range(4 * CHANNELS[kind]), range(5)):
        rows = np.zeros((3, 1 + 30 * CHANNELS[kind]), np.uint8)
        rows[0, 1 + 15 * CHANNELS[kind] :] = 7
        rows[:, 0] = (1, 4, below)
        rows[1, 1 + place] = 5
        data = written(rows.tobytes(), (3, 30), *kind)
        want = np.array(Image.open(io.BytesIO(data))).astype(np.uint16)
        np.testing.assert_array_equal(
            decoded(data, *kind), np.where(want == 255, IGNORE, want) if kind == (8, 0) else want
        )


def test_paeth_of_all_triples():
    a, b, c = (axis.ravel() for axis in np.meshgrid(*[np.arange(0, 256, 5, np.int32)] * 3, indexing="ij"))
    guess = a + b - c
    order = np.argsort(np.abs(np.stack([guess - a, guess - b, guess - c])), axis=0, kind="stable")[0]
    kernel = importlib.import_module("shards.kernels_png")._nearest
    got = [kernel(*triple) for triple in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(got, np.stack([a, b, c])[order, np.arange(len(a))])


HARD = np.array([[0, 1, 1, 9, 9], [0, 1, 2, 9, IGNORE], [3, 3, 2, 2, IGNORE]], np.uint16)
SMALL = {
    "8 bits": (encode_hard(HARD, 10), lambda data: decode_hard(data, 10)),
    "16 bits": (encode_hard(HARD, 300), lambda data: decode_hard(data, 300)),
    "instances": (encode_instances(HARD), decode_instances),
    "RGB": (written(b"\4" + bytes(range(30)) + b"\3" + bytes(range(90, 120)), (2, 10), 8, 2, 3), decode_image),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_truncation_and_every_flipped_bit_is_an_error(name):
    data, decode = SMALL[name]
    decode(data)
    for cut in range(len(data)):
        with pytest.raises(FormatError, match=r"^<memory>: "):
            decode(data[:cut])
    for place, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        with pytest.raises(FormatError, match=r"^<memory>: "):
            decode(bytes(flipped))


def resealed(data: bytes, place: int, value: int) -> bytes:
    """A byte changed and the checksums made right again: damage that only what is inside can tell."""
    raw, out, at = bytearray(data), bytearray(data[:8]), 8
    raw[place] = value
    while at < len(data):
        length = struct.unpack_from(">I", data, at)[0]
        out += chunk(bytes(raw[at + 4 : at + 8]), bytes(raw[at + 8 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


@pytest.mark.parametrize("name", SMALL)
def test_changes_behind_right_checksums_are_what_pillow_sees_or_errors(name):
    data, decode = SMALL[name]
    oracle = pillow_oracle.picture if name == "RGB" else pillow_oracle.grey
    for place, value in itertools.product(range(12, len(data) - 12), (0, 1, 2, 3, 8, 16, 64, 255)):
        changed = resealed(data, place, value)
        got = pillow_oracle.outcome(decode, changed)
        if got != "FormatError":
            want = oracle(changed)
            void = want == 255 if want.dtype == np.uint8 and want.ndim == 2 else np.zeros(want.shape, bool)
            assert got == pillow_oracle.outcome(lambda _, w=want, v=void: np.where(v, np.uint16(IGNORE), w), b"")


def test_a_row_with_a_sixth_filter_is_an_error():
    for depth, colour in CHANNELS:
        rows = np.zeros((3, 1 + 4 * CHANNELS[depth, colour]), np.uint8)
        rows[1, 0] = 5
        with pytest.raises(FormatError, match="filter"):
            decoded(written(rows.tobytes(), (3, 4), depth, colour), depth, colour)


def test_pixels_that_are_missing_or_too_many():
    for depth, colour in CHANNELS:
        rows = bytes(3 * (1 + 4 * CHANNELS[depth, colour]))
        with pytest.raises(FormatError, match="damaged"):
            decoded(written(rows[:-1], (3, 4), depth, colour), depth, colour)
        more = written(rows + b"\0", (3, 4), depth, colour)  # Pillow does not mind
        assert not decoded(more, depth, colour).any()


def test_unusual_files_are_pillows():
    """Interlaced, transparent, in two runs of pixels, with a second header: as ever, not ours to guess."""
    rows = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(np.uint8)
    rows[:, 0] = 1
    plain = written(rows.tobytes(), (6, 8), 8, 0)
    for extra in (chunk(b"tRNS", b"\0\3"), chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"))):
        data = plain.replace(plain[33:], extra + plain[33:])
        assert png.read_grey(data, png.png_header(data)) is None
        assert (
            decode_hard(data, 255).tolist()
            == np.where(pillow_oracle.grey(data) == 255, IGNORE, pillow_oracle.grey(data)).tolist()
        )
    out = io.BytesIO()
    Image.fromarray(rows).convert("P").save(out, "PNG")
    np.testing.assert_array_equal(decode_image(out.getvalue()), pillow_oracle.picture(out.getvalue()))
    apart = written(rows.tobytes(), (6, 8), 8, 0, 2)
    second = apart.index(b"IDAT", apart.index(b"IDAT") + 4) - 4
    assert png.check_png(apart[:second] + chunk(b"pHYs", bytes(9)) + apart[second:]) is None
    assert png.check_png(plain[:33] + plain[8:33] + plain[33:]) is None
    interlaced = bytearray(plain[:33])
    interlaced[28] = 1
    assert png.png_header(bytes(interlaced)).odd


def test_even_of_unusual_files_a_flipped_pixel_is_an_error():
    out = io.BytesIO()
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).convert("P").save(out, "PNG")
    data = bytearray(out.getvalue())
    data[data.index(b"IDAT") + 20] ^= 4
    with pytest.raises(FormatError, match="checksum"):
        decode_image(bytes(data))


def test_no_more_memory_than_pixels():
    """A small header over a bomb, and a large header over nothing."""
    bomb = zlib.compress(bytes(50 << 20), 9)
    full = (
        MAGIC
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 50, 50, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", bomb)
        + chunk(b"IEND", b"")
    )
    empty = written(bytes(16), (16_000, 16_000), 8, 0)
    tracemalloc.start()
    try:
        decode_hard(full, 9)
        with pytest.raises(FormatError, match="16 bytes of"):
            decode_hard(empty, 9)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fast", [True, False])
def test_inflate_with_and_without_zlib_ng(fast, monkeypatch):
    if not fast:
        monkeypatch.setitem(sys.modules, "zlib_ng", None)
        monkeypatch.setitem(sys.modules, "shards.codec.inflate", None)
        spec = importlib.util.find_spec("shards.codec")
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_file_location("plain_inflate", f"{spec.submodule_search_locations[0]}/inflate.py")
        )
        module.__spec__.loader.exec_module(module)
        assert module._zlib is zlib
    else:
        module = inflate
        assert module._zlib is not zlib
    content = bytes(range(256)) * 9
    data = zlib.compress(content)
    assert module.inflate(data, len(content)) == content
    assert module.inflate(data, len(content) - 1) is None
    assert module.inflate(data + b"x", len(content)) is None
    assert module.inflate(data[2:-4], len(content), module.RAW) == content
    assert module.crc32(content) == zlib.crc32(content)
    for bad in (data[:-1], data[: len(data) // 2], b"", data[:-1] + bytes([data[-1] ^ 1]), b"\0" + data):
        with pytest.raises(module.DamageError):
            module.inflate(bad, len(content))
    with pytest.raises(module.DamageError, match="2304 bytes of 2305"):
        module.inflate(data, len(content) + 1)
