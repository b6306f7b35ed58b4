"""Soft labels as .npz: six small arrays that plain NumPy reads (the dataset card holds the recipe).

    base         uint8 | uint16 [h, w]   heaviest class of each cell; void is the type's largest value
    mixed        uint8 [ceil(h*w/8)]     one bit a cell, row by row: does it hold more than one class
    extra        uint8 | uint16 [m]      how many classes each mixed cell holds beyond the heaviest
    ids          as base, [t]            those classes, cell by cell, by falling weight
    weights      uint8 | uint16 [t]      their weights; the heaviest class has the rest of the denominator
    denominator  uint16 []               what a cell's weights sum to

uint8 wherever the values fit. A ZIP file with fixed times and order: equal labels give equal bytes.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.codec.image import MAX_PIXELS
from shards.errors import FormatError
from shards.softlabel import IGNORE, SoftLabel

NAMES = ("base", "mixed", "extra", "ids", "weights", "denominator")
Array = npt.NDArray[Any]


def encode_soft(soft: SoftLabel) -> bytes:
    """The .npz bytes of a soft label; ``decode_soft`` gives it back exactly."""
    counts = np.diff(soft.starts)
    further = np.ones(len(soft.ids), np.bool_)
    further[soft.starts[:-1]] = False
    flags = np.zeros(soft.base.size, np.uint8)
    flags[soft.cells] = 1
    real = [a[a != IGNORE].max(initial=0) for a in (soft.base, soft.ids)]
    narrow = max(real) < 255
    arrays: dict[str, Array] = {
        "base": _ids(soft.base, narrow),
        "mixed": np.packbits(flags),
        "extra": _small(counts - 1),
        "ids": _ids(soft.ids[further], narrow),
        "weights": _small(soft.weights[further]),
        "denominator": np.array(soft.denominator, np.uint16),
    }
    return _zip(arrays)


def decode_soft(data: bytes, where: str | Path = "<memory>") -> SoftLabel:
    """The soft label; raises FormatError where any part or invariant is broken."""
    arrays = _unzip(data, where)
    base, denominator = _wide(arrays["base"], arrays["base"].dtype), int(arrays["denominator"])
    flags = np.unpackbits(arrays["mixed"])
    if len(arrays["mixed"]) != -(-base.size // 8) or flags[base.size :].any():
        raise FormatError(where, f"{len(arrays['mixed'])} bytes of cell flags do not fit {base.shape} cells")
    cells = np.flatnonzero(flags[: base.size]).astype(np.int32)
    extra = arrays["extra"].astype(np.int64)
    if len(extra) != len(cells) or int(extra.sum()) != len(arrays["ids"]) or (extra < 1).any():
        raise FormatError(where, "the counts of classes do not fit the mixed cells")
    if len(arrays["weights"]) != len(arrays["ids"]) or denominator < 1:
        raise FormatError(where, "ids, weights and denominator do not fit each other")
    soft = _joined(base, cells, extra, arrays, denominator)
    _check_entries(soft, where)
    return soft


def _joined(base: Array, cells: Array, extra: Array, arrays: dict[str, Array], denominator: int) -> SoftLabel:
    """Put each cell's heaviest class, with the rest of the denominator, before its further ones."""
    starts = np.zeros(len(cells) + 1, np.int64)
    np.cumsum(extra + 1, out=starts[1:])
    ids, weights = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.int64)
    further = np.ones(len(ids), np.bool_)
    further[starts[:-1]] = False
    ids[further], weights[further] = _wide(arrays["ids"], arrays["base"].dtype), arrays["weights"]
    ids[starts[:-1]] = base.ravel()[cells]
    weights[starts[:-1]] = 0
    if len(cells):
        weights[starts[:-1]] = denominator - np.add.reduceat(weights, starts[:-1])
    clipped = np.clip(weights, 0, IGNORE).astype(np.uint16)  # a sum beyond the denominator shows as weight 0
    return SoftLabel(base, denominator, cells, starts, ids, clipped)


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


def _ids(ids: Array, narrow: bool) -> Array:
    return np.where(ids == IGNORE, 255, ids).astype(np.uint8) if narrow else ids.astype(np.uint16)


def _wide(ids: Array, dtype: Any) -> npt.NDArray[np.uint16]:
    """Ids as uint16 with void 65535; ``dtype`` says which value is void."""
    wide = ids.astype(np.uint16)
    wide[ids == np.iinfo(dtype).max] = IGNORE
    return wide


def _small(values: Array) -> Array:
    return values.astype(np.uint8 if values.max(initial=0) <= 255 else np.uint16)


def _zip(arrays: dict[str, Array]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same bytes on every platform
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=6)
    return out.getvalue()


def _unzip(data: bytes, where: str | Path) -> dict[str, Array]:
    """The six arrays, their types and dimensions checked."""
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
    dims = {"base": 2, "denominator": 0}
    small = (np.dtype(np.uint8), np.dtype("<u2"))
    for name, array in arrays.items():
        if array.dtype not in small or array.ndim != dims.get(name, 1):
            raise FormatError(where, f"array {name} is {array.dtype} of {array.ndim} dimensions")
    if arrays["ids"].dtype != arrays["base"].dtype or arrays["base"].size == 0 or arrays["mixed"].dtype != np.uint8:
        raise FormatError(where, "array types do not fit each other")
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
