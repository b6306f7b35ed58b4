"""The Mapillary Vistas reader: both releases, their layouts and configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import shards
from prep.datasets import load_reader
from prep.taxonomy import load_classes
from shards.errors import LayoutError, SettingsError
from tests.fakes import save, taxonomy_rows
from tests.fakes_folders import fake_vistas, ids_of, mapped
from tests.prep.builds import quarantine, run_build
from tests.real import real_data

REMAPS = {"v1.2": "vistas-66_to_65", "v2.0": "vistas-124_to_123"}


@pytest.mark.parametrize(("release", "old"), [("v1.2", True), ("v1.2", False), ("v2.0", False)])
def test_palette_labels_become_classes(tmp_path: Path, release: str, old: bool) -> None:
    root = fake_vistas(tmp_path / "mv", [release], old=old)
    outcome = run_build("vistas", root, tmp_path / "out")
    assert list(outcome.manifest.splits) == ["train", "val", "test"]
    for split, folder in (("train", "training"), ("val", "validation")):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found.classes) == {"v1.2": 65, "v2.0": 123}[release]
        for sample in found:
            ids = ids_of(root / folder / ("" if old else release) / "labels" / f"{sample.key}.png")
            assert len(np.unique(ids)) == len(taxonomy_rows(REMAPS[release]))
            assert sample.hard.tolist() == mapped(ids, REMAPS[release])
    (sample,) = shards.open(tmp_path / "out", split="test", scale="1")
    assert sample.hard is None


def test_the_release_is_found_or_asked_for(tmp_path: Path) -> None:
    root = fake_vistas(tmp_path / "both", ["v1.2", "v2.0"])
    reader = load_reader("vistas")
    assert reader.bind(root, {}).title == "Mapillary Vistas v1.2, 65 classes"
    assert reader.bind(root, {"release": "v2.0"}).title == "Mapillary Vistas v2.0, 123 classes"
    shutil.rmtree(root / "training/v1.2")
    shutil.rmtree(root / "validation/v1.2")
    assert reader.bind(root, {}).title == "Mapillary Vistas v2.0, 123 classes"
    with pytest.raises(LayoutError, match=r"no labels of v1.2 under .*, only of v2.0"):
        reader.bind(root, {"release": "v1.2"})
    with pytest.raises(SettingsError, match=r"--release 2: expected v1.2 or v2.0"):
        reader.bind(root, {"release": "2"})


def test_another_class_table_in_the_config_is_refused(tmp_path: Path) -> None:
    root = fake_vistas(tmp_path)
    path = root / "config_v1.2.json"
    config = json.loads(path.read_text())
    config["labels"][7], config["labels"][8] = config["labels"][8], config["labels"][7]
    path.write_text(json.dumps(config))
    with pytest.raises(LayoutError, match=r"lists 66 labels, first another at index 7 \('construction--flat--crossw"):
        load_reader("vistas").bind(root, {})
    path.write_text(json.dumps({"labels": config["labels"][:5]}))
    with pytest.raises(LayoutError, match=r"lists 5 labels, first another at index 5 \('nothing'\)"):
        load_reader("vistas").bind(root, {})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"labels": 3}', '{"labels": [3]}', '{"labels": [{}]}', "[" * 100_000])
def test_configs_that_are_none(tmp_path: Path, text: str) -> None:
    root = fake_vistas(tmp_path)
    (root / "config_v1.2.json").write_text(text)
    with pytest.raises(LayoutError, match=r"config_v1.2.json: no JSON object with a list of named labels"):
        load_reader("vistas").bind(root, {})


def test_missing_twins_and_unknown_ids_are_quarantined(tmp_path: Path) -> None:
    root = fake_vistas(tmp_path / "mv", ["v1.2"], {"training": 4})
    folder = root / "training"
    names = sorted(path.stem for path in (folder / "images").iterdir())
    (folder / "images" / f"{names[0]}.jpg").unlink()
    (folder / "v1.2/labels" / f"{names[1]}.png").unlink()
    save(np.full((24, 32), 66, np.uint8), folder / "v1.2/labels" / f"{names[2]}.png")
    run_build("vistas", root, tmp_path / "out")
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert reasons[:2] == [
        f"training/images/{names[0]}.jpg: missing file",
        f"training/v1.2/labels/{names[1]}.png: missing file",
    ]
    assert "unknown label id 66" in reasons[2]
    assert "Mapillary Vistas v1.2 defines 66 ids from 0 to 65" in reasons[2]


def test_folders_that_are_missing(tmp_path: Path) -> None:
    reader = load_reader("vistas")
    with pytest.raises(LayoutError, match=r"neither training/, validation/ nor testing/ found"):
        reader.splits(tmp_path)
    root = fake_vistas(tmp_path, splits={"training": 1})
    shutil.rmtree(root / "training/v1.2")
    bound = reader.bind(root, {})
    with pytest.raises(LayoutError, match=r"training/v1.2/labels cannot be listed"):
        list(bound.samples(root, "train"))


@pytest.mark.parametrize(
    ("table", "source", "count"),
    [("vistas-65", "mapillary-65.tsv", 65), ("vistas-123", "mapillary-v2.0-labels.tsv", 123)],
)
def test_tables_equal_the_shared_lists(table: str, source: str, count: int) -> None:
    lines = [line.split("\t") for line in real_data(f"taxonomies/{source}").read_text().splitlines()]
    at = {name: place for place, name in enumerate(lines[0])}
    want = [(line[at["name"]], line[at["colour"]]) for line in lines[1 : count + 1]]
    classes = load_classes(table)
    assert [(n, ",".join(map(str, c))) for n, c in zip(classes.names, classes.colours, strict=True)] == want
    assert lines[count + 1][at["name"]] == "void--unlabeled"
    if "instances" in at:
        assert [line[at["instances"]] == "1" for line in lines[1 : count + 1]] == list(classes.things)


@pytest.mark.parametrize("release", ["v1.2", "v2.0"])
def test_the_datumaro_fixture(tmp_path: Path, release: str) -> None:
    root = tmp_path / "fixture"
    shutil.copytree(real_data("layouts/datumaro/mapillary_vistas_dataset"), root)
    with pytest.raises(
        LayoutError, match=r"lists 3 labels, first another at index 1 \('construction--barrier--separator'"
    ):
        load_reader("vistas").bind(root, {"release": release})  # its config is of a toy table
    for path in root.glob("config*.json"):
        path.unlink()
    run_build("vistas", root, tmp_path / "out", scales="1", given={"release": release})
    assert quarantine(tmp_path / "out") == []
    for split, count in (("train", 1), ("val", 2)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert len(found) == count
        for sample in found:
            assert np.array_equal(sample.hard, ids_of(root / split / release / "labels" / f"{sample.key}.png"))
