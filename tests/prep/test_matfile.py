"""MATLAB files: equal to scipy's reading of whole ones, and a typed error for damaged ones."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from prep import matfile
from prep.matfile import as_ids, load_variable
from shards.errors import SampleError

IDS = np.arange(12, dtype=np.uint16).reshape(3, 4)


def mat(packed: bool = True, **variables: Any) -> bytes:
    """A MATLAB 5 file."""
    file = io.BytesIO()
    savemat(file, variables, do_compression=packed)
    return file.getvalue()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"])
def test_numbers_are_what_scipy_reads(packed: bool, kind: str) -> None:
    value = (np.arange(30).reshape(5, 6) % 7).astype(kind)
    data = mat(packed, other=np.eye(3), S=value, text="words")
    want = loadmat(io.BytesIO(data))["S"]
    found = load_variable(data, "S", "x")
    assert np.array_equal(found, want)
    assert found.dtype == want.dtype
    cube = np.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(load_variable(mat(packed, S=cube), "S", "x"), cube)
    assert load_variable(mat(packed, S=np.zeros((0, 4))), "S", "x").shape == (0, 4)


@pytest.mark.parametrize("packed", [True, False])
def test_fields_of_structs_cells_and_text(packed: bool) -> None:
    truth = {"Boundaries": np.array([[csc_array(np.eye(4))], ["a"]], object), "Segmentation": IDS, "deep": {"a": 7}}
    data = mat(packed, GTcls=truth, names=np.array([["a", "bc", np.eye(2)]], object))
    assert np.array_equal(load_variable(data, "GTcls.Segmentation", "x"), IDS)
    assert load_variable(data, "GTcls.deep.a", "x") == 7
    one, two, three = load_variable(data, "names", "x")
    assert (one, two) == ("a", "bc")
    assert np.array_equal(three, np.eye(2))
    with pytest.raises(SampleError, match="x: GTcls has the fields Boundaries, Segmentation, deep; expected Instances"):
        load_variable(data, "GTcls.Instances", "x")
    with pytest.raises(SampleError, match="x: names is no struct"):
        load_variable(data, "names.Instances", "x")
    with pytest.raises(SampleError, match="class 5; expected plain numbers"):  # sparse
        load_variable(data, "GTcls.Boundaries", "x")
    with pytest.raises(SampleError, match="class 2; expected plain numbers"):
        load_variable(data, "GTcls", "x")


def test_the_other_byte_order() -> None:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    parts = element(6, struct.pack(">II", 11, 0), ">") + element(5, struct.pack(">ii", 2, 2), ">")
    parts += element(1, b"S", ">") + element(4, struct.pack(">4H", 1, 2, 3, 400), ">")
    assert load_variable(head + element(14, parts, ">"), "S", "x").tolist() == [[1, 3], [2, 400]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 600, r"MATLAB 7\.3 file .HDF5."),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(600), r"MATLAB 7\.3 file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 600, "not a MATLAB 5 file"),
        (b"MATLAB 5.0 MAT-file", "not a MATLAB 5 file"),
        (mat(S=IDS)[:-9], "truncated"),
        (mat(S=IDS)[:133], "truncated"),
        (mat(False, S=IDS)[:-9], "truncated"),
        (mat(T=IDS), "without the variable S"),
        (mat(), "without the variable S"),
    ],
)
def test_what_is_no_such_file_is_a_sample_error(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=rf"^a\.mat: .*{reason}"):
        load_variable(data, "S", "a.mat")


@pytest.mark.parametrize("packed", [True, False])
def test_truncated_and_damaged_files_are_sample_errors_or_numbers(packed: bool) -> None:
    """scipy 1.17 crashes the process on some of these."""
    whole = mat(packed, S=IDS, C=np.array([[IDS, "b"]], object), T={"a": IDS})
    rng = np.random.default_rng(0)
    for length in range(0, len(whole), 7):
        with pytest.raises(SampleError):
            load_variable(whole[:length], "T.b", "x")
    for _ in range(400):
        broken = bytearray(whole)
        for place in rng.integers(128, len(whole), 3):
            broken[place] = rng.integers(256)
        for variable in ("S", "C", "T.a"):
            with suppress(SampleError):
                load_variable(bytes(broken), variable, "x")


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], *parts: bytes, name: bytes = b"") -> bytes:
    """An array element: flags, dimensions, name, then its parts."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name) + b"".join(parts))


