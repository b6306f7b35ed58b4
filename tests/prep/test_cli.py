"""seg-prep: options, help, and one line with exit code 2 for everything that cannot be done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import shards
from prep.build.settings import Settings
from prep.cli import command
from prep.datasets import dataset_names, load_reader
from shards.errors import SettingsError
from shards.manifest import load_manifest
from tests.fakes import fake_camvid, fake_cityscapes
from tests.prep.builds import SegPrep


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fake_camvid(tmp_path / "cv", {"train": 3, "val": 4})


def test_a_build_from_the_command_line(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    code, out, _ = seg_prep(
        "camvid", "--root", root, "--out", tmp_path / "o", "--split", "val", "--scales", "1,1/4", "--workers", 1,
        "--filter", "triangle", "--format", "zarr", "--shard-size", 0.5, "--image-format", "jpeg:90", "--limit", 3,
        "--max-bad", 2,
    )  # fmt: skip
    assert code == 0
    assert "val 3 samples" in out
    manifest = load_manifest(tmp_path / "o")
    assert manifest.settings.items() >= {
        "splits": ["val"], "scales": ["1", "1/4"], "filter": "triangle", "format": "zarr", "shard_size_mb": 0.5,
        "image_format": "jpeg:90", "limit": 3,
    }.items()  # fmt: skip
    assert set(shards.open(tmp_path / "o", split="val", scale="1/4").members(0)) == {"jpg", "soft.npz", "json"}


def test_quiet_prints_nothing(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    assert seg_prep("camvid", "--root", root, "--out", tmp_path / "o", "--quiet", "--workers", 1) == (0, "", "")


def test_dry_run_prints_the_plan_and_writes_nothing(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    code, out, _ = seg_prep("camvid", "--root", root, "--out", tmp_path / "o", "--dry-run", "--scales", "1,1/2")
    assert code == 0
    for part in ("split train: 3 samples, labelled", "split val: 4", "classes: 11", "1, 1/2 (filter box)", "estimated"):
        assert part in out
    assert not (tmp_path / "o").exists()


def test_list_shows_layout_classes_source_and_terms_of_each_dataset() -> None:
    text = CliRunner().invoke(command, ["--list"]).output
    for name in dataset_names():
        reader = load_reader(name)
        assert f"{name}: {reader.title}" in text
        for part in (reader.layout.splitlines()[0], reader.source, reader.terms):
            assert part in text
        assert re.search(r"\d+ classes|any number of classes", reader.title), "a title carries the class count"


def test_help_has_an_example_and_every_option_says_what_it_does() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    assert "Example:" in text
    names = (
        "root out split scales filter format workers shard-size image-format limit max-bad dry-run fresh update list "
    )
    names += "quiet classes weak weak-crop aug release overlap protocol labels map-to"
    for option in names.split():
        assert f"--{option}" in text
    assert all(getattr(option, "help", None) for option in command.params if option.name != "dataset")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid", "--root", "{tmp}/nowhere"], "nowhere does not exist: expected the folder of CamVid"),
        (["camvid", "--root", "{root}/val.txt"], "val.txt is not a folder"),
        (["camvid", "--root", "{tmp}/empty"], "neither train.txt"),
        (["cityscapes", "--root", "{root}"], "leftImg8bit/ not found under"),
        (["camvit", "--root", "{root}"], "did you mean 'camvid'?"),
        (["nosuchset", "--root", "{root}"], "expected one of ade20k, ade20k-full, camvid"),
        (["camvid", "--root", "{root}", "--split", "nosplit"], "split 'nosplit' not found"),
        (["camvid", "--root", "{root}", "--scales", "1/0"], "1/0"),
        (["camvid", "--root", "{root}", "--scales", "1/2,1/2"], "distinct"),
        (["camvid", "--root", "{root}", "--scales", ""], "scales"),
        (["camvid", "--root", "{root}", "--scales", "2/3"], "filter box"),
        (["camvid", "--root", "{root}", "--filter", "cubic"], "cubic"),
        (["camvid", "--root", "{root}", "--format", "lmdb"], "lmdb"),
        (["camvid", "--root", "{root}", "--image-format", "jpeg:101"], "jpeg:101"),
        (["camvid", "--root", "{root}", "--limit", "0"], "limit 0 found"),
        (["camvid", "--root", "{root}", "--shard-size", "0"], "shard size of 0 MB"),
        (["camvid", "--root", "{root}", "--shard-size", "nan"], "shard size of nan MB"),
        (["camvid", "--root", "{root}", "--workers", "0"], "workers"),
        (["camvid", "--root", "{root}", "--nonsense"], "nonsense"),
        (["camvid"], "--root and --out are needed"),
        ([], "DATASET, --root and --out are needed"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    root: Path, tmp_path: Path, seg_prep: SegPrep, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [argument.format(root=root, tmp=tmp_path) for argument in arguments]
    assert message in seg_prep.refused(*filled, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_url_is_no_place_to_write_to(
    root: Path, tmp_path: Path, seg_prep: SegPrep, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "s3://bucket/camvid found" in seg_prep.refused("camvid", "--root", root, "--out", "s3://bucket/camvid")
    assert not any((tmp_path / "here").iterdir())


def test_other_settings_exit_with_2(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    arguments = ("camvid", "--root", root, "--out", tmp_path / "o", "--workers", 1)
    assert seg_prep(*arguments)[0] == 0
    assert "scales 1,1/2,1/4,1/8 -> 1/2" in seg_prep.refused(*arguments, "--scales", "1/2")
    assert seg_prep(*arguments, "--scales", "1/2", "--fresh")[0] == 0
    assert load_manifest(tmp_path / "o").scales == ["1/2"]


def test_splits_keep_the_datasets_order_however_they_are_asked_for(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_cityscapes(tmp_path / "cs")
    for out, splits in (("a", ("val", "train", "val")), ("b", ("train", "val"))):
        options = [part for split in splits for part in ("--split", split)]
        assert seg_prep("cityscapes", "--root", root, "--out", tmp_path / out, *options, "--workers", 1)[0] == 0
    assert load_manifest(tmp_path / "a").digest == load_manifest(tmp_path / "b").digest


def test_settings_check_themselves(tmp_path: Path) -> None:
    for options in ({"filter": "cubic"}, {"format": "lmdb"}, {"shard_size": 0}, {"limit": 0}):
        with pytest.raises(SettingsError, match="expected"):
            Settings("camvid", tmp_path, **options)


def test_importing_prep_brings_no_torch() -> None:
    code = "import prep.cli, prep.build.worker, sys; sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_list_begins_with_your_own_data() -> None:
    assert CliRunner().invoke(command, ["--list"]).output.startswith("folder: Own images and labels")


@pytest.mark.parametrize("option", [["--aug"], ["--release", "v2.0"], ["--map-to", "ade20k"], ["--overlap", "first"]])
def test_an_option_of_another_dataset_is_refused(
    root: Path, tmp_path: Path, seg_prep: SegPrep, option: list[str]
) -> None:
    line = seg_prep.refused("camvid", "--root", root, "--out", tmp_path / "o", *option)
    assert f"{option[0]} found: expected an option that camvid takes (none of its own); leave it out" in line
    assert not (tmp_path / "o").exists()


def test_own_classes_reach_the_shards(root: Path, tmp_path: Path, seg_prep: SegPrep) -> None:
    (tmp_path / "mine.tsv").write_text("name\nRoad\nSky\n")
    code, _, err = seg_prep("camvid", "--root", root, "--out", tmp_path / "o", "--classes", tmp_path / "mine.tsv")
    assert code == 0, err
    dataset = shards.open(tmp_path / "o", split="val")
    assert dataset.classes.names == ("Road", "Sky")
    for sample in dataset:
        ids = np.asarray(Image.open(root / "valannot" / f"{sample.key}.png"))
        want = np.where(ids == 3, 0, np.where(ids == 0, 1, 65535))  # Road is 3 and Sky is 0 in SegNet's masks
        assert np.array_equal(sample.hard, want)
    (tmp_path / "mine.tsv").write_text("name\nSky\nRoad\n")
    again = seg_prep.refused("camvid", "--root", root, "--out", tmp_path / "o", "--classes", tmp_path / "mine.tsv")
    assert re.search(r"differs in class_map .* -> .*, classes .* -> ", again)


def test_map_writes_its_table(tmp_path: Path, seg_prep: SegPrep) -> None:
    code, out, err = seg_prep("map", "imagenet21k", "ade20k", "--out", tmp_path / "map.tsv")
    assert (code, err) == (0, "")
    assert "150" in out
    lines = (tmp_path / "map.tsv").read_text().splitlines()
    assert {"wnid", "class", "rule", "confidence"} <= set(lines[0].split("\t"))
    assert len(lines) > 100


def test_union_prints_its_counts(seg_prep: SegPrep) -> None:
    code, out, _ = seg_prep("union", "cocostuff", "ade20k")
    assert code == 0
    assert all(re.search(rf"\b{count}\b", out) for count in (247, 63, 87))
    assert seg_prep("union", "cocostuff", "ade20k", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["map", "imagenet21k", "nowhere"], "nowhere"),
        (["map", "camvid", "ade20k"], "camvid"),
        (["map", "imagenet21k"], "TARGET"),
        (["union", "cocostuff", "nowhere"], "nowhere"),
        (["union"], "TABLES"),
        (["map", "imagenet21k", "ade20k", "--out", "{tmp}"], "is a folder"),
        (["union", "cocostuff", "ade20k", "--out", "{tmp}/no/where.tsv"], "which is not a folder"),
    ],
)
def test_the_tools_refuse_in_one_line(tmp_path: Path, seg_prep: SegPrep, arguments: list[str], message: str) -> None:
    assert message in seg_prep.refused(*(argument.format(tmp=tmp_path) for argument in arguments))


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["map", "imagenet21k", "{kept}", "--out", "{kept}"], "names.tsv"),
        (["map", "imagenet21k", "{kept}", "--out", "{tmp}/a.tsv"], "a.review.tsv"),
        (["union", "cocostuff", "{kept}", "--out", "{tmp}/x/../names.tsv"], "names.tsv"),
    ],
)
def test_the_tools_do_not_overwrite_what_they_read(
    tmp_path: Path, seg_prep: SegPrep, arguments: list[str], kept: str
) -> None:
    path = tmp_path / kept
    (tmp_path / "x").mkdir()
    path.write_text("dog\ncat\n")
    assert "would overwrite" in seg_prep.refused(*(one.format(tmp=tmp_path, kept=path) for one in arguments))
    assert path.read_text() == "dog\ncat\n"


@pytest.mark.parametrize("tool", ["map", "union"])
def test_the_tools_explain_themselves(tool: str) -> None:
    text = CliRunner().invoke(command, [tool, "--help"], prog_name="seg-prep").output
    assert text.startswith(f"Usage: seg-prep {tool}")
    assert f"Example: seg-prep {tool}" in text


def test_map_can_take_all_kinds_of_a_synset(tmp_path: Path, seg_prep: SegPrep) -> None:
    for name, extra in (("few", ()), ("many", ("--descendants",))):
        assert seg_prep("map", "imagenet21k", "ade20k", "--quiet", "--out", tmp_path / f"{name}.tsv", *extra)[0] == 0
    few, many = (set((tmp_path / f"{name}.tsv").read_text().splitlines()) for name in ("few", "many"))
    assert few < many
    assert any(line.split("\t")[0] == "n02084071" or "\tdescendant\t" in line for line in many - few)


def test_union_can_match_by_meaning(seg_prep: SegPrep) -> None:
    out = seg_prep("union", "cocostuff", "ade20k", "--way", "meaning")[1]
    assert "68 base, 82 novel of 150, matched by meaning" in out
