"""seg-shards from the outside: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from shards.terminal import describe
from tests.shards import build as builder
from tests.shards.build import build


def seg_shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ls(shard_set):
    lines = seg_shards("ls", shard_set).stdout.splitlines()
    assert len(lines) == 1 + 2 * 3
    assert "5 samples" in lines[1]
    keys = seg_shards("ls", shard_set, "--keys", "--split", "train").stdout.split()
    assert keys == [f"city/train_{i:03d}" for i in range(5)]


def test_cat_prints_and_saves(shard_set, tmp_path):
    done = seg_shards("cat", shard_set, "--key", "city/train_003", "--scale", "1/2", "--save", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "soft.npz" in done.stdout
    assert "pole" in done.stdout
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {f"city_train_003-{n}.png" for n in ("image", "label", "overlay", "entropy")}
    with Image.open(tmp_path / "city_train_003-entropy.png") as picture:
        assert picture.size == (24, 16)
    assert seg_shards("cat", shard_set, "--key", "city/test_001").returncode == 0
    assert "instances 1" in seg_shards("cat", shard_set, "--split", "train").stdout


def test_cat_of_odd_sets(tmp_path, monkeypatch):
    """A key in metadata is anybody's word, and no name of a file; a split may be empty."""
    honest = builder.members
    monkeypatch.setattr(builder, "members", lambda *given: {**honest(*given), "json": b'{"key":"../a\\u0000b"}'})
    build(tmp_path / "odd")
    done = seg_shards("cat", tmp_path / "odd", "--save", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert ".._a_b-image.png" in {path.name for path in (tmp_path / "pictures").iterdir()}
    monkeypatch.setattr(builder, "members", honest)
    build(tmp_path / "empty", "zarr", samples=0)
    done = seg_shards("cat", tmp_path / "empty")
    assert done.returncode == 2
    assert done.stderr == f"error: no sample found in {tmp_path / 'empty'} (test, train): these splits are empty\n"


def test_cat_at_full_size_saves_an_entropy_map_too(shard_set, tmp_path):
    done = seg_shards("cat", shard_set, "--key", "city/train_003", "--save", tmp_path / "a", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "wrote" not in done.stdout
    with Image.open(tmp_path / "a" / "city_train_003-entropy.png") as picture:
        assert picture.size == (24, 16)  # of 1/2, the largest scale with a soft label
    assert seg_shards("cat", shard_set, "--key", "city/train_003", "--scale", "1", "--save", tmp_path / "b").stdout
    assert not (tmp_path / "b" / "city_train_003-entropy.png").exists()  # scale 1 was asked for, and has none


def test_every_command_takes_quiet(shard_set):
    for name in ("ls", "cat", "verify", "stats"):
        assert seg_shards(name, shard_set, "--quiet").returncode == 0


def test_a_damaged_shard_is_named_with_a_remedy(tmp_path):
    build(tmp_path)
    shard = next((tmp_path / "train" / "1-2").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    done = seg_shards("verify", tmp_path, "--quiet")
    assert done.returncode == 2
    assert f"{shard}: checksum differs from the manifest: damaged; build or copy it again" in done.stderr.splitlines()


def test_operating_system_errors_name_a_remedy():
    assert describe(PermissionError(13, "Permission denied", "/data")).startswith("Permission denied: /data; choose")
    assert "you may write" in describe(OSError(30, "Read-only file system", "/data"))
    assert "disk full: /data; free some space" in describe(OSError(28, "No space left on device", "/data"))


def test_verify_and_stats(shard_set, tmp_path):
    done = seg_shards("verify", shard_set)
    assert done.returncode == 0
    assert "is sound" in done.stdout
    assert seg_shards("verify", shard_set, "--quiet").stderr == ""
    done = seg_shards("stats", shard_set, "--json", tmp_path / "s.json", "--quiet")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "s.json").read_text())
    pixels = figures["train 1"]["classes"]
    assert pixels["pole"]["cells"] == 5 * 26
    assert abs(figures["train 1/2"]["classes"]["pole"]["cells"] - 5 * 26 / 4) < 1e-6
    assert figures["test 1"]["cells"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ls", "{empty}"), "no manifest.json found"),
        (("verify", "{empty}"), "no manifest.json found"),
        (("cat", "{set}", "--key", "nokey"), "'nokey' not found"),
        (("cat", "{set}", "--scale", "1/8"), "scale 1/8 not found"),
        (("stats", "{set}", "--split", "val"), "'val' not found"),
        (("cat", "{set}", "--scale", "x"), "expected a ratio"),
        (("cat", "{set}", "--kye", "x"), "No such option '--kye'"),
        (("cat",), "Missing argument 'OUT'"),
    ],
)
def test_user_errors_are_one_line(tar_set, tmp_path, arguments, says):
    done = seg_shards(*(a.format(empty=tmp_path, set=tar_set) for a in arguments))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
