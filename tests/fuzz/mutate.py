"""Bytes -> other bytes, by draws of a seeded generator: small damage, and words that parsers trip over."""

from __future__ import annotations

import random
from collections.abc import Sequence

WORDS = (
    b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"-0.0", b"9" * 25, b"9" * 5000, b"18446744073709551616", b"2147483648",
    b"null", b"true", b"[]", b"{}", b'""', b"\\ud800", b"\\u0000", b"[" * 2000, b'{"a":' * 2000, b"\n", b"\r\n", b"\t",
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"../", b"/etc/passwd", b"C:\\", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"%n",
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0\0\0\0\x80",
    b"\xe2\x80\xa8", b"1_000", b"\xd9\xa3",
)  # fmt: skip


def mutated(data: bytes, draw: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to six changes of an input; `others` are inputs that parts may be taken from."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        _change(out, draw, others)
    return bytes(out[: 1 << 20])


def _change(out: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    at = draw.randrange(len(out) + 1)
    end = min(len(out), at + draw.choice((1, 2, 4, 8, 64, 512)))
    kind = draw.randrange(9)
    if kind == 0 and out:
        out[min(at, len(out) - 1)] ^= 1 << draw.randrange(8)
    elif kind == 1:
        out[at:end] = draw.randbytes(end - at)
    elif kind == 2:
        del out[at:end]
    elif kind == 3:
        out[at:at] = out[at:end] * draw.choice((1, 2, 50))
    elif kind == 4:
        out[at:at] = draw.choice(WORDS)
    elif kind == 5:
        word = draw.choice(WORDS)
        out[at : at + len(word)] = word
    elif kind == 6:
        del out[at:]
    elif kind == 7 and others:
        other = draw.choice(others)
        start = draw.randrange(len(other) + 1)
        out[at:end] = other[start : start + draw.choice((4, 64, 1024))]
    elif at < len(out):
        out[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, ord("0"), ord("9"), ord("-"), ord('"')))