HEADER = mat()[:128]


def test_deep_nesting_is_refused() -> None:
    inner = array(6, (1, 1), element(9, struct.pack("<d", 1.0)))
    for _ in range(8):
        inner = array(1, (1, 1), inner)
    assert len(load_variable(HEADER + array(1, (1, 1), inner, name=b"S"), "S", "x")) == 1
    for _ in range(2000):
        inner = array(1, (1, 1), inner)
    with pytest.raises(SampleError, match="nested more than 16 deep"):
        load_variable(HEADER + array(1, (1, 1), inner, name=b"S"), "S", "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (array(1, (1_000_000, 1_000_000), name=b"S"), "0 cells in an array of shape"),
        (array(9, (1_000_000, 1_000_000), element(2, b"abcd"), name=b"S"), "4 values in an array of shape"),
        (array(9, (-1, -4), element(2, b"abcd"), name=b"S"), r"an array of shape \(-1, -4\)"),
        (array(9, (4,), element(2, b"abcd"), name=b"S"), r"an array of shape \(4,\)"),
        (array(9, (2, 2), element(14, b""), name=b"S"), "element of type 14 where numbers"),
        (array(9, (2, 2), name=b"S"), "element of type 0 where numbers"),
        (array(6, (1, 1), element(9, b"abcd"), name=b"S"), "4 bytes of numbers of 8"),
        (array(6 | 0x800, (1, 1), element(9, b"8 bytes."), element(9, b"8 bytes."), name=b"S"), "expected plain"),
    ],
)
def test_sizes_that_do_not_fit_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=rf"^x: .*{reason}"):
        load_variable(HEADER + data, "S", "x")


def test_a_file_that_unpacks_to_more_than_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matfile, "MAX_BYTES", 1 << 17)
    packed = zlib.compress(b"\0" * (1 << 26))
    bomb = HEADER + struct.pack("<II", 15, len(packed)) + packed
    tracemalloc.start()
    with pytest.raises(SampleError, match="unpacks to more than the cap of 131072"):
        load_variable(bomb, "S", "x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 23  # it is never unpacked whole
    tracemalloc.stop()
    monkeypatch.setattr(matfile, "MAX_BYTES", 4096)
    with pytest.raises(SampleError, match="5000 bytes is more than the cap of 4096"):
        load_variable(HEADER.ljust(5000, b"\0"), "S", "x")


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float64])
def test_whole_numbers_of_any_type_are_ids(kind: type) -> None:
    ids = as_ids(IDS.astype(kind), "x")
    assert ids.dtype == np.uint16
    assert np.array_equal(ids, IDS)
    assert int(as_ids(np.full((1, 1), 65535.0), "x")[0, 0]) == 65535


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((2, 2, 3)), r"float64 of shape \(2, 2, 3\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.array([["a"]]), "expected ids of shape"),
        ("text", "label is str"),
        (np.array([[0.5]]), "fractions"),
        (np.array([[np.nan]]), "values from nan"),
        (np.array([[65536]]), "to 65536"),
        (np.array([[-1]]), "from -1"),
        (np.array([[1 + 1j]]), "complex"),
    ],
)
def test_what_is_no_label_map_is_a_sample_error(value: Any, reason: str) -> None:
    with pytest.raises(SampleError, match=rf"^a\.mat: .*{reason}"):
        as_ids(value, "a.mat")
