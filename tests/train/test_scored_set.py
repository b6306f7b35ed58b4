"""The shard set that is scored is opened once; data.check holds for it, and may change when a run goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UserError
from shards.local import LocalStore
from shards.manifest import MANIFEST
from tests.train.conftest import recipe
from tests.train.shardset import CLASSES, scene, write
from train.cli_ladder import _open
from train.evaluate import open_for_scoring
from train.run import Run, check_same, create
from train.targets import Choice, open_categories, open_target


def test_a_set_published_anew_meanwhile_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raws = [scene(i) for i in range(3)]
    old = write(tmp_path / "old", {"val": raws})
    new = write(tmp_path / "new", {"val": raws[::-1]})
    read, small = [], LocalStore.small
    monkeypatch.setattr(LocalStore, "small", lambda self, path, most: read.append(path) or small(self, path, most))
    split = open_for_scoring(old, "val", "1/2", CLASSES, "run")
    shutil.copy(new / MANIFEST, old / MANIFEST)
    assert [example.key for example in split.examples(range(3))] == [raw.key for raw in raws]
    assert read == [MANIFEST]


@pytest.mark.parametrize("check", [True, False])
def test_the_recipe_says_whether_files_are_checked(shard_set: Path, tmp_path: Path, check: bool) -> None:
    described = ({"path": "x", "dataset": "x", "digest": "x", "filter": "box"},)
    run = Run(tmp_path / "run", recipe(data={"check": check}), CLASSES, described)
    create(run)
    opened: list[Any] = [
        open_target(run, shard_set, "val", "1/2", Choice()),
        open_categories(run, shard_set, "val", "1/2", None),
        _open(run.folder, shard_set, "val")[1],
    ]
    assert [split.store.checks for split in opened] == [check] * 3
    assert [split.dataset("1").store is split.store for split in opened] == [True] * 3


def test_checking_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, recipe(), CLASSES, ())
    other = replace(run, recipe=recipe(data={"check": False}))
    check_same(run, other)
    check_same(other, run)
    with pytest.raises(UserError, match=r"data\.window"):
        check_same(run, replace(run, recipe=recipe(data={"check": False, "window": 7})))
