"""verify: sound sets pass, and any flipped bit, truncation or broken invariant is found and named."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from shards import FormatError, SoftLabel
from shards.codec import encode_soft
from shards.manifest import publish
from shards.verify import count_steps, verify
from tests.shards import build as builder
from tests.shards.build import build


def test_a_sound_set_has_no_problems(shard_set):
    steps = 0

    def advance():
        nonlocal steps
        steps += 1

    assert list(verify(shard_set, advance)) == []
    assert steps == count_steps(shard_set)


def test_flipped_bits_and_truncations_are_found_and_named(shard_set, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shard_set, copy)
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    chance = random.Random(1)
    for n in range(60):
        path = chance.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(damaged) if n % 3 else original[: chance.randrange(len(original))])
        try:
            problems = list(verify(copy))
        except FormatError as error:
            problems = [str(error)]
        assert any(path.name in p for p in problems), (path, problems)
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("suffix", "change", "says"),
    [
        ("soft.npz", lambda data, other: other, "not what its hard label gives"),
        ("seg.png", lambda data, other: other, "not what its hard label gives"),
        ("json", lambda data, other: other, "names the key"),
        ("png", lambda data, other: data[: len(data) // 2], "damaged image"),
        ("soft.npz", None, "no label"),
        (
            "soft.npz",
            lambda data, other: encode_soft(SoftLabel.from_hard(np.full((16, 24), 3, np.uint16))),
            "class id 3",
        ),
        ("json", lambda data, other: data.replace(b"[32,48]", b"[33,48]"), "does not fit a source"),
    ],
)
def test_broken_invariants_with_good_checksums_are_found(tmp_path, monkeypatch, suffix, change, says):
    """A builder with a bug: checksums are right, content is not."""
    honest = builder.members

    def lying(i, scale, split, key):
        members = honest(i, scale, split, key)
        if i == 1 and split == "train" and suffix in members and (scale == "1/2" or suffix == "seg.png"):
            other = honest(2, scale, split, "city/other")[suffix]
            members[suffix] = change(members[suffix], other) if change else b""
            if change is None:
                del members[suffix]
        return members

    monkeypatch.setattr(builder, "members", lying)
    build(tmp_path)
    problems = list(verify(tmp_path))
    assert problems
    assert all(says in p and "train_001" in p for p in problems), problems


def test_exchanged_splits_are_found(tmp_path):
    manifest = build(tmp_path)
    splits = {"train": manifest.splits["test"], "test": manifest.splits["train"]}
    publish(manifest.model_copy(update={"splits": splits}), tmp_path)
    problems = list(verify(tmp_path))
    assert sum("metadata names the split 'test'" in problem for problem in problems) == 15
    assert sum("metadata names the split 'train'" in problem for problem in problems) == 15


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    build(tmp_path / "set")
    card = tmp_path / "set/README.md"
    shutil.move(card, tmp_path / "outside.md")
    card.symlink_to(tmp_path / "outside.md")
    assert any("leaves the folder" in p for p in verify(tmp_path / "set"))
