"""MATLAB files whose parts are of other types, lengths and values than they may be: every part in every place."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest

from prep.matfile import load_variable
from shards.errors import SampleError

HEAD = b"MATLAB 5.0".ljust(124) + b"\0\x01IM"
KINDS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 99)  # of stored numbers; the last is none
VALUES = (
    b"",
    bytes(16),
    b"\xff" * 8,
    struct.pack("<dd", float("nan"), float("inf")),
    np.array([1, 1], "<i4").tobytes(),
    np.ones(70, "<i4").tobytes(),  # more axes than NumPy has
)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


@pytest.mark.parametrize("kind", ["numbers", "text", "struct", "cell"])
@pytest.mark.parametrize("slot", ["flags", "shape", "name", "values"])
def test_only_sample_errors(kind: str, slot: str) -> None:
    sound = {
        "flags": element(6, struct.pack("<II", {"numbers": 6, "text": 4, "struct": 2, "cell": 1}[kind], 0)),
        "shape": element(5, struct.pack("<ii", 1, 1)),
        "name": element(1, b"names"),
        "values": element(2, b"\x07"),
    }
    taken = 0
    for part in (element(k, v) for k in KINDS for v in VALUES):
        data = HEAD + element(14, b"".join((sound | {slot: part}).values()))
        for variable in ("names", "names.field"):
            with suppress(SampleError):
                load_variable(data, variable, "here")
                taken += 1
    assert taken < 40


def test_text_beyond_the_first_plane_is_one_character() -> None:
    pair = element(17, "\U0001f600".encode("utf-16-le"))
    parts = (element(6, struct.pack("<II", 4, 0)), element(5, struct.pack("<ii", 1, 2)), element(1, b"names"), pair)
    assert load_variable(HEAD + element(14, b"".join(parts)), "names", "here") == "\U0001f600"
