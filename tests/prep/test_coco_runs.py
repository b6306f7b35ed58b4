"""Masks as runs, against pycocotools pixel by pixel, and malformed ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from prep.coco.annotation import annotation_runs, parse_annotations
from prep.coco.runs import Runs, polygon_runs, rle_runs
from shards.errors import SampleError
from tests.real import real_data

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pycocotools
SIDES = st.integers(1, 40)
NUMBERS = st.one_of(
    st.integers(-30, 70).map(float),
    st.integers(-60, 140).map(lambda n: n / 2),
    st.integers(-3000, 7000).map(lambda n: n / 100),
    st.floats(-60, 100, allow_nan=False),
    st.sampled_from([-4000.0, 5000.0, 0.5, 0.1, -0.1, 39.9, 40.0]),
)
POINTS = st.tuples(NUMBERS, NUMBERS)
POLYGONS = st.lists(POINTS, min_size=3, max_size=9).map(lambda points: [n for point in points for n in point])


def bitmap(runs: Runs, height: int, width: int) -> NDArray[np.uint8]:
    """Runs -> uint8 [H, W]; fails where they are not sorted, disjoint, apart and inside."""
    edges = runs.ravel().tolist()
    assert edges == sorted(set(edges))
    assert not edges or (edges[0] >= 0 and edges[-1] <= height * width)
    flat = np.zeros(height * width, np.uint8)
    for start, end in runs:
        flat[start:end] = 1
    return flat.reshape(width, height).T


@settings(max_examples=250, deadline=None)
@given(polygons=st.lists(POLYGONS, min_size=1, max_size=3), height=SIDES, width=SIDES)
def test_polygons_equal_pycocotools(polygons: list[list[float]], height: int, width: int) -> None:
    want = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
    assert np.array_equal(bitmap(polygon_runs(polygons, height, width, "x"), height, width), want)


@pytest.mark.parametrize(
    "polygon",
    [
        [3, 3, 3, 3, 3, 3],  # a point
        [2, 2, 9, 2, 2, 2],  # a line there and back
        [2, 2, 2, 9, 2, 2],
        [0, 0, 20, 0, 20, 10, 0, 10],  # the whole image
        [-50, -50, 70, -50, 70, 60, -50, 60],  # far more than the image
        [-9, -9, -2, -9, -2, -2],  # outside
        [25, 3, 31, 3, 31, 9],
        [2, 1, 9, 8, 9, 1, 2, 8],  # a bow tie
        [4.5, 2.5, 4.5, 7.5, 12.5, 7.5, 12.5, 2.5],  # on the rounding border
        [1, 9.99, 19.99, 9.99, 19.99, 0.01, 10, 12],
    ],
)
def test_odd_polygons_equal_pycocotools(polygon: list[float]) -> None:
    want = coco.decode(coco.merge(coco.frPyObjects([polygon], 10, 20)))
    assert np.array_equal(bitmap(polygon_runs([polygon], 10, 20, "x"), 10, 20), want)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), height=SIDES, width=SIDES)
def test_codes_equal_pycocotools(data: st.DataObject, height: int, width: int) -> None:
    rows = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=height, max_size=height))
    mask = np.array([[row >> x & 1 for x in range(width)] for row in rows], np.uint8)
    text = coco.encode(np.asfortranarray(mask))["counts"].decode()
    assert np.array_equal(bitmap(rle_runs(text, (height, width), height, width, "x"), height, width), mask)
    flat = mask.T.ravel().tolist()
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    assert np.array_equal(bitmap(rle_runs(counts, (height, width), height, width, "x"), height, width), mask)


def test_large_counts_of_a_code_equal_pycocotools() -> None:
    mask = np.zeros((2000, 3000), np.uint8, order="F")
    mask[700:1900, 5:2990] = 1
    mask[::97] = 0
    text = coco.encode(mask)["counts"].decode()
    assert np.array_equal(bitmap(rle_runs(text, (2000, 3000), 2000, 3000, "x"), 2000, 3000), mask)


@pytest.mark.parametrize(
    ("polygons", "why"),
    [
        ([], "no polygon"),
        ([[]], "0 points; expected at least 3"),
        ([[1.0, 2.0, 3.0, 4.0]], "2 points; expected at least 3"),
        ([[1.0, 1.0, 5.0, 1.0, 5.0, 5.0], [1.0, 2.0]], "1 points; expected at least 3"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "7 numbers; expected x and y in pairs"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]], "not finite"),
        ([[1.0, 2.0, float("inf"), 4.0, 5.0, 6.0]], "not finite"),
        ([[1.0, 2.0, 1e9, 4.0, 5.0, 6.0]], "beyond 1048576 pixels"),
        ([[1.0, 2.0, 3.0, -1e300, 5.0, 6.0]], "beyond 1048576 pixels"),
    ],
)
def test_malformed_polygons_are_refused(polygons: list[list[float]], why: str) -> None:
    with pytest.raises(SampleError, match=rf"^a 7: .*{why}"):
        polygon_runs(polygons, 10, 20, "a 7")


def test_a_polygon_of_too_many_border_points_is_refused_before_anything_is_allocated() -> None:
    zigzag = [n for _ in range(300) for n in (0.0, 0.0, 60_000.0, 9.0)]
    with pytest.raises(SampleError, match="more than 16777216 border points"):
        polygon_runs([zigzag], 10, 60_000, "x")


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([199], "does not fill its 200 pixels"),
        ([100, 101], "does not fill its 200 pixels"),
        ([], "does not fill"),
        ([-1, 201], "negative count"),
        ([1 << 62, 1 << 62], "does not fill"),
        ([1 << 62] * 4 + [200], "does not fill"),  # 200 in all where 64 bits wrap
        ([1 << 70], "beyond 64 bits"),
        ("", "does not fill"),
        ("00", "does not fill"),
        ("O0", "negative count"),
        ("P", "no compressed text"),  # ends within a number
        ("PPPPPPPP0", "no compressed text"),  # zeros beyond 32 bits
        ("oooooooooooooooooooooo", "no compressed text"),  # a number without end
        ("\x01\x02", "no compressed text"),
        ("é", "no compressed text"),
    ],
)
def test_malformed_codes_are_refused(counts: str | list[int], why: str) -> None:
    with pytest.raises(SampleError, match=rf"^a 7: .*{why}"):
        rle_runs(counts, (10, 20), 10, 20, "a 7")


def test_a_code_of_another_size_is_refused() -> None:
    with pytest.raises(SampleError, match="of 10x20 pixels; its image has 20x10"):
        rle_runs([200], (20, 10), 10, 20, "x")


@pytest.mark.parametrize(
    "text",
    [
        '{"id": 1, "category_id": 2',
        '{"id": 1, "category_id": 2}',
        '{"id": 1, "category_id": "2", "segmentation": []}',
        '{"id": 1, "category_id": 2, "segmentation": [[NaN, 1, 2, 3, 4, 5]]}',
        '{"id": 1, "category_id": 2, "segmentation": [[1e999, 1, 2, 3, 4, 5]]}',
        '{"id": 1, "category_id": 2, "segmentation": {"counts": 3, "size": [1, 2]}}',
        '{"id": 1, "category_id": 2, "segmentation": {"counts": "3", "size": [1]}}',
        '{"id": 1, "category_id": 2, "segmentation": ' + "[" * 100_000,
        "null",
        "\xff",
    ],
)
def test_text_that_is_no_annotation_is_refused(text: str) -> None:
    with pytest.raises(SampleError, match=r"^a 7: "):
        parse_annotations(text.encode("latin-1"), "a 7")


def test_annotations_may_span_lines() -> None:
    one: dict[str, Any] = {"id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]], "iscrowd": 0}
    text = json.dumps(one, indent=2) + "\n" + json.dumps(one | {"id": 3})
    assert [annotation.id for annotation in parse_annotations(text.encode(), "x")] == [1, 3]
    assert parse_annotations(b"", "x") == []


@pytest.mark.parametrize(
    "name",
    [
        "coco/annotations/instances_train2017.json",
        "coco/annotations/instances_val2017.json",
        "lvis/annotations/lvis_v0.5_val_9.json",
    ],
)
def test_real_masks_equal_pycocotools(name: str) -> None:
    content = json.loads(real_data(name).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for raw in content["annotations"]:
        height, width = sizes[raw["image_id"]]
        code = coco.frPyObjects(raw["segmentation"], height, width)
        want = coco.decode(coco.merge(code) if isinstance(code, list) else code)
        (parsed,) = parse_annotations(json.dumps(raw).encode(), "x")
        assert np.array_equal(bitmap(annotation_runs(parsed, height, width, "x"), height, width), want)
