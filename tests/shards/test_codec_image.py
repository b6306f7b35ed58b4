"""Images, hard labels, instance maps and metadata: lossless where promised, strict about damage."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from shards import FormatError, SettingsError
from shards.codec import (
    ImageFormat,
    decode_hard,
    decode_image,
    decode_instances,
    decode_meta,
    encode_hard,
    encode_image,
    encode_instances,
    encode_meta,
    image_facts,
    image_suffix,
)
from tests.shards.strategies import hard_labels

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_lossless_formats(kind):
    data = encode_image(RGB, ImageFormat.parse(kind))
    assert image_suffix(data) == kind
    np.testing.assert_array_equal(decode_image(data), RGB)
    assert encode_image(RGB, ImageFormat.parse(kind)) == data


def test_jpeg_is_close_and_full_chroma():
    smooth = np.asarray(Image.fromarray(RGB[:4, :4]).resize((64, 48), Image.Resampling.BICUBIC))
    data = encode_image(smooth, ImageFormat.parse("jpeg:95"))
    assert image_suffix(data) == "jpg"
    assert np.abs(decode_image(data).astype(int) - smooth).mean() < 3
    assert Image.open(io.BytesIO(data)).layer[1][1:3] == (1, 1)


def test_grey_palette_and_alpha_become_rgb():
    for mode in ("L", "P", "RGBA", "LA", "1", "CMYK"):
        format = "JPEG" if mode == "CMYK" else "PNG"
        data = saved(Image.fromarray(RGB).convert(mode), format)
        assert decode_image(data).shape == (20, 30, 3)
        assert image_facts(data).mode != "RGB"


def test_exif_rotation_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(RGB), "JPEG", exif=exif)
    assert image_facts(data).rotated
    assert not image_facts(saved(Image.fromarray(RGB), "JPEG")).rotated


def test_truncated_and_foreign_files_are_format_errors():
    for format in ("JPEG", "PNG", "WEBP"):
        data = saved(Image.fromarray(RGB), format)
        for bad in (data[: len(data) // 2], b"", b"not an image at all", data[:12]):
            with pytest.raises(FormatError, match=r"^here"):
                decode_image(bad, "here")
    with pytest.raises(FormatError, match="8 bits"):
        decode_image(saved(Image.fromarray(RGB[..., 0].astype(np.uint16) * 200), "PNG"))


def test_a_decompression_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(FormatError, match="pixels"):
        decode_image(bomb)


@given(hard_labels(5))
def test_hard_labels_round_trip_in_8_and_16_bits(hard):
    for classes in (5, 255, 256, 65_534):
        data = encode_hard(hard, classes)
        assert Image.open(io.BytesIO(data)).mode == ("L" if classes <= 255 else "I;16")
        np.testing.assert_array_equal(decode_hard(data, classes), hard)


def test_hard_labels_out_of_range_and_of_other_modes():
    hard = np.array([[0, 7]], np.uint16)
    with pytest.raises(SettingsError, match="class id 7"):
        encode_hard(hard, 7)
    with pytest.raises(FormatError, match="class id 7"):
        decode_hard(encode_hard(hard, 8), 7)
    with pytest.raises(FormatError, match="mode L"):
        decode_hard(encode_hard(hard, 300), 8)
    with pytest.raises(FormatError, match="stored as jpg"):
        decode_hard(saved(Image.fromarray(RGB[..., 0]), "JPEG"), 8)
    with pytest.raises(FormatError, match="damaged"):
        decode_hard(encode_hard(np.tile(hard, (50, 50)), 8)[:-30], 8)


def test_instances_round_trip():
    instances = np.arange(600, dtype=np.uint16).reshape(20, 30)
    np.testing.assert_array_equal(decode_instances(encode_instances(instances)), instances)


def test_meta_is_canonical():
    assert encode_meta({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'.encode()
    assert decode_meta(encode_meta({"a": [1, 2]})) == {"a": [1, 2]}
    for bad in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(FormatError):
            decode_meta(bad)
    with pytest.raises(ValueError, match="JSON"):
        encode_meta({"a": float("nan")})


@pytest.mark.parametrize("text", ["jpeg:0", "jpeg:101", "gif", "jpeg:", "keep:3", ""])
def test_unknown_image_formats(text):
    with pytest.raises(SettingsError, match="expected keep"):
        ImageFormat.parse(text)


def test_image_formats_parse():
    assert str(ImageFormat.parse("jpeg:80")) == "jpeg:80"
    assert ImageFormat.parse("keep").for_source("jpg") == ImageFormat("jpeg", 95)
    assert ImageFormat.parse("keep").for_source("webp") == ImageFormat("png")
    with pytest.raises(SettingsError):
        encode_image(RGB, ImageFormat("keep"))


def test_our_cap_replaces_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # would warn above 10 pixels, and refuse above 20
    image, hard = np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8), np.uint16)
    for form in ("png", "webp"):
        assert decode_image(encode_image(image, ImageFormat(form))).shape == image.shape
    assert decode_hard(encode_hard(hard, 3), 3).shape == decode_instances(encode_instances(hard)).shape == hard.shape
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: decode_hard(data, 3), [encode_hard(hard, 3)] * 200))
    assert Image.MAX_IMAGE_PIXELS == 10
