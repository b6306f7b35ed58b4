"""Source images and label files: right pixels, and nothing partial, oversized or foreign passes."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from prep.decode import decode_source
from prep.indexed import decode_indices
from shards.codec import decode_image
from shards.errors import SampleError

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
IDS = np.random.default_rng(1).integers(0, 12, (24, 32)).astype(np.uint8)


def encoded(array: NDArray[np.generic] | Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(out, kind, **options)
    return out.getvalue()


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(RGB, "JPEG", exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_plain_images_decode_as_the_shards_do(kind: str) -> None:
    data = encoded(RGB, kind)
    source = decode_source(data, "x")
    assert source.plain
    assert np.array_equal(source.pixels, decode_image(data))


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (exif_rotated(), "jpg"),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "jpg"),
        (encoded(IDS, "JPEG"), "jpg"),
        (encoded(np.dstack([RGB, RGB[..., :1]]), "PNG"), "png"),
        (encoded(Image.fromarray(RGB).quantize(16), "PNG"), "png"),
        (encoded(IDS.astype(np.uint16) * 256, "PNG"), "png"),
        (encoded(RGB, "BMP"), ""),
        (encoded(RGB, "PNG", transparency=(1, 2, 3)), "png"),
    ],
)
def test_images_that_change_are_not_plain(data: bytes, suffix: str) -> None:
    source = decode_source(data, "x")
    assert not source.plain
    assert source.suffix == suffix
    assert source.pixels.dtype == np.uint8
    assert source.pixels.shape[2] == 3


def test_exif_rotation_is_applied() -> None:
    assert decode_source(exif_rotated(), "x").pixels.shape == (32, 24, 3)


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    pixels = decode_source(encoded(IDS.astype(np.uint16) * 256 + 255, "PNG"), "x").pixels
    assert np.array_equal(pixels[..., 0], IDS)


def test_sixteen_bit_rgb_png_is_not_kept() -> None:
    rows = b"".join(b"\0" + (RGB[y].astype(">u2") * 257).tobytes() for y in range(24))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    source = decode_source(b"\x89PNG\r\n\x1a\n" + body, "x")
    assert not source.plain
    assert np.array_equal(source.pixels, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    data = encoded(RGB, kind)
    with pytest.raises(SampleError, match=r"^cs a: a\.x: "):
        decode_source(data[: int(len(data) * share)], "cs a: a.x")


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"not an image at all", "not an image file")])
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        decode_source(data, "x")
    with pytest.raises(SampleError, match=reason):
        decode_indices(data, "x")


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for decode in (decode_source, decode_indices):
        with pytest.raises(SampleError, match=r"60000x60000 pixels are more than the cap"):
            decode(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")), "x")


def test_the_cap_is_inclusive_and_the_librarys_own_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode_source(encoded(RGB, "PNG"), "x", max_pixels=24 * 32)
    with pytest.raises(SampleError, match="cap"):
        decode_source(encoded(RGB, "PNG"), "x", max_pixels=24 * 32 - 1)
    assert before == Image.MAX_IMAGE_PIXELS


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_damage_gives_pixels_or_a_sample_error(kind: str, data: st.DataObject) -> None:
    raw = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SampleError):
        assert decode_source(bytes(raw), "x", max_pixels=1 << 20).pixels.ndim == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_palettes_give_their_indices() -> None:
    image = Image.fromarray(IDS, "P")
    image.putpalette(list(range(255, 255 - 48, -1)))
    assert np.array_equal(decode_indices(encoded(image, "PNG"), "x"), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_low_depths_give_ids_as_written(bits: int) -> None:
    ids = (np.arange(8 * 16).reshape(8, 16) % 2**bits).astype(np.uint8)
    planes = np.unpackbits(ids[..., None], axis=2)[..., -bits:].reshape(8, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    assert np.array_equal(decode_indices(b"\x89PNG\r\n\x1a\n" + body, "x"), ids)


def test_sixteen_bit_ids_keep_their_values() -> None:
    ids = IDS.astype(np.uint16) * 3000
    found = decode_indices(encoded(ids, "PNG"), "x")
    assert found.dtype == np.uint16
    assert np.array_equal(found, ids)


def test_colour_or_lossy_labels_are_refused() -> None:
    with pytest.raises(SampleError, match="colour image"):
        decode_indices(encoded(RGB, "PNG"), "x")
    with pytest.raises(SampleError, match="expected a PNG"):
        decode_indices(encoded(IDS, "JPEG"), "x")


@pytest.mark.parametrize(("form", "suffix"), [("PNG", "png"), ("WEBP", "webp")])
def test_of_an_animation_the_first_frame_is_kept_and_not_the_file(form: str, suffix: str) -> None:
    first, second = (np.full((8, 12, 3), value, np.uint8) for value in (10, 200))
    out = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(first).save(out, form, save_all=True, append_images=[Image.fromarray(second)], **options)
    found = decode_source(out.getvalue(), "x")
    assert (found.suffix, found.plain) == (suffix, False)
    np.testing.assert_array_equal(found.pixels, first)
