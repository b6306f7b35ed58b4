"""Sample metadata as canonical JSON: sorted keys, no spaces, UTF-8; the same dict gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import FormatError

MAX_BYTES = 1 << 24


def encode_meta(meta: dict[str, Any]) -> bytes:
    """Canonical JSON; raises ValueError for NaN and for what JSON cannot hold."""
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_meta(data: bytes, where: str | Path = "<memory>") -> dict[str, Any]:
    """The dict; raises FormatError for anything else: NaN and text that is not UTF-8 are not JSON."""
    if len(data) > MAX_BYTES:
        raise FormatError(where, f"metadata of {len(data)} bytes; expected at most {MAX_BYTES}")
    try:
        meta = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatError(where, "metadata is not JSON") from error
    if not isinstance(meta, dict):
        raise FormatError(where, f"metadata is a JSON {type(meta).__name__}; expected an object")
    return meta
