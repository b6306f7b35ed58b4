"""Finding annotations in large JSON files: places, order, and files that are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prep.coco.elements import elements
from prep.coco.index import load_index
from shards.errors import LayoutError

TRICKY: dict[str, Any] = {
    "info": {"annotations": [{"id": 1}], "text": 'a "]}[{" b \\'},
    "version": 'x"annotations": [{',
    "licenses": [],
    "numbers": {"deep": [[1], [2, [3]]]},
    "images": [{"id": 5, "height": 2, "width": 3, "coco_url": 'a/b/"]{\\"/c.jpg', "file_name": "ü.jpg"}],
    "annotations": [
        {"id": n, "image_id": 5, "category_id": n % 3, "text": ["]" * n, {"a": {}}, "\\"], "segmentation": [[n] * 6]}
        for n in range(40)
    ],
    "categories": [{"id": 0, "name": "x"}],
}


def write(path: Path, content: Any, **options: Any) -> Path:
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_places_lead_to_the_elements(tmp_path: Path, chunk: int, options: dict[str, Any]) -> None:
    path = write(tmp_path / "a.json", TRICKY, **options)
    data, found = path.read_bytes(), dict[str, list[Any]]()
    for name, text, spans in elements(path, ("images", "annotations"), chunk):
        parsed = [json.loads(data[start : start + length]) for start, length in spans.tolist()]
        assert json.loads(text) == parsed
        found.setdefault(name, []).extend(parsed)
    assert found == {name: TRICKY[name] for name in ("images", "annotations")}


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(TRICKY).encode())
    ((_, _, spans),) = elements(path, ("images",))
    start, length = spans[0]
    assert json.loads(path.read_bytes()[start : start + length]) == TRICKY["images"][0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "truncated"),
        ("not JSON", "byte 0"),
        ("[]", "byte 0"),
        ("null", "byte 0"),
        ('{"a": [1, 2]}', "byte 7"),
        ('{"a": ["x"]}', "byte 7"),
        ('{"a": [[]]}', "byte 7"),
        ('{"a": [{}]} {}', "byte 12"),
        ('{"a": [{}]}]', "byte 11"),
        ('{"a": [{}}', "byte 9"),
        ('{"a": [{"b": 1}', "truncated"),
        ('{"a": [{"b', "truncated"),
        ('{"a": [{}]', "truncated"),
        ('{"b": [{}]}', "no list 'a'"),
        ('{"a": {"b": 1}}', "no list 'a'"),
        ('{"a": null}', "no list 'a'"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str, why: str, chunk: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(LayoutError, match=why) as error:
        list(elements(path, ("a",), chunk))
    assert str(path) in str(error.value)


def test_annotations_are_found_by_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [{"id": int(id), "height": 4, "width": 5} for id in rng.permutation(50)]
    annotations = [
        {"id": n, "image_id": int(rng.integers(0, 49)), "category_id": int(rng.integers(1, 9)), "segmentation": []}
        for n in range(500)
    ]
    content = {"annotations": annotations, "images": images, "categories": []}
    path = write(tmp_path / "a.json", content)
    index, data = load_index(path), path.read_bytes()
    for image in range(50):
        want = [a for a in annotations if a["image_id"] == image]
        parts = index.parts(image)
        assert [json.loads(data[part.offset : part.offset + part.length]) for part in parts] == want
        assert all(part.path == path for part in parts)
        assert index.categories_of(image) == sorted({a["category_id"] for a in want})
    assert index.images.size(images[0]["id"]) == (4, 5)
    assert index.parts(999) == ()


def test_an_element_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"b": "' + "x" * 5000)
    monkeypatch.setattr("prep.coco.elements.LARGEST", 1000)
    with pytest.raises(LayoutError, match="an element of 'a' from byte 7 on is larger than 1000 bytes"):
        list(elements(path, ("a",), 100))


def test_a_file_that_changed_at_equal_size_is_indexed_again(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "height": 4, "width": 5}], "annotations": [], "categories": []}
    path = write(tmp_path / "a.json", content)
    os.utime(path, ns=(1, 1))
    assert load_index(path).images.size(1) == (4, 5)
    path.write_text(path.read_text().replace("4", "6"))
    os.utime(path, ns=(1, 2))
    assert load_index(path).images.size(1) == (6, 5)


def test_a_file_that_changed_is_indexed_again(tmp_path: Path) -> None:
    content: dict[str, list[Any]] = {
        "images": [{"id": 1, "height": 4, "width": 5}],
        "annotations": [],
        "categories": [],
    }
    path = write(tmp_path / "a.json", content)
    assert load_index(path).parts(1) == ()
    assert load_index(path) is load_index(path)
    content["annotations"].append({"id": 1, "image_id": 1, "category_id": 1})
    write(path, content)
    assert len(load_index(path).parts(1)) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"annotations": [{"id": 8, "image_id": 2, "category_id": 1}]}, "annotation 8 is of image 2, which its images"),
        ({"annotations": [{"id": 8, "image_id": 1}]}, "category_id"),
        ({"annotations": [{"id": 8, "image_id": "1", "category_id": 1}]}, "Expected `int`"),
        ({"annotations": [{"id": 8, "image_id": 1 << 70, "category_id": 1}]}, "'annotations' from byte"),
        ({"annotations": [{"id": 8, "image_id": -1, "category_id": 1}]}, "'annotations' from byte"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"images": [{"id": 1, "height": 0, "width": 5}]}, "'images' from byte"),
        ({"images": [{"id": 1, "height": 65000, "width": 65000}]}, "65000x65000 pixels"),
        ({"images": [{"id": 1, "height": 4, "width": 5}] * 2}, "lists image 1 twice"),
        ({"categories": [{"id": 1}]}, "'categories' from byte"),
    ],
)
def test_files_of_other_content_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    content = {"images": [{"id": 1, "height": 4, "width": 5}], "annotations": [], "categories": []}
    path = write(tmp_path / "a.json", content | change)
    with pytest.raises(LayoutError, match=why) as error:
        load_index(path)
    assert str(path) in str(error.value)


def test_a_deeply_nested_annotation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "categories": [], "annotations": [{"id": ' + "[" * 200_000 + "]" * 200_000 + "}]}")
    with pytest.raises(LayoutError, match="'annotations' from byte"):
        load_index(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"a\.json cannot be read"):
        load_index(tmp_path / "a.json")
