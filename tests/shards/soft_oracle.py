"""The slow, obvious reader of stored soft labels: zipfile, NumPy's own header parser, a few arrays a plane."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec.image import MAX_PIXELS
from shards.codec.soft import border_cells
from shards.errors import FormatError
from shards.softlabel import IGNORE, U16, SoftLabel

NAMES = ("base", "mixed", "further", "denominator")
DIMENSIONS = {"base": 2, "mixed": 1, "further": 2, "denominator": 0}
Array = npt.NDArray[Any]


def decode_soft(data: bytes, where: str | Path = "<memory>") -> SoftLabel:
    """The soft label; raises FormatError where any part or invariant is broken."""
    arrays = _unzip(data, where)
    void = np.iinfo(arrays["base"].dtype).max
    base, ids = _widened(arrays["base"], void), _widened(arrays["further"][0], void)
    planes = _planes(base, np.unpackbits(arrays["mixed"]), where)
    if sum(map(len, planes)) != len(ids):
        raise FormatError(where, f"{len(ids)} further classes found; the cell flags want {sum(map(len, planes))}")
    denominator = int(arrays["denominator"])
    soft = _joined(base, planes, ids, arrays["further"][1], denominator)
    _check_entries(soft, where)
    return soft


def _planes(base: U16, bits: Array, where: str | Path) -> list[Array]:
    """The cells that hold a second class, a third, ...: flat indices in stored order; FormatError."""
    edge = border_cells(base).ravel()
    live, planes = np.concatenate([np.flatnonzero(edge), np.flatnonzero(~edge)]), []
    while len(live):
        if len(bits) < len(live):
            raise FormatError(where, "the flags of mixed cells end early")
        live, bits = live[bits[: len(live)] == 1], bits[len(live) :]
        planes.append(live)
    if len(bits) >= 8 or bits.any():
        raise FormatError(where, "more flags of mixed cells than cells")
    return planes


def _joined(base: U16, planes: list[Array], ids: U16, weights: Array, denominator: int) -> SoftLabel:
    """Bring the entries into the order of cells, each cell's heaviest class, with the rest, before its others."""
    cells = np.sort(planes[0])
    counts = np.ones(len(cells), np.int64)
    slots = [np.searchsorted(cells, plane) for plane in planes]
    for slot in slots:
        counts[slot] += 1
    starts = np.zeros(len(cells) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    target = np.concatenate([starts[:-1][slot] + rank for rank, slot in enumerate(slots, 1)])
    out_ids, out_weights = np.empty(starts[-1], np.uint16), np.zeros(starts[-1], np.int64)
    out_ids[target], out_weights[target] = ids, weights
    out_ids[starts[:-1]] = base.ravel()[cells]
    if len(cells):
        out_weights[starts[:-1]] = denominator - np.add.reduceat(out_weights, starts[:-1])
    clipped = np.clip(out_weights, 0, IGNORE).astype(np.uint16)  # a sum beyond the denominator shows as weight 0
    return SoftLabel(base, denominator, cells.astype(np.int32), starts, out_ids, clipped)


def _check_entries(soft: SoftLabel, where: str | Path) -> None:
    """Weights are positive and every cell's entries are sorted and distinct, else FormatError."""
    if not len(soft.ids):
        return
    if (soft.weights == 0).any():
        raise FormatError(where, "weights of a cell are not positive or pass the denominator")
    inner = np.ones(len(soft.ids), np.bool_)
    inner[soft.starts[:-1]] = False
    at = np.flatnonzero(inner)
    w0, w1 = soft.weights[at - 1].astype(np.int64), soft.weights[at].astype(np.int64)
    tie = (w0 == w1) & (soft.ids[at - 1] >= soft.ids[at])
    if (w0 < w1).any() or tie.any() or _repeated(soft):
        raise FormatError(where, "the classes of a cell are not in order or repeat")


def _repeated(soft: SoftLabel) -> bool:
    """Whether any cell names a class twice."""
    cell = np.repeat(np.arange(len(soft.cells), dtype=np.int64), np.diff(soft.starts))
    pairs = np.sort(cell * (IGNORE + 1) + soft.ids)
    return bool((pairs[1:] == pairs[:-1]).any())


def _widened(ids: Array, void: int) -> U16:
    """Stored ids as uint16 with void 65535."""
    wide = ids.astype(np.uint16)
    wide[ids == void] = IGNORE
    return wide


def _unzip(data: bytes, where: str | Path) -> dict[str, Array]:
    """The arrays, their types and dimensions checked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = {i.filename: i for i in archive.infolist()}
            if sorted(infos) != sorted(f"{n}.npy" for n in NAMES) or len(archive.infolist()) != len(NAMES):
                raise FormatError(where, f"holds {sorted(infos)}; expected the arrays {', '.join(NAMES)}")
            if any(i.file_size > 2 * MAX_PIXELS + 4096 for i in infos.values()):
                raise FormatError(where, f"an array is larger than {MAX_PIXELS} cells may need")
            arrays = {n: _array(archive.read(f"{n}.npy")) for n in NAMES}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, KeyError) as error:
        raise FormatError(where, f"damaged .npz ({str(error).splitlines()[0] if str(error) else 'short'})") from error
    except RuntimeError as error:  # zipfile: encrypted member
        raise FormatError(where, f"damaged .npz ({error})") from error
    for name, array in arrays.items():
        if array.dtype not in (np.dtype(np.uint8), np.dtype("<u2")) or array.ndim != DIMENSIONS[name]:
            raise FormatError(where, f"array {name} is {array.dtype} of {array.ndim} dimensions")
    wide = arrays["base"].dtype != np.uint8
    bad_types = arrays["mixed"].dtype != np.uint8 or (wide and arrays["further"].dtype == np.uint8)
    if bad_types or arrays["base"].size == 0 or len(arrays["further"]) != 2 or not arrays["denominator"]:
        raise FormatError(where, "array types or shapes do not fit each other")
    return arrays


def _array(member: bytes) -> Array:
    """Parse one .npy whose data length must be what its header says; ValueError otherwise."""
    file = io.BytesIO(member)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=1024)
    length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if fortran or dtype.hasobject or length != len(member) - file.tell():
        raise ValueError("array header does not fit its data")
    return np.frombuffer(member, dtype, offset=file.tell()).reshape(shape)
