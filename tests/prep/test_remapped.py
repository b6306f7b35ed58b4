"""`--classes`: tables that ship, users' files, and what else of a sample holds class indices."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import shards
from prep.datasets import load_reader
from prep.raw import BaseReader, DecodedLabel, RawSample, UInt16
from prep.remapped import remapped
from prep.taxonomy import load_classes
from shards import IGNORE
from shards.classes import ClassTable
from shards.errors import SettingsError, UserError
from tests.fakes import fake_camvid, fake_cityscapes, taxonomy_rows
from tests.fakes_folders import fake_ccp, fake_kitti, fake_scannet, fake_vistas, fake_wilddash1, ids_of
from tests.prep.builds import SegPrep
from tests.real import real_data


@dataclass(frozen=True)
class Toy(BaseReader):
    """Five classes; a sample's meta says what LVIS' does."""

    tally: bool = False

    name = "toy"
    title = "Toy, 5 classes"
    layout, source, terms = "a", "b", "c"
    options = ("release",)
    default_scales = "1"
    protocol = MappingProxyType({"instance_sizes": {"car": 9.5, "van": 2.0}, "rule": "first"})

    @property
    def classes(self) -> ClassTable:
        return ClassTable.make(("road", "car", "van", "cat", "dog"))

    def splits(self, root: Path) -> tuple[str, ...]:
        return ("train",)

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        meta = {"pos_classes": [0, 4], "neg_classes": [1, 3, 4], "not_exhaustive_classes": [2, 4], "licence": 7}
        yield RawSample("a", root / "a.jpg", weak=(0, 2, 4), meta=meta)
        yield RawSample("b", root / "b.jpg", weak=None)

    def decode_label(self, data: bytes, where: str, facts: Any) -> UInt16 | DecodedLabel:
        hard = np.array([[0, 1, 2, 3, 4, IGNORE]], np.uint16)
        return DecodedLabel(hard, {"odd": 3}) if self.tally else hard

    def reports(self, tallies: Mapping[str, Counter[str]]) -> Mapping[str, Any]:
        return {"audit.json": {split: dict(tally) for split, tally in tallies.items()}}


def _file(path: Path, *lines: str) -> str:
    path.write_text("".join("\t".join(line.split("|")) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def _merged(path: Path) -> str:
    return _file(path, "from|to", "road|void", "car|car", "van|car", "cat|pet", "dog|pet")


def test_labels_are_mapped_by_one_lookup(tmp_path: Path) -> None:
    reader = remapped(
        Toy(), _file(tmp_path / "m.tsv", "from|to", "dog|cat", "cat|van", "van|car", "car|road", "road|dog")
    )
    assert reader.classes.names == ("cat", "van", "car", "road", "dog")
    assert np.asarray(reader.decode_label(b"", "x", None)).tolist() == [[4, 3, 2, 1, 0, IGNORE]]


def test_merged_classes_weak_labels_and_meta(tmp_path: Path) -> None:
    reader = remapped(Toy(), _merged(tmp_path / "m.tsv"))
    assert reader.classes.names == ("car", "pet")
    assert np.asarray(reader.decode_label(b"", "x", None)).tolist() == [[IGNORE, 0, 0, 1, 1, IGNORE]]
    first, second = reader.samples(tmp_path, "train")
    assert first.weak == (0, 1)
    # van may be there, so "car" is not known to be absent; cat and dog both are
    assert first.meta == {
        "pos_classes": [1],  # road is void now; one of the pets is enough
        "neg_classes": [1],
        "not_exhaustive_classes": [0, 1],
        "licence": 7,
    }
    assert (second.weak, dict(second.meta)) == (None, {})


def test_everything_else_is_the_inner_readers(tmp_path: Path) -> None:
    reader = remapped(Toy(tally=True), _merged(tmp_path / "mine.tsv"))
    assert reader.name == "toy"
    assert reader.title == "Toy, 5 classes, mapped to 2 classes by mine.tsv"
    assert (reader.layout, reader.source, reader.terms) == ("a", "b", "c")
    assert (reader.options, reader.default_scales, reader.splits(tmp_path)) == (("release",), "1", ("train",))
    assert reader.protocol == {"rule": "first", "instance_sizes": {"car": 9.5}}
    label = reader.decode_label(b"", "x", None)
    assert isinstance(label, DecodedLabel)
    assert (label.hard.tolist(), label.tally) == ([[IGNORE, 0, 0, 1, 1, IGNORE]], {"odd": 3})
    assert reader.reports({"train": Counter(odd=3)}) == {"audit.json": {"train": {"odd": 3}}}
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301 (our own bytes)
    assert again == reader
    assert len(pickle.dumps(reader)) < 2000


def test_a_class_that_keeps_its_name_but_not_its_meaning_loses_its_size(tmp_path: Path) -> None:
    spec = _file(tmp_path / "m.tsv", "from|to", "road|car", "car|void", "van|van", "cat|void", "dog|void")
    assert remapped(Toy(), spec).protocol["instance_sizes"] == {"van": 2.0}
    spec = _file(tmp_path / "n.tsv", "name", "cat")
    assert remapped(Toy(), spec).protocol == {"rule": "first"}


def test_names_alone_choose_classes(tmp_path: Path) -> None:
    reader = remapped(Toy(), _file(tmp_path / "m.tsv", "name|colour", "dog|1,2,3", "car|"))
    assert reader.classes.names == ("dog", "car")
    assert reader.classes.colours[0] == (1, 2, 3)
    assert np.asarray(reader.decode_label(b"", "x", None)).tolist() == [[IGNORE, 1, IGNORE, IGNORE, 0, IGNORE]]


def test_ids_and_rows_without_a_source_make_tables_that_several_datasets_share(tmp_path: Path) -> None:
    spec = _file(
        tmp_path / "m.tsv",
        "id|colour|to|from",
        "2|9,9,9|pet|dog", "2||pet|cat", "0||car|car", "0||car|van", "||void|road", "1||boat|",
    )  # fmt: skip
    reader = remapped(Toy(), spec)
    assert reader.classes.names == ("car", "boat", "pet")
    assert reader.classes.colours[2] == (9, 9, 9)
    assert np.asarray(reader.decode_label(b"", "x", None)).tolist() == [[IGNORE, 0, 0, 2, 2, IGNORE]]


_REST = ("van|void", "cat|void", "dog|void")
_NO_CAR = ("car|void", *_REST)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("from|to", "road|a", "car|a"), r"3 of toy's 5 classes are not in column from: van, cat, dog; expected each"),
        (("from|to", "rod|a"), r"m.tsv line 2: 'rod' is no class of toy: did you mean 'road'\?"),
        (("from|to", "zzz|a"), r"'zzz' is no class of toy: its classes are road, car, van, ..."),
        (("from|to", "road|a", "road|b"), r"class 'road' found twice"),
        (("from|to", "road|"), r"m.tsv line 2: no class in column to"),
        (("from|to", "road|a|b"), r"m.tsv line 2: 3 columns; expected 2"),
        (("from|to", "road|void", "car|void", "van|void", "cat|void", "dog|void"), r"every class becomes void"),
        (("from|to|colour", "road|a|1,2", *_NO_CAR), r"m.tsv line 2: colour '1,2'"),
        (("from|to|colour", "road|a|1,2,3", "car|a|1,2,4", *_REST), r"line 3: class 'a' has the colour 1,2,3 before"),
        (("from|to|id", "road|a|0", "car|a|1", *_REST), r"m.tsv line 3: class 'a' has id '1' here and '0' before"),
        (("from|to|id", "road|a|0", "car|b|2", *_REST), r"ids 0, 2.* of 2 classes: expected each of 0..1"),
        (("from|to|id", "road|a|", "car|b|1", *_REST), r"of 2 classes: expected each of 0..1"),
        (("name", "road", "trian"), r"m.tsv line 3: 'trian' is no class of toy"),
        (("name", "road", "road"), r"class 'road' found twice"),
        (("a|b", "road|car"), r"columns a, b found: expected a first line with the columns from and to, or name"),
        (("from|to",), r"no rows found"),
        ((), r"no rows found"),
    ],
)  # fmt: skip
def test_files_that_do_not_map_the_classes(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        remapped(Toy(), _file(tmp_path / "m.tsv", *lines))


def test_only_five_missing_classes_are_listed(tmp_path: Path) -> None:
    spec = _file(tmp_path / "m.tsv", "from|to", "road|a")
    message = r"18 of cityscapes's 19 classes are not in column from: sidewalk, building, wall, fence, pole, \.\.\.;"
    with pytest.raises(SettingsError, match=message):
        remapped(load_reader("cityscapes"), spec)


def test_specs_that_are_neither_file_nor_name(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"neither a file nor a class table for cityscapes: .* one of cityscapes19, rob39"
    ):
        remapped(load_reader("cityscapes"), "rob40")
    with pytest.raises(SettingsError, match=r"for camvid: .*rob-39 from scannet-20.*cityscapes-19 from vistas-65"):
        remapped(load_reader("camvid"), "rob39")
    (tmp_path / "latin.tsv").write_bytes("from\tto\nstraße\ta\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        remapped(Toy(), str(tmp_path / "latin.tsv"))
    with pytest.raises(SettingsError, match="neither a file"):
        remapped(Toy(), str(tmp_path))


def test_what_a_file_says_is_part_of_the_builds_identity(tmp_path: Path) -> None:
    one = remapped(Toy(), _file(tmp_path / "a.tsv", "from|to", "road|a", "car|b", "van|b", "cat|b", "dog|b"))
    two = remapped(Toy(), _file(tmp_path / "b.tsv", "from|to", "road|a", "car|a", "van|b", "cat|b", "dog|b"))
    assert one.classes.digest == two.classes.digest
    assert one.identity["class_map"] != two.identity["class_map"]


def test_vistas_with_cityscapes_classes_end_to_end(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_vistas(tmp_path / "mv", ["v1.2"])
    code, _, err = seg_prep(
        "vistas", "--root", root, "--out", tmp_path / "out", "--classes", "cityscapes19", "--workers", 1, "--quiet"
    )
    assert (code, err) == (0, "")
    table = {int(row["id"]): row["to"] for row in taxonomy_rows("vistas-65_to_cityscapes-19")} | {65: "void"}
    found = shards.open(tmp_path / "out", split="train", scale="1")
    assert found.classes.names == load_classes("cityscapes-19").names
    for sample in found:
        ids = ids_of(root / "training/v1.2/labels" / f"{sample.key}.png").tolist()
        want = [[IGNORE if table[value] == "void" else int(table[value]) for value in line] for line in ids]
        assert sample.hard is not None
        assert sample.hard.tolist() == want
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "mapped to 19 classes by cityscapes19" in json.dumps(manifest)


def test_the_rob_protocol_gives_equal_tables(tmp_path: Path, seg_prep: SegPrep) -> None:
    roots = {
        "cityscapes": fake_cityscapes(tmp_path / "cs", {"train": 1}),
        "kitti": fake_kitti(tmp_path / "kitti", test=0),
        "wilddash": fake_wilddash1(tmp_path / "wd", test=0),
        "scannet20": fake_scannet(tmp_path / "sn"),
    }
    digests, shown = set(), set()
    for name, root in roots.items():
        out = tmp_path / "out" / name
        assert seg_prep(name, "--root", root, "--out", out, "--classes", "rob39", "--workers", 1, "--quiet")[0] == 0
        split = "val" if name in ("wilddash", "scannet20") else "train"
        found = shards.open(out, split=split, scale="1")
        digests.add(found.classes.digest)
        shown |= {(name == "scannet20", value) for sample in found for value in np.unique(sample.hard).tolist()}
    assert len(digests) == 1
    outdoor, indoor = ({value for is_indoor, value in shown if is_indoor is side} for side in (False, True))
    assert outdoor - {IGNORE} == set(range(19))
    assert indoor - {IGNORE} == set(range(19, 39))
    names = load_classes("rob-39").names
    assert names[:19] == load_classes("cityscapes-19").names
    assert names[19:] == ("wall (indoor)", *load_classes("scannet-20").names[1:])


def test_kitti_and_cityscapes_have_their_classes_already() -> None:
    for name in ("kitti", "wilddash", "cityscapes"):
        reader = remapped(load_reader(name), "cityscapes-19")
        assert reader.classes.digest == load_reader("cityscapes").classes.digest
        assert reader.map.targets == tuple(range(19))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vistas-65_to_cityscapes-19", "vistas-123_to_cityscapes-19"])
def test_vistas_maps_name_their_classes(name: str) -> None:
    names, table = load_classes("cityscapes-19").names, taxonomy_rows(name)
    source = taxonomy_rows(name.split("_to_")[0])
    assert [(row["id"], row["name"]) for row in table] == [(row["id"], row["name"]) for row in source]
    for row in table:
        assert row["to_name"] == ("" if row["to"] == "void" else names[int(row["to"])])


def test_the_vistas_map_equals_mseg_but_for_what_the_readme_says() -> None:
    """MSeg's master table, column mapillary-public65 against cityscapes-19, by readable names."""
    head, *lines = [line.split("\t") for line in real_data("taxonomies/mseg-master.tsv").read_text().splitlines()]
    vistas, cityscapes = head.index("mapillary-public65"), head.index("cityscapes-19")
    mseg = {
        name.strip(): line[cityscapes] for line in lines for name in line[vistas].strip("{}").split(",") if name.strip()
    }
    readable = [line.split("\t") for line in real_data("taxonomies/mapillary-65.tsv").read_text().splitlines()[1:66]]
    ours = {
        line[2]: row["to_name"] for line, row in zip(readable, taxonomy_rows("vistas-65_to_cityscapes-19"), strict=True)
    }
    assert set(ours) == set(mseg)
    assert {name: (mseg[name], ours[name]) for name in ours if ours[name] != mseg[name]} == {
        "Caravan": ("car", ""),
        "Motorcyclist": ("", "rider"),
        "Other Rider": ("", "rider"),
        "Parking": ("road", ""),
        "Phone Booth": ("building", ""),
        "Traffic Sign (Back)": ("traffic sign", ""),
        "Traffic Sign Frame": ("traffic sign", ""),
    }


