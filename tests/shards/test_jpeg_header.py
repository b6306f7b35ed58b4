"""JPEGs that go past Pillow decode to what they decode to after it, damaged ones too."""

from __future__ import annotations

import io
import itertools
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from shards import FormatError
from shards.codec import ImageFormat, decode_image, encode_image
from shards.codec.image import jpeg_size
from tests.shards import pillow_oracle

RGB = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize((24, 17))
)


def saved(mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PLAIN = {
    "ours": encode_image(RGB, ImageFormat("jpeg", 95)),
    "half chroma": saved(quality=80),
    "full chroma": saved(subsampling=0),
    "grey": saved("L"),
    "progressive": saved(progressive=True),
    "optimised": saved(optimize=True, comment=b"hello"),
}
OTHERS = {
    "rotated": saved(exif=EXIF),
    "four channels": saved("CMYK"),
    "profile": saved(icc_profile=b"x" * 200),
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_pixels_are_those_after_pillow(name):
    data = {**PLAIN, **OTHERS}[name]
    assert jpeg_size(data) == ((17, 24) if name in PLAIN else None)
    np.testing.assert_array_equal(decode_image(data), pillow_oracle.picture(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's of broken EXIF
@pytest.mark.parametrize("name", ["half chroma", "rotated"])
def test_damage_ends_as_it_does_after_pillow(name):
    data = {**PLAIN, **OTHERS}[name]
    for cut in range(len(data)):
        assert pillow_oracle.outcome(decode_image, data[:cut]) == pillow_oracle.outcome(
            pillow_oracle.picture, data[:cut]
        )
    start = data.index(b"\xff\xda")  # headers, and a little of the pixels
    for place, value in itertools.product(range(min(start + 20, len(data))), (0, 1, 8, 0xC1, 0xDB, 0xE2, 255)):
        changed = bytearray(data)
        changed[place] = value
        got = pillow_oracle.outcome(decode_image, bytes(changed))
        assert got == pillow_oracle.outcome(pillow_oracle.picture, bytes(changed)), place


def test_a_size_over_the_cap_is_refused_by_the_header():
    data = bytearray(PLAIN["ours"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    assert jpeg_size(bytes(data)) == (65_500, 65_500)
    with pytest.raises(FormatError, match="over the cap"):
        decode_image(bytes(data))


def test_a_size_that_so_few_bytes_cannot_hold_is_refused_before_it_takes_memory():
    data = bytearray(PLAIN["ours"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\x3e\x80\x3e\x80"
    rotated = bytearray(OTHERS["rotated"])
    frame = rotated.index(b"\xff\xc0")
    rotated[frame + 5 : frame + 9] = b"\x3e\x80\x3e\x80"
    for file in (data, rotated):
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match="bytes for 16000x16000"):
                decode_image(bytes(file))
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_the_emptiest_images_have_bits_enough():
    """One colour, all options that make files small: still far above what is refused."""
    flat = Image.fromarray(np.full((1600, 1600), 128, np.uint8))
    for options in ({}, {"optimize": True}, {"progressive": True, "optimize": True}):
        for mode in ("L", "RGB"):
            out = io.BytesIO()
            flat.convert(mode).save(out, "JPEG", quality=1, **options)
            assert decode_image(out.getvalue()).shape == (1600, 1600, 3)
