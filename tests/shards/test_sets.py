"""convert, merge, subset, diff: sets made of others hold the same samples; differences are told to the pixel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import shards
from shards import SettingsError, SoftLabel, soften
from shards.cli import command
from shards.codec import encode_hard, encode_meta
from shards.sets.convert import convert, plan_conversion
from shards.sets.diff import diff, share_gaps
from shards.sets.merge import merge, plan_merge
from shards.sets.newset import new_set
from shards.sets.plan import OpenSet
from shards.sets.subset import Choice, plan_subset, subset
from shards.softlabel import IGNORE
from shards.verify import verify
from tests.fakes import fake_camvid
from tests.prep.builds import run_build, tree
from tests.shards import build as builder
from tests.shards.build import build

OPTIONS = {"scales": "1,1/2", "shard_size": 22_000}


@pytest.fixture(scope="module")
def real_pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same source built by seg-prep in both formats, with a sample in quarantine."""
    folder = tmp_path_factory.mktemp("pair")
    root = fake_camvid(folder / "raw", {"train": 9, "val": 5})
    next((root / "train").iterdir()).write_bytes(b"")
    for format in ("webdataset", "zarr"):
        run_build("camvid", root, folder / format, format=format, **OPTIONS)
    return {format: folder / format for format in ("webdataset", "zarr")}


def converted(source: Path, out: Path) -> Path:
    opened = OpenSet.at(source)
    convert(opened, plan_conversion(opened, None), out)
    return out


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_a_converted_set_is_what_seg_prep_would_have_built(
    real_pair: dict[str, Path], tmp_path: Path, format: str
) -> None:
    other = "zarr" if format == "webdataset" else "webdataset"
    out = converted(real_pair[format], tmp_path / "out")
    assert tree(out) == tree(real_pair[other])
    ours, theirs = (json.loads((p / "stats.json").read_text())["splits"] for p in (out, real_pair[other]))
    assert ours == theirs


@pytest.mark.parametrize("scales", [(), ("1/2",)])
def test_a_subset_converts_and_back_to_the_same_bytes(
    real_pair: dict[str, Path], tmp_path: Path, scales: tuple[str, ...]
) -> None:
    """Its card says how many pixels each class has, and only its statistics can tell the converted set that."""
    subset(plan_subset(OpenSet.at(real_pair["webdataset"]), Choice(scales=scales, first=3), 1 << 20), tmp_path / "set")
    assert ("%" in (tmp_path / "set" / "README.md").read_text()) == (not scales)
    converted(converted(tmp_path / "set", tmp_path / "other"), tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "set")


def test_a_set_without_statistics_converts(tar_set: Path, tmp_path: Path) -> None:
    out = converted(tar_set, tmp_path / "out")
    assert list(verify(out)) == []
    assert not (out / "stats.json").exists()
    assert list(diff(OpenSet.at(tar_set), OpenSet.at(out), exact=True)) == []
    back = converted(out, tmp_path / "back")
    assert (back / "manifest.json").read_bytes() != b""
    for path in (p for p in tar_set.rglob("*") if p.suffix in (".tar", ".jsonl")):
        assert (back / path.relative_to(tar_set)).read_bytes() == path.read_bytes()


