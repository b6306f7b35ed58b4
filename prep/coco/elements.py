"""The elements of the top-level lists of a large JSON file, without ever holding the file.

    for name, text, spans in elements(path, {"images", "annotations"}): ...

A compiled scanner follows brackets and strings through chunks of the file and notes where each element lies; the
text of a chunk's whole elements is handed out as one small JSON array, whose parser then checks it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import LayoutError
from shards.kernels import jit

CHUNK = 8 << 20  # bytes read at once
LARGEST = 64 << 20  # bytes of one element; a COCO annotation has some thousands
_BOM = b"\xef\xbb\xbf"
# What the scanner keeps between calls: nesting, inside a string or an escape, whether the open top-level value is a
# list, where the open element starts (or -1), and how much of the last top-level string is kept.
_DEPTH, _STRING, _ESCAPE, _LIST, _START, _KEY, _STATE = 0, 1, 2, 3, 4, 5, 6
_SPACE, _QUOTE, _COMMA, _BRACKET, _BACKSLASH, _BRACE = b' ",[\\{'  # brackets close two codes later
_NEED, _LIST_OPENS, _BROKEN = 0, 1, 2  # why the scanner returns: end of the bytes, a list begins, not such JSON


@jit
def _skip_string(text: Any, at: int, state: Any, key: Any) -> int:
    """Where the open string ends, or the text; a string of the top-level object is kept: it may be a key."""
    while at < len(text) and state[_STRING]:
        c = text[at]
        at += 1
        if state[_ESCAPE]:
            state[_ESCAPE] = 0
        elif c == _BACKSLASH:
            state[_ESCAPE] = 1
        elif c == _QUOTE:
            state[_STRING] = 0
        elif state[_DEPTH] == 1 and state[_KEY] < len(key):
            key[state[_KEY]] = c
            state[_KEY] += 1
    return at


@jit
def _fits(c: int, depth: int, inside: int) -> bool:
    """Whether a byte may stand outside the top-level object, or between the elements of a list."""
    if depth == 0:
        return c <= _SPACE or (c == _BRACE and inside >= 0)
    return c <= _SPACE or c in (_COMMA, _BRACE, _BRACKET + 2)


@jit
def _open(c: int, at: int, state: Any) -> bool:
    """Note an opening bracket that ends before `at`; whether a top-level list begins with it."""
    if state[_DEPTH] == 2 and state[_LIST]:
        state[_START] = at - 1
    state[_DEPTH] += 1
    if state[_DEPTH] == 2:
        state[_LIST] = c == _BRACKET
    return bool(state[_DEPTH] == 2 and state[_LIST])


@jit
def _close(at: int, state: Any, spans: Any, found: int) -> int:
    """Note a closing bracket that ends before `at`; how many spans there are now."""
    state[_DEPTH] -= 1
    if state[_DEPTH] == 0:
        state[_LIST] = -1  # nothing may follow
    if state[_DEPTH] != 2 or not state[_LIST]:
        return found
    spans[found, 0], spans[found, 1] = state[_START], at
    state[_START] = -1
    return found + 1


@jit
def _scan(text: Any, at: int, state: Any, key: Any, spans: Any) -> tuple[int, int, int]:
    """Follow `text` from `at` on; fill `spans` [n, 2] with elements' (start, end).

    Returns (why it ended, where, how many spans). At the end of the bytes an open element's start is in the state.
    """
    found = 0
    while at < len(text):
        if state[_STRING]:
            at = _skip_string(text, at, state, key)
            continue
        c, depth = text[at], state[_DEPTH]
        at += 1
        if (depth == 0 or (depth == 2 and state[_LIST])) and not _fits(c, depth, state[_LIST]):
            return _BROKEN, at, found
        if c == _QUOTE:
            state[_STRING], state[_KEY] = 1, 0 if depth == 1 else state[_KEY]
        elif c in (_BRACE, _BRACKET):
            if _open(c, at, state):
                return _LIST_OPENS, at, found
        elif c in (_BRACE + 2, _BRACKET + 2):
            found = _close(at, state, spans, found)
    return _NEED, at, found


def elements(path: Path, wanted: Collection[str], chunk: int = CHUNK) -> Iterator[tuple[str, bytes, NDArray[np.int64]]]:
    """Walk through the objects in the lists under the wanted keys of the file's top-level object.

    Yields:
        (key, JSON array of some consecutive elements, their places int64 [n, 2] as (offset, length) in the file).

    Raises:
        LayoutError: no JSON object, truncated, elements that are no objects, a wanted key that is missing or no list.
    """
    missing = set(wanted)
    for name, text, spans in _all_elements(path, chunk):
        missing.discard(name)
        if name in wanted and len(spans):
            yield name, text, spans
    if missing:
        raise LayoutError(
            f"{path} has no list '{min(missing)}': expected a COCO annotation file; download it once more"
        )


def _all_elements(path: Path, chunk: int) -> Iterator[tuple[str, bytes, NDArray[np.int64]]]:
    state = np.zeros(_STATE, np.int64)
    state[_START] = -1
    key = np.zeros(64, np.uint8)
    spans = np.empty((chunk // 2 + 2, 2), np.int64)  # "{}" is the shortest element
    name, base, rest = "", 0, b""
    with path.open("rb") as file:
        while data := file.read(chunk):
            if base + len(rest) == 0 and data.startswith(_BOM):
                base, data = len(_BOM), data[len(_BOM) :]
            text, at = rest + data, len(rest)
            bytes_ = np.frombuffer(text, np.uint8)
            why = _LIST_OPENS
            while why == _LIST_OPENS:
                why, at, found = _scan(bytes_, at, state, key, spans)
                yield name, *_cut(text, spans[:found], base)
                if why == _BROKEN:
                    raise _broken(path, base + at - 1)
                if why == _LIST_OPENS:
                    name = bytes(key[: state[_KEY]]).decode(errors="replace")
                    yield name, b"[]", spans[:0]
            kept = int(state[_START]) if state[_START] >= 0 else len(text)
            rest = text[kept:]
            base += kept
            if state[_START] >= 0:
                state[_START] = 0
            if len(rest) > LARGEST:
                raise LayoutError(f"{path}: an element of '{name}' from byte {base} on is larger than {LARGEST} bytes")
    if state[_LIST] != -1 or state[_DEPTH] != 0:
        raise LayoutError(f"{path} ends before its JSON does: truncated; download it once more")


def _cut(text: bytes, spans: NDArray[np.int64], base: int) -> tuple[bytes, NDArray[np.int64]]:
    """The text of the spans, which are neighbours, as a JSON array; their (offset, length) in the file."""
    if not len(spans):
        return b"[]", spans
    first, last = int(spans[0, 0]), int(spans[-1, 1])
    return b"[" + text[first:last] + b"]", np.stack([spans[:, 0] + base, spans[:, 1] - spans[:, 0]], axis=1)


def _broken(path: Path, at: int) -> LayoutError:
    return LayoutError(
        f"{path} is not a COCO annotation file at byte {at}: expected a JSON object of lists of objects; "
        "download it once more"
    )