def test_both_vistas_maps_agree_where_names_are_the_same() -> None:
    old, new = ({row["name"]: row["to"] for row in taxonomy_rows(f"vistas-{n}_to_cityscapes-19")} for n in (65, 123))
    assert len(old.keys() & new.keys()) > 45
    assert {name: (old[name], new[name]) for name in old.keys() & new.keys() if old[name] != new[name]} == {}


def test_tags_are_mapped_in_a_build(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_ccp(tmp_path / "ccp")
    names = [row["name"] for row in taxonomy_rows("ccp-59")]
    kinds = {"null": "void", "boots": "shoe", "wedges": "shoe"}
    spec = _file(tmp_path / "m.tsv", "from|to", *(f"{name}|{kinds.get(name, 'other')}" for name in names))
    args = ("ccp", "--root", root, "--out", tmp_path / "out", "--classes", spec, "--split", "weak", "--quiet")
    assert seg_prep(*args)[0] == 0
    found = shards.open(tmp_path / "out", split="weak", scale="1")
    assert found.classes.names == ("other", "shoe")
    weak = [sample.weak for sample in found]
    assert [value.tolist() for value in weak if value is not None] == [[1], [0, 1], [0, 1]]


def test_camvid_by_ones_own_file(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_camvid(tmp_path / "cv", {"val": 2})
    keep = _file(tmp_path / "keep.tsv", "name", "Car", "Road")
    code, _, _ = seg_prep("camvid", "--root", root, "--out", tmp_path / "out", "--classes", keep, "--quiet")
    assert code == 0
    for sample in shards.open(tmp_path / "out", split="val", scale="1"):
        ids = ids_of(root / "valannot" / f"{sample.key}.png")
        assert sample.hard is not None
        assert np.array_equal(sample.hard, np.where(ids == 8, 0, np.where(ids == 3, 1, IGNORE)))


def test_ids_are_numbers_and_not_texts(tmp_path: Path) -> None:
    spec = _file(
        tmp_path / "m.tsv",
        "from|to|id",
        "road|k10|10",
        "car|k2|2",
        "van|k2|2",
        "cat|k0|0",
        "dog|k1|1",
        *(f"|k{n}|{n}" for n in (9, 8, 7, 6, 5, 4, 3)),
    )
    reader = remapped(Toy(), spec)
    assert reader.classes.names == tuple(f"k{n}" for n in range(11))
    assert np.asarray(reader.decode_label(b"", "x", None)).tolist() == [[10, 2, 2, 0, 1, IGNORE]]