def test_a_damaged_source_is_an_error_and_leaves_nothing(tar_set: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    build(source)
    tar = source / "train/1/train-1-00001.tar"
    data = bytearray(tar.read_bytes())
    data[100] ^= 1  # in a header
    tar.write_bytes(data)
    with pytest.raises(shards.FormatError, match=r"train-1-00001\.tar"):
        converted(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


# -------------------------------------------------------------------------------------------------------------- merge


def shifted(folder: Path, by: int, monkeypatch: pytest.MonkeyPatch, name: str = "other") -> Path:
    """A set like the tiny one, of other samples under the same keys."""
    with monkeypatch.context() as patch:
        honest = builder.pair
        patch.setattr(builder, "pair", lambda i, *size: honest(i + by, *size))
        manifest = build(folder, samples=4, per_shard=3)
    shards.manifest.publish(manifest.model_copy(update={"dataset": name, "digest": ""}), folder)
    return folder


def test_merged_sets_hold_all_samples_of_both(tar_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = shifted(tmp_path / "second", 6, monkeypatch)
    sources = [OpenSet.at(tar_set), OpenSet.at(second)]
    steps = []
    plan = plan_merge(sources, None, prefix=True)
    manifest = merge(sources, plan, tmp_path / "both", lambda: steps.append(1))
    assert len(steps) == 2 * plan.steps
    assert manifest.dataset == "tiny-other"
    assert list(verify(tmp_path / "both")) == []
    for scale in manifest.scales:
        both = shards.open(tmp_path / "both", "train", scale)
        assert both.groups == [2, 2, 1, 3, 1]
        at = 0
        for source, prefix in ((tar_set, "tiny/"), (second, "other/")):
            for sample in shards.open(source, "train", scale):
                found = both[at]
                assert found.key == prefix + sample.key == both[found.key].key
                assert found.meta == {**sample.meta, "key": found.key}
                np.testing.assert_array_equal(found.image, sample.image)
                assert found.soft == sample.soft
                assert (found.hard is None) == (sample.hard is None)
                if sample.hard is not None:
                    np.testing.assert_array_equal(found.hard, sample.hard)
                at += 1
        assert at == len(both)
    figures = json.loads((tmp_path / "both" / "stats.json").read_text())["splits"]["train"]
    hard = np.stack([s.hard for s in shards.open(tmp_path / "both", "train")])
    assert figures["classes"][1]["share"] == pytest.approx((hard == 1).mean())
    assert figures["void_share"] == pytest.approx((hard == IGNORE).mean())


def test_keys_that_meet_are_refused_and_named(tar_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = shifted(tmp_path / "second", 6, monkeypatch)
    sources = [OpenSet.at(tar_set), OpenSet.at(second)]
    with pytest.raises(SettingsError, match=r"key 'city/test_000' twice \(4 such keys\): give --prefix"):
        merge(sources, plan_merge(sources, None, prefix=False), tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("without", ["json", "key"])
def test_samples_that_do_not_say_their_key_get_no_prefix(
    tar_set: Path, tmp_path: Path, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = builder.members

    def members(*given: object) -> dict[str, bytes]:
        found = honest(*given)
        return {**found, "json": b"{}"} if without == "key" else {n: d for n, d in found.items() if n != "json"}

    monkeypatch.setattr(builder, "members", members)
    odd = build(tmp_path / "odd")
    shards.manifest.publish(odd.model_copy(update={"dataset": "odd", "digest": ""}), tmp_path / "odd")
    sources = [OpenSet.at(tmp_path / "odd"), OpenSet.at(tar_set)]
    with pytest.raises(shards.FormatError, match=r"test-1-00000.tar sample city/test_000 \[json\]: metadata"):
        merge(sources, plan_merge(sources, None, prefix=True), tmp_path / "both")
    if without == "json":  # of an image without a label it says what is shown
        with pytest.raises(shards.FormatError, match=r"city/test_000 \[json\]: metadata"):
            plan_subset(sources[0], Choice(splits=("test",), classes=("car",)), 1 << 20)
        with pytest.raises(shards.FormatError, match=r"city/test_000 \[json\]: metadata"):
            shards.statistics.count_labels(tmp_path / "odd", "test", "1")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"filter": "bilinear"}, "differ in filter"),
        ({"protocol": {"x": 1}}, "differ in protocol"),
    ],
)
def test_sets_that_mean_different_things_are_not_merged(
    tar_set: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    other = build(tmp_path / "other")
    shards.manifest.publish(other.model_copy(update={**change, "digest": ""}), tmp_path / "other")
    with pytest.raises(SettingsError, match=says):
        plan_merge([OpenSet.at(tar_set), OpenSet.at(tmp_path / "other")], None, prefix=True)


# ------------------------------------------------------------------------------------------------------------- subset


def test_a_subset_holds_what_was_chosen(shard_set: Path, tmp_path: Path) -> None:
    source = OpenSet.at(shard_set)
    keys = source.keys("train")
    choice = Choice(splits=("train",), scales=("1/2",), keys=(keys[3], keys[0]))
    manifest = subset(plan_subset(source, choice, 1 << 20), tmp_path / "out")
    assert list(verify(tmp_path / "out")) == []
    assert manifest.scales == ["1/2"]
    assert list(manifest.splits) == ["train"]
    assert manifest.format == source.manifest.format
    found = shards.open(tmp_path / "out", "train", "1/2")
    assert found.keys() == [keys[0], keys[3]]
    original = shards.open(shard_set, "train", "1/2")
    assert [found.members(i) for i in range(2)] == [original.members(i) for i in (0, 3)]


def test_a_draw_is_a_function_of_set_and_seed(tar_set: Path, tmp_path: Path) -> None:
    source = OpenSet.at(tar_set)

    def drawn(seed: int) -> list[int]:
        plan = plan_subset(source, Choice(splits=("train",), drawn=3, seed=seed), 1 << 20)
        return plan.splits[0].parts[0].indices.tolist()

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 3
    assert all(chosen == sorted(set(chosen)) and len(chosen) == 3 for chosen in map(drawn, range(20)))


def test_samples_that_show_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builder.pair

    def pair(i: int, *size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        image, hard = honest(i, *size)
        return image, np.where((hard == 2) & (i % 2 == 0), 0, hard).astype(np.uint16)

    monkeypatch.setattr(builder, "pair", pair)
    build(tmp_path / "set")
    source = OpenSet.at(tmp_path / "set")
    plan = plan_subset(source, Choice(splits=("train",), classes=("pole",)), 1 << 20)
    assert plan.splits[0].parts[0].indices.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice(splits=("nope",)), "split 'nope' not found: the set holds test, train"),
        (Choice(scales=("1/16",)), "scale '1/16' not found"),
        (Choice(classes=("cow",)), "class 'cow' not found: the set holds road, car, pole"),
        (Choice(keys=("k",)), "key 'k' not found"),
    ],
)
def test_choices_that_name_what_is_not_there(tar_set: Path, choice: Choice, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        plan_subset(OpenSet.at(tar_set), choice, 1 << 20)


def test_shards_of_a_subset_keep_the_limit(tar_set: Path, tmp_path: Path) -> None:
    source = OpenSet.at(tar_set)
    manifest = subset(plan_subset(source, Choice(splits=("train",)), 12_000), tmp_path / "out")
    sizes = [shard.bytes for shard in manifest.splits["train"].scales["1"].shards]
    assert len(sizes) > 1
    assert all(size <= 12_000 for size in sizes)


# --------------------------------------------------------------------------------------------------------------- diff


def test_equal_samples_in_two_formats_do_not_differ(tar_set: Path, zarr_set: Path) -> None:
    steps: list[int] = []
    assert list(diff(OpenSet.at(tar_set), OpenSet.at(zarr_set), exact=True, advance=lambda: steps.append(1))) == []
    assert len(steps) == 30


def test_changed_pixels_are_counted(tar_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builder.pair

    def pair(i: int, *size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        image, hard = honest(i, *size)
        if i == 2:
            image, hard = image.copy(), hard.copy()
            image[0, :5, 1] ^= 4
            hard[0, :3] = 1
        return image, hard

    monkeypatch.setattr(builder, "pair", pair)
    build(tmp_path / "other")
    found = {(d.split, d.scale, d.what) for d in diff(OpenSet.at(tar_set), OpenSet.at(tmp_path / "other"))}
    assert ("train", "1", "image: 5 of 1536 pixels differ, by 4 at most") in found
    assert ("train", "1", "label: 3 of 1536 pixels differ, most of them 0 -> 1") in found
    assert ("train", "1", "instances: 3 of 1536 pixels differ, most of them 0 -> 1") in found
    assert ("train", "1/2", "soft label: 2 of 384 cells differ, a share by 0.5000 at most") in found
    assert ("test", "1", "image: 5 of 1536 pixels differ, by 4 at most") in found
    assert not any(what.startswith("label") for split, _, what in found if split == "test")


def test_metadata_keys_and_order(tar_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builder.members

    def members(i: int, scale: str, split: str, key: str) -> dict[str, bytes]:
        found = honest(i, scale, split, key)
        meta = json.loads(found["json"])
        if i == 1:
            found["json"] = encode_meta({**meta, "source": "elsewhere.png", "weak": [1]})
        if i == 3 and "seg.png" in found:  # the same pixels in other bytes
            found["seg.png"] = recompressed(found["seg.png"])
        return found

    monkeypatch.setattr(builder, "members", members)
    build(tmp_path / "other", samples=4)
    a, b = OpenSet.at(tar_set), OpenSet.at(tmp_path / "other")
    found = [str(d) for d in diff(a, b)]
    key = a.keys("train")
    assert f"train {key[4]}: in the first set only" in found
    assert f"train 1 {key[1]}: metadata: source" in found
    assert f"train 1/4 {key[1]}: image-level label: classes [0, 1] and [1]" in found
    assert not any(key[3] in line for line in found)
    exact = [str(d) for d in diff(a, b, exact=True)]
    assert f"train 1 {key[3]}: other bytes, equal when decoded: seg.png" in exact


def recompressed(png: bytes) -> bytes:
    """The same picture with other compression."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).save(out, "PNG", compress_level=1)
    assert out.getvalue() != png
    return out.getvalue()


def republished(folder: Path, **changes: object) -> OpenSet:
    """The tiny set with another manifest, sealed anew."""
    manifest = build(folder)
    shards.manifest.publish(manifest.model_copy(update={**changes, "digest": ""}), folder)
    return OpenSet.at(folder)


def test_class_tables_and_labels_that_differ(tar_set: Path, tmp_path: Path) -> None:
    table = shards.ClassTable.make(["road", "van", "pole"])
    other = republished(tmp_path / "other", classes=table.to_dict(), classes_digest=table.digest)
    assert "class tables differ: class 1: 'car' and 'van'" in {str(d) for d in diff(OpenSet.at(tar_set), other)}
    longer = shards.ClassTable.make([*builder.CLASSES.names, "tree"])
    third = republished(tmp_path / "third", classes=longer.to_dict(), classes_digest=longer.digest)
    assert "class tables differ: 3 and 4 classes" in {str(d) for d in diff(OpenSet.at(tar_set), third)}
    plain = shards.ClassTable.make(builder.CLASSES.names)
    fourth = republished(tmp_path / "fourth", classes=plain.to_dict(), classes_digest=plain.digest)
    heads = [str(d) for d in diff(OpenSet.at(tar_set), fourth)]
    assert heads == ["class tables differ: equal names, other categories, things"]
    splits = other.manifest.splits
    bare = republished(
        tmp_path / "bare", splits={**splits, "test": splits["test"].model_copy(update={"labelled": True})}
    )
    assert "test: labelled in one of the sets only" in {str(d) for d in before_errors(OpenSet.at(tar_set), bare)}
    with pytest.raises(SettingsError, match="split 'test' is labelled in some of the sets"):
        plan_merge([OpenSet.at(tar_set), bare], None, prefix=True)


def before_errors(a: OpenSet, b: OpenSet) -> list[object]:
    """Differences up to the first sample that cannot be decoded."""
    found: list[object] = []
    with contextlib.suppress(shards.FormatError):
        found.extend(difference for difference in diff(a, b))
    return found


def test_another_order_is_told(tar_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builder._write_tar
    monkeypatch.setattr(builder, "_write_tar", lambda *given: honest(*given[:3], given[3][::-1], given[4]))
    build(tmp_path / "other")
    found = [str(d) for d in diff(OpenSet.at(tar_set), OpenSet.at(tmp_path / "other"))]
    assert sorted(found) == [f"{split}: samples are stored in another order" for split in ("test", "train")]


def test_foreign_statistics_are_refused(tar_set: Path, tmp_path: Path) -> None:
    for text in ('{"splits": {"train": {"classes": []}}}', '{"splits": []}', "[", '{"splits": {"a": 3}}'):
        folder = tmp_path / str(abs(hash(text)))
        build(folder)
        (folder / "stats.json").write_text(text)
        with pytest.raises(shards.FormatError, match=r"stats\.json: not the statistics of this set"):
            converted(folder, tmp_path / "out")


def test_share_gaps_are_those_of_dense_labels() -> None:
    random = np.random.default_rng(3)
    for _ in range(30):
        a, b = (random.integers(0, 4, (12, 16)).astype(np.uint16) for _ in range(2))
        b = np.where(random.random(a.shape) < 0.8, a, b).astype(np.uint16)
        a[0, 0] = IGNORE
        one, two = soften(a, "1/4", "box"), soften(b, "1/4", "triangle" if random.random() < 0.5 else "box")
        kept = [soft.dense(4, "keep") for soft in (one, two)]
        dense = [np.concatenate([shares, 1 - shares.sum(-1, keepdims=True)], -1) for shares in kept]
        expected = np.abs(dense[0].astype(np.float64) - dense[1]).max(-1).ravel()
        np.testing.assert_allclose(share_gaps(one, two), expected, atol=1e-6)


def test_equal_shares_over_other_denominators_do_not_differ() -> None:
    a = SoftLabel.from_hard(np.zeros((4, 4), np.uint16))
    thirds = np.tile(np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0]], np.uint16), (2, 2))
    same = soften(thirds, "1/3", "box")
    doubled = SoftLabel(same.base, 36, same.cells, same.starts, same.ids, same.weights * np.uint16(4))
    assert same.denominator == 9
    assert not share_gaps(same, doubled).any()
    hard = np.zeros((8, 8), np.uint16)
    hard[:, ::2] = 1
    one = soften(hard, "1/2", "box")
    assert not share_gaps(one, one).any()
    assert share_gaps(a, one).max() == 0.5


# ---------------------------------------------------------------------------------------------------------- publishing


def test_nothing_appears_before_it_is_whole(tmp_path: Path) -> None:
    def stopped() -> None:
        with new_set(tmp_path / "out") as folder:
            (folder / "half").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, tar_set: Path) -> None:
    code = "import sys, time; from pathlib import Path; from shards.sets.newset import new_set\n"
    code += "with new_set(Path(sys.argv[1])) as f: (f / 'half').mkdir(); (f / 'half/x').write_text('x'); time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")])
    half = tmp_path / ".out.partial" / "half" / "x"
    end = time.monotonic() + 60
    while not half.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(SettingsError, match="another seg-shards is making"), new_set(tmp_path / "out"):
        pass
    assert half.exists()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    converted(tar_set, tmp_path / "out")
    assert list(verify(tmp_path / "out")) == []
    assert not (tmp_path / ".out.partial").exists()


# ------------------------------------------------------------------------------------------------------------ commands


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value or 0), result.output


def test_the_commands(real_pair: dict[str, Path], tmp_path: Path) -> None:
    tar = real_pair["webdataset"]
    assert run("convert", tar, "--out", tmp_path / "z", "--quiet") == (0, "")
    assert run("diff", tar, tmp_path / "z", "--bytes", "--quiet") == (0, "no difference\n")
    code, text = run("subset", tar, "--out", tmp_path / "s", "--split", "train", "--first", 4, "--quiet")
    assert (code, text) == (0, "")
    code, text = run("diff", tar, tmp_path / "s", "--limit", 1, "--quiet", "--json", tmp_path / "d.json")
    assert code == 1
    lines = text.splitlines()
    assert lines[0] == "split val is in the first set only"
    assert lines[-1] == "5 differences (4 not printed)"
    assert len(json.loads((tmp_path / "d.json").read_text())) == 5
    (tmp_path / "keys.txt").write_text("\n".join(OpenSet.at(tar).keys("val")[1:3]) + "\n\n")
    assert run("subset", tar, "--out", tmp_path / "k", "--split", "val", "--keys", tmp_path / "keys.txt")[0] == 0
    assert len(shards.open(tmp_path / "k", "val")) == 2
    code, text = run("merge", tmp_path / "s", tmp_path / "k", "--out", tmp_path / "m", "--name", "both", "--quiet")
    assert code == 0
    assert {n: s.samples for n, s in shards.load_manifest(tmp_path / "m").splits.items()} == {"train": 4, "val": 2}
    for folder in ("z", "s", "k", "m"):
        assert list(verify(tmp_path / folder)) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["merge", "--name", "my set"], "--name 'my set' found; expected at most 64 letters, digits, _ and -"),
        (["merge", "--name", ""], "--name '' found"),
        (["merge", "--name", "both\n"], "found; expected at most 64 letters"),
        (["merge"], "give --prefix to put each set's name before its keys"),
        (["merge", "--prefix"], "the sets have one name, so --prefix cannot tell them apart; choose other samples"),
        (["subset", "--shard-size", "nan"], "--shard-size nan found: expected more than 0 and at most 1,000,000 MB"),
        (["subset", "--shard-size", "inf"], "--shard-size inf found"),
        (["subset", "--shard-size", "0"], "--shard-size 0 found"),
        (["subset", "--out", "s3://bucket/set"], "s3://bucket/set found for a place to write to; expected a path"),
        (["cat", "--save", "s3://bucket/set"], "s3://bucket/set found for a place to write to; expected a path"),
    ],
)
def test_options_that_cannot_be(
    tar_set: Path, tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = words
    sources = [tar_set, tar_set] if name == "merge" else [tar_set]
    out = [] if "--out" in options or name == "cat" else ["--out", "new"]
    with pytest.raises(SettingsError) as caught:
        run(name, *sources, *out, *options)
    assert says in str(caught.value)
    assert list(tmp_path.rglob("*")) == []


def test_an_output_that_is_there_is_refused_before_anything_is_read(tar_set: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for words in (("convert", tar_set), ("merge", tar_set, tar_set), ("subset", tar_set)):
        with pytest.raises(SettingsError, match="is there already: expected a new or empty folder"):
            run(*words, "--out", tmp_path / "full")
    with pytest.raises(SettingsError, match="is webdataset already: expected --format zarr"):
        run("convert", tar_set, "--out", tmp_path / "new", "--format", "webdataset")
    assert (tmp_path / "full" / "mine").read_text() == "x"


def test_hard_labels_stay_what_they_are(tar_set: Path) -> None:
    """The oracle's own check: the tiny set's labels are those of `pair`."""
    _, hard = builder.pair(0)
    assert shards.open(tar_set, "train").members(0)["seg.png"] == encode_hard(hard, 3)
