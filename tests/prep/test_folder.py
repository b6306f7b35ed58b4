"""The user's own folders: splits, class tables, labels of every kind, tags, and what is quarantined."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from prep.class_file import read_class_file
from prep.datasets import load_reader
from prep.trees import walk
from shards import IGNORE
from shards.errors import LayoutError, SettingsError, UserError
from tests.fakes import save
from tests.fakes_folders import fake_folder, ids_of
from tests.prep.builds import SegPrep, quarantine, run_build

GREY = np.zeros((8, 8, 3), np.uint8)


def _classes(root: Path, text: str, name: str = "classes.txt") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root


def _pair(root: Path, stem: str, label: np.ndarray) -> None:
    save(np.zeros((*label.shape[:2], 3), np.uint8), root / "images" / f"{stem}.jpg")
    save(label, root / "labels" / f"{stem}.png")


def _reasons(out: Path) -> list[str]:
    return [bad["reason"] for bad in quarantine(out)]


def test_split_folders_are_built_and_read_back(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_folder(tmp_path / "data", {"train": 3, "val": 2, "test": 1})
    code, _, err = seg_prep("folder", "--root", root, "--out", tmp_path / "out", "--workers", 1, "--quiet")
    assert (code, err) == (0, "")
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == count
        assert found.classes.names == ("class 0", "class 1", "class 2", "class 3")
        for sample in found:
            ids = ids_of(root / "labels" / split / f"{sample.key}.png")
            ids[ids == 255] = IGNORE
            assert np.array_equal(sample.hard, ids)
            assert sample.key.startswith("street/frame")
    assert "4 classes" in (tmp_path / "out/README.md").read_text()


def test_other_folders_are_splits_where_labels_have_them_too(tmp_path: Path) -> None:
    root = fake_folder(tmp_path, {"val": 1, "train": 1, "night": 1})
    assert load_reader("folder").splits(root) == ("train", "val", "night")
    (root / "labels/night").rename(root / "labels/dusk")
    with pytest.raises(LayoutError, match=r"labels/dusk/ under .* is no split: expected images/dusk/ too"):
        load_reader("folder").splits(root)
    (root / "labels/dusk").rename(tmp_path / "away")
    with pytest.raises(LayoutError, match=r"images/night/ under .* is no split: expected labels/night/ too"):
        load_reader("folder").splits(root)


def test_images_beside_split_folders_are_refused(tmp_path: Path) -> None:
    root = fake_folder(tmp_path, {"train": 1})
    save(GREY, root / "images/loose.png")
    with pytest.raises(LayoutError, match=r"holds train/ and loose.png beside"):
        load_reader("folder").splits(root)


def test_without_split_folders_there_is_one_split(tmp_path: Path) -> None:
    root = fake_folder(tmp_path, {"": 2, "north": 1})
    assert load_reader("folder").splits(root) == ("all",)
    keys = [sample.key for sample in load_reader("folder").bind(root, {}).samples(root, "all")]
    assert keys == ["north/street/frame000", "street/frame000", "street/frame001"]


def test_lists_say_the_splits(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"": 4})
    (root / "train.txt").write_text("street/frame003\nimages/street/frame001.jpg\n\n")
    (root / "val.txt").write_text("street/frame000.jpg\nstreet/absent\n../../etc/passwd\n")
    run_build("folder", root, tmp_path / "out")
    train = shards.open(tmp_path / "out", split="train", scale="1")
    assert list(train.keys()) == ["street/frame003", "street/frame001"]
    assert len(shards.open(tmp_path / "out", split="val", scale="1")) == 1
    first, second = _reasons(tmp_path / "out")
    assert re.match(r"no image images/street/absent.jpg \(or .jpeg, .*\) found for the list", first)
    assert "etc/passwd" in second


def test_a_list_that_leads_nowhere_says_what_its_lines_are(tmp_path: Path) -> None:
    root = fake_folder(tmp_path, {"train": 2})
    (root / "train.txt").write_text("street/frame000\n")
    reader = load_reader("folder").bind(root, {})
    with pytest.raises(
        LayoutError, match=r"none of the 1 lines of .*train.txt leads .*'street/frame000'.*below .*images"
    ):
        list(reader.samples(root, "train"))


def test_orphans_and_twins_are_quarantined_with_their_names(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"train": 5})
    images, labels = root / "images/train/street", root / "labels/train/street"
    (images / "frame000.jpg").unlink()
    (labels / "frame001.png").unlink()
    (labels / "frame002.png").rename(labels / "frame002.tif")
    save(GREY, images / "frame003.PNG")
    (images / "Thumbs.db").write_bytes(b"x")
    (labels / "frame004.json").write_text("{}")
    run_build("folder", root, tmp_path / "out")
    suffixes = ".jpeg, .png, .webp, .tif, .tiff, .bmp"
    assert _reasons(tmp_path / "out") == [
        f"no image images/train/street/frame000.jpg (or {suffixes}) found for labels/train/street/frame000.png",
        "no label labels/train/street/frame001.png found for images/train/street/frame001.jpg",
        "no label labels/train/street/frame002.png found for images/train/street/frame002.jpg; "
        "labels/train/street/frame002.tif is no PNG",
        "images/train/street/frame003.PNG, images/train/street/frame003.jpg have one stem; expected one of them",
    ]
    assert list(shards.open(tmp_path / "out", split="train", scale="1").keys()) == ["street/frame004"]


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "tif", "TIFF", "bmp", "JPG"])
def test_image_kinds_in_any_case(tmp_path: Path, suffix: str) -> None:
    root = _classes(tmp_path / "data", "a\nb\n")
    (root / "images").mkdir()
    Image.fromarray(GREY).save(root / f"images/x.{suffix}")
    save(np.eye(8, dtype=np.uint8), root / "labels/x.PNG")
    run_build("folder", root, tmp_path / "out")
    (sample,) = shards.open(tmp_path / "out", split="all", scale="1")
    assert sample.hard.tolist() == np.eye(8).tolist()


def test_dotted_and_foreign_names_become_keys_and_collisions_are_found(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "a\nb\n")
    for stem in ("straße.1", "stra_e_1", "a b"):
        _pair(root, stem, np.zeros((8, 8), np.uint8))
    run_build("folder", root, tmp_path / "out")
    assert sorted(shards.open(tmp_path / "out", split="all", scale="1").keys()) == ["a_b", "stra_e_1"]
    (bad,) = quarantine(tmp_path / "out")
    assert bad["reason"] == "duplicate key 'stra_e_1': images/stra_e_1.jpg has it already"


def test_an_id_beyond_the_table_names_id_file_and_classes(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"train": 2}, lines="road\ncar\nvan\n")
    save(np.array([[2, 255]], np.uint8), root / "labels/train/street/frame001.png")
    save(np.zeros((1, 2, 3), np.uint8), root / "images/train/street/frame001.jpg")
    run_build("folder", root, tmp_path / "out")
    (reason,) = _reasons(tmp_path / "out")
    assert reason.startswith("labels/train/street/frame000.png: unknown label id 3 at row 0, column 3 (")
    assert reason.endswith("; classes.txt (3 classes, void 255) defines 4 ids from 0 to 255")


def test_sixteen_bit_labels_have_their_own_void(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "".join(f"c{n}\n" for n in range(300)))
    label = np.array([[0, 255], [299, 65535]], np.uint16)
    _pair(root, "wide", label)
    _pair(root, "narrow", np.array([[0, 253], [254, 1]], np.uint8))
    _pair(root, "unclear", np.array([[0, 255], [254, 1]], np.uint8))
    _pair(root, "beyond", np.array([[0, 300]], np.uint16))
    run_build("folder", root, tmp_path / "out", scales="1")
    found = shards.open(tmp_path / "out", split="all", scale="1")
    assert found["wide"].hard.tolist() == [[0, 255], [299, IGNORE]]
    assert found["narrow"].hard.tolist() == [[0, 253], [254, 1]]
    reason, unclear = _reasons(tmp_path / "out")
    assert "unknown label id 300" in reason
    assert "void 65535" in reason
    assert "255 found in a label of 8 bits, where it may be void or the class of id 255 in classes.txt" in unclear


def test_in_small_tables_255_is_no_void_of_sixteen_bit_labels(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "a\n")
    _pair(root, "x", np.array([[0, 255]], np.uint16))
    _pair(root, "y", np.array([[0, 65535]], np.uint16))
    run_build("folder", root, tmp_path / "out", scales="1")
    assert "unknown label id 255" in _reasons(tmp_path / "out")[0]


def test_palette_labels_are_read_by_index(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "a\t255,0,0\nb\t0,255,0\n")
    save(GREY, root / "images/x.png")
    image = Image.fromarray(np.eye(8, dtype=np.uint8), "L").convert("P")
    image.putdata(np.eye(8, dtype=np.uint8).ravel().tolist())
    image.putpalette([9, 9, 9] * 256)
    (root / "labels").mkdir()
    image.save(root / "labels/x.png")
    run_build("folder", root, tmp_path / "out")
    (sample,) = shards.open(tmp_path / "out", split="all", scale="1")
    assert sample.hard.tolist() == np.eye(8).tolist()


def test_colour_labels_are_decoded_by_the_second_column(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "road\t128, 64,128\nvoid\t0,0,0\ncar\t0,0,142\n")
    road, car, void, other = [128, 64, 128], [0, 0, 142], [0, 0, 0], [1, 2, 3]
    _pair(root, "a", np.array([[road, car], [void, road]], np.uint8))
    _pair(root, "b", np.array([[road, other]], np.uint8))
    _pair(root, "c", np.array([[[*road, 255], [*car, 254]]], np.uint8))
    _pair(root, "d", np.array([[0, 2], [1, 255]], np.uint8))
    run_build("folder", root, tmp_path / "out", scales="1")
    found = shards.open(tmp_path / "out", split="all", scale="1")
    assert found.classes.names == ("road", "car")
    assert found.classes.colours == ((128, 64, 128), (0, 0, 142))
    assert found["a"].hard.tolist() == [[0, 1], [IGNORE, 0]]
    assert found["d"].hard.tolist() == [[0, 1], [IGNORE, IGNORE]]  # ids still are line numbers
    unknown, clear = _reasons(tmp_path / "out")
    assert "unknown label colour 1,2,3 at row 0, column 1" in unknown
    assert "classes.txt defines 3 colours" in unknown
    assert "transparent" in clear


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("a\nb\n", "classes.txt gives no colours"),
        ("a\t1,1,1\nb\t1,1,1\n", "two lines of classes.txt have the colour 1,1,1"),
    ],
)
def test_colour_labels_need_colours_that_differ(tmp_path: Path, table: str, reason: str) -> None:
    root = _classes(tmp_path / "data", table)
    _pair(root, "a", np.ones((4, 4, 3), np.uint8))
    _pair(root, "b", np.ones((4, 4), np.uint8))
    run_build("folder", root, tmp_path / "out", scales="1")
    assert reason in _reasons(tmp_path / "out")[0]
    assert len(shards.open(tmp_path / "out", split="all", scale="1")) == 1


def test_sparse_ids_in_a_table_and_void_lines(tmp_path: Path) -> None:
    root = _classes(
        tmp_path / "data", "name\tid\tcolour\ncar\t26\t0,0,142\n\nroad\t7\t\nvoid\t0\t\nvoid\t3\n", "classes.tsv"
    )
    _pair(root, "a", np.array([[7, 26], [0, 3], [255, 7]], np.uint8))
    _pair(root, "b", np.array([[7, 8]], np.uint8))
    run_build("folder", root, tmp_path / "out", scales="1")
    found = shards.open(tmp_path / "out", split="all", scale="1")
    assert found.classes.names == ("road", "car")  # in the order of their ids
    assert found["a"].hard.tolist() == [[0, 1], [IGNORE, IGNORE], [IGNORE, 0]]
    assert "unknown label id 8" in _reasons(tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "road\n\ncar\n", r"classes.txt line 2: a blank line found.*line numbers are ids"),
        ("classes.txt", "road\n# cars\ncar\n", r"classes.txt line 2: a comment found"),
        ("classes.txt", "road\ncar\nroad\n", r"classes.txt line 3: class name 'road' is in line 1 too"),
        ("classes.txt", "road\t1,2\n", r"classes.txt line 1: colour '1,2' found; expected R,G,B"),
        ("classes.txt", "road\t1,2,256\n", r"colour '1,2,256'"),
        ("classes.txt", "road\t1,2,3\tx\n", r"classes.txt line 1: 3 columns"),
        ("classes.txt", "\t1,2,3\n", r"classes.txt line 1: 2 columns; expected a name"),
        ("classes.txt", "", r"classes.txt: no class found"),
        ("classes.txt", "void\nvoid\n", r"classes.txt: no class found"),
        ("classes.tsv", "id\tname\n", r"classes.tsv: no class found"),
        ("classes.tsv", "id\tclass\n1\troad\n", r"classes.tsv: columns id, class found; expected id, name"),
        ("classes.tsv", "id\tname\n-1\troad\n", r"classes.tsv line 2: id '-1' found; expected a number of 0 to 65535"),
        ("classes.tsv", "id\tname\n65536\troad\n", r"id '65536' found"),
        ("classes.tsv", "id\tname\n1\t\n", r"classes.tsv line 2: id 1 without a name"),
        ("classes.tsv", "id\tname\n1\ta\n1\tb\n", r"classes.tsv line 3: id '1' is in line 2 too"),
        ("classes.tsv", "id\tname\n1\ta\tb\n", r"classes.tsv line 2: 3 columns; expected 2"),
    ],
)
def test_class_tables_that_cannot_be_understood(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_class_file(_classes(tmp_path, text, name))


def test_class_tables_missing_twice_or_not_text(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_folder(tmp_path / "data", {"train": 1})
    (root / "classes.txt").rename(tmp_path / "classes.txt")
    line = seg_prep.refused("folder", "--root", root, "--out", tmp_path / "out")
    assert f"neither classes.txt nor classes.tsv found under {root}" in line
    assert "one class name a line" in line
    _classes(root, "a\n")
    _classes(root, "id\tname\n0\ta\n", "classes.tsv")
    with pytest.raises(LayoutError, match=r"both classes.txt and classes.tsv found"):
        read_class_file(root)
    (root / "classes.tsv").unlink()
    (root / "classes.txt").write_bytes("straße".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_class_file(root)


def test_byte_order_marks_windows_line_ends_and_odd_separators_shift_nothing(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeffroad\r\nca\u2028r\r\n\r\n".encode())
    assert read_class_file(tmp_path).classes.names == ("road", "ca\u2028r")


def test_tags_label_images_without_pixel_labels(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"train": 4}, lines="road\ncar\nvan\nbus\n")
    labels, tags = root / "labels/train/street", root / "tags/train/street"
    tags.mkdir(parents=True)
    for number, text in enumerate(("van\n car \nvan\n", "", "trck\nbusy\n")):
        (labels / f"frame00{number}.png").unlink()
        (tags / f"frame00{number}.txt").write_text(text)
    (tags / "frame003.txt").write_text("road\n")
    (tags / "alone.txt").write_text("road\n")
    run_build("folder", root, tmp_path / "out")
    assert list(shards.open(tmp_path / "out", split="train", scale="1").keys()) == ["street/frame003"]
    found = shards.open(tmp_path / "out", split="train-weak", scale="1")  # the pixel label of frame003 says more
    weak = {key: [int(v) for v in found[key].weak] for key in list(found.keys())}
    assert weak == {"street/frame000": [1, 2], "street/frame001": []}
    assert found["street/frame000"].hard is None
    orphan, unknown = _reasons(tmp_path / "out")
    assert orphan.endswith("found for tags/train/street/alone.txt")
    assert unknown == "tags/train/street/frame002.txt: 'busy' is no class of classes.txt; did you mean 'bus'?"


def test_a_split_of_tags_alone_keeps_its_name(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"": 2})
    for path in (root / "labels/street").iterdir():
        path.unlink()
        (root / "tags/street").mkdir(parents=True, exist_ok=True)
        (root / "tags/street" / f"{path.stem}.txt").write_text("class 3\n")
    (root / "labels/street").rmdir()
    (root / "labels").rmdir()
    run_build("folder", root, tmp_path / "out")
    assert [sample.weak.tolist() for sample in shards.open(tmp_path / "out", split="all", scale="1")] == [[3], [3]]


def test_tags_and_lists(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"": 3})
    (root / "labels/street/frame001.png").unlink()
    (root / "tags/street").mkdir(parents=True)
    (root / "tags/street/frame001.txt").write_text("class 2\n")
    (root / "train.txt").write_text("street/frame002\nstreet/frame001\n")
    (root / "test.txt").write_text("street/frame000\n")
    reader = load_reader("folder").bind(root, {})
    assert reader.splits(root) == ("train", "train-weak", "test")
    listed = {split: [(s.key, s.weak) for s in reader.samples(root, split)] for split in reader.splits(root)}
    assert listed == {
        "train": [("street/frame002", None)],
        "train-weak": [("street/frame001", (2,))],
        "test": [("street/frame000", None)],
    }


def test_only_test_goes_without_labels(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"train": 1, "test": 1})
    (root / "labels/test").rename(tmp_path / "kept")
    run_build("folder", root, tmp_path / "out")
    (sample,) = shards.open(tmp_path / "out", split="test", scale="1")
    assert sample.hard is None
    (root / "labels/train").rename(tmp_path / "away")
    reader = load_reader("folder").bind(root, {})
    with pytest.raises(LayoutError, match=r"neither labels/train/ nor tags/train/ found .* only test goes without"):
        list(reader.samples(root, "train"))


def test_missing_and_empty_image_folders(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "a\n")
    reader = load_reader("folder").bind(root, {})
    with pytest.raises(LayoutError, match=r"images/ not found under"):
        reader.splits(root)
    (root / "images/train").mkdir(parents=True)
    save(np.zeros((4, 4), np.uint8), root / "labels/train/x.png")
    with pytest.raises(LayoutError, match=r"no image under .*images/train: expected files that end in \.jpg"):
        list(reader.samples(root, "train"))


def test_symlink_loops_are_named_and_other_links_followed(tmp_path: Path) -> None:
    root = fake_folder(tmp_path / "data", {"train": 1})
    elsewhere = fake_folder(tmp_path / "elsewhere", {"": 1})
    (root / "images/train/more").symlink_to(elsewhere / "images/street")
    (root / "labels/train/more").symlink_to(elsewhere / "labels/street")
    (root / "images/train/street/itself.jpg").symlink_to(root / "images/train/street/itself.jpg")
    (root / "labels/train/street/itself.png").symlink_to(root / "labels/train/street/frame000.png")
    run_build("folder", root, tmp_path / "out")
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert list(found.keys()) == ["more/frame000", "street/frame000"]
    assert "Too many levels of symbolic links" in _reasons(tmp_path / "out")[0]
    (root / "images/train/street/loop").symlink_to(root / "images/train")
    reader = load_reader("folder").bind(root, {})
    with pytest.raises(LayoutError, match=r"street/loop is a symlink that leads back to a folder above it"):
        list(reader.samples(root, "train"))


def test_walking_is_sorted_and_hides_hidden_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", ".hidden.jpg", "z/a.jpg", "c/d.jpg", ".git/x.jpg"):
        save(GREY, tmp_path / "one" / name)
    save(GREY, tmp_path / "two/y/only.png")
    stems = [
        (stem, [len(files) for files in found]) for stem, found in walk((tmp_path / "one", tmp_path / "two", None))
    ]
    assert stems == [("a", [1, 0, 0]), ("b", [1, 0, 0]), ("c/d", [1, 0, 0]), ("y/only", [0, 1, 0]), ("z/a", [1, 0, 0])]


def test_odd_images_and_labels_of_other_sizes(tmp_path: Path) -> None:
    root = _classes(tmp_path / "data", "a\nb\n")
    label = np.eye(8, dtype=np.uint8)[:6]
    for name, mode in (("cmyk.jpg", "CMYK"), ("grey.png", "L"), ("palette.png", "P")):
        path = root / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (8, 6)).save(path)
        save(label, root / "labels" / f"{path.stem}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(root / "images/turned.jpg", exif=exif)
    save(label, root / "labels/turned.png")
    run_build("folder", root, tmp_path / "out")
    found = shards.open(tmp_path / "out", split="all", scale="1")
    assert sorted(found.keys()) == ["cmyk", "grey", "palette"]
    assert all(sample.image.shape == (6, 8, 3) for sample in found)
    assert _reasons(tmp_path / "out") == ["labels/turned.png: label is 8x6 pixels, its image is 6x8"]


def test_the_reader_travels_and_its_ids_are_part_of_the_build(tmp_path: Path) -> None:
    root = _classes(tmp_path, "id\tname\n1\ta\n2\tb\n", "classes.tsv")
    reader = load_reader("folder").bind(root, {})
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301
    _classes(root, "id\tname\n1\ta\n3\tb\n", "classes.tsv")
    other = load_reader("folder").bind(root, {})
    assert other.classes.digest == reader.classes.digest
    assert other.identity != reader.identity
    with pytest.raises(SettingsError, match="bind"):
        _ = load_reader("folder").classes
