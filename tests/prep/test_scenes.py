"""Procedural scenes: Cityscapes' layout and ids, the same pixels by seed, written once, readable by the demo reader."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prep.datasets import load_reader
from prep.scenes import write as scenes
from prep.scenes.canvas import Camera, Canvas
from prep.scenes.street import Street
from prep.taxonomy import rows
from shards import IGNORE
from shards.errors import LayoutError, SettingsError

SMALL = (64, 128)


def digests(root: Path) -> dict[str, str]:
    """Path -> sha256 of every file below a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def generate(root: Path, *options: str) -> None:
    """Run the command as a person would."""
    arguments = [str(root), "--train", "3", "--val", "2", "--size", "64x128", "--quiet", *options]
    result = CliRunner().invoke(scenes.cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    generate(folder)
    return folder


def test_scene_has_the_documented_arrays() -> None:
    image, label, instance = scenes.scene(0, "train", 0, SMALL)
    assert (image.dtype, label.dtype, instance.dtype) == (np.uint8, np.uint8, np.uint16)
    assert image.shape == (*SMALL, 3)
    assert label.shape == instance.shape == SMALL


def test_scene_is_a_function_of_seed_split_and_number() -> None:
    first = scenes.scene(3, "val", 5, SMALL)
    for a, b in zip(first, scenes.scene(3, "val", 5, SMALL), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in ((4, "val", 5), (3, "train", 5), (3, "val", 6)):
        assert not np.array_equal(first[0], scenes.scene(*other, SMALL)[0])


def test_scenes_show_every_class_and_void() -> None:
    """All fourteen classes within eight scenes of the default size, and pixels that no class owns."""
    ids = {int(r["id"]): r["to"] for r in rows("demo-34_to_14")}
    seen = {ids[i] for n in range(8) for i in np.unique(scenes.scene(0, "train", n, (256, 512))[1])}
    assert seen == {str(i) for i in range(14)} | {"void"}


def test_instances_agree_with_labels() -> None:
    """Things carry id * 1000 + n, all else its plain id, as in *_gtFine_instanceIds.png."""
    for number in range(4):
        _, label, instance = scenes.scene(0, "train", number, (128, 256))
        thing = label >= 24
        np.testing.assert_array_equal(instance[~thing], label[~thing])
        np.testing.assert_array_equal(instance[thing] // 1000, label[thing])


def test_labels_are_hard_where_images_mix() -> None:
    """A pole whose edges fall inside of pixels: two image columns are mixtures, no label is."""
    canvas = Canvas(8, 8, Camera(16, 8, 8, 1), (0, 0, 0))
    canvas.colour[:], canvas.label[:] = 200, 23
    canvas.colour[:, 5:9], canvas.label[:, 5:9] = 0, 17  # drawn cells 5..8: column 3, half of 2 and of 4
    street = Street(road=4, walk=6, front=6, sun=1, light=1, tint=(1, 1, 1))
    image, label, _ = scenes.photograph(canvas, np.random.default_rng(0), street)
    np.testing.assert_array_equal(label[0], [23, 23, 23, 17, 17, 23, 23, 23])
    columns = image.mean((0, 2))
    np.testing.assert_allclose(columns, [200, 200, 100, 0, 100, 200, 200, 200], atol=6)  # the sensor adds noise


def test_thin_things_are_thin() -> None:
    """Poles of one to four pixels, the structures that soft labels keep and nearest-neighbour labels lose."""
    widths = []
    for number in range(6):
        pole = scenes.scene(0, "train", number, (256, 512))[1] == 17
        for row in pole[40:120:8]:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
            widths += list(edges[1::2] - edges[::2])
    assert 1 <= np.median(widths) <= 4


def test_layout_is_that_of_cityscapes(root: Path) -> None:
    image = root / "leftImg8bit/train/ahorn/ahorn_000000_000019_leftImg8bit.png"
    label = root / "gtFine/train/ahorn/ahorn_000000_000019_gtFine_labelIds.png"
    instances = root / "gtFine/train/ahorn/ahorn_000000_000019_gtFine_instanceIds.png"
    with Image.open(image) as a, Image.open(label) as b, Image.open(instances) as c:
        assert (a.mode, a.size, b.mode, b.size, c.size) == ("RGB", (128, 64), "L", (128, 64), (128, 64))
        assert c.mode in {"I;16", "I"}
        np.testing.assert_array_equal(np.asarray(a), scenes.scene(0, "train", 0, SMALL)[0])  # RGB stays RGB
    assert len(list((root / "leftImg8bit/train").rglob("*.png"))) == 3
    assert len(list((root / "gtFine/val").rglob("*.png"))) == 4


def test_second_run_writes_only_what_is_missing(root: Path, tmp_path: Path) -> None:
    generate(tmp_path)
    whole = digests(tmp_path)
    assert whole == digests(root)
    lost = tmp_path / "leftImg8bit/val/tanne/tanne_000000_000019_leftImg8bit.png"
    lost.unlink()
    kept = tmp_path / "leftImg8bit/val/ulme/ulme_000000_000019_leftImg8bit.png"
    before = kept.stat().st_mtime_ns
    generate(tmp_path)
    assert digests(tmp_path) == whole
    assert kept.stat().st_mtime_ns == before


def test_folder_of_other_settings_is_refused(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"'seed': 0.*'seed': 1.*another folder"):
        generate(root, "--seed", "1")


@pytest.mark.parametrize("size", ["big", "256", "5x5", "256x512x3", "99999x1"])
def test_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(SettingsError, match="256x512"):
        scenes.parse_size(size)


def test_demo_reader_reads_the_scenes(root: Path) -> None:
    reader = load_reader("demo")
    assert reader.splits(root) == ("train", "val")
    samples = list(reader.samples(root, "train"))
    assert [s.key for s in samples] == [
        "ahorn/ahorn_000000_000019",
        "birke/birke_000000_000019",
        "erle/erle_000000_000019",
    ]
    sample = samples[0]
    assert sample.label is not None
    assert sample.instances is not None
    hard = reader.decode_label(sample.label.read_bytes(), "here")
    ids = scenes.scene(0, "train", 0, SMALL)[1]
    assert len(reader.classes) == 14
    assert reader.classes.names[int(hard[ids == 7][0])] == "road"
    assert (hard[ids == scenes.EGO_VEHICLE] == IGNORE).all()
    instances = reader.decode_instances(sample.instances.read_bytes(), hard, "here")
    assert ((instances > 0) == np.isin(ids, [24, 25, 26, 33])).all()


def test_demo_reader_says_how_to_get_scenes(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"python -m prep\.scenes"):
        load_reader("demo").splits(tmp_path)


def test_demo_tables_carry_their_counts() -> None:
    assert len(rows("demo-14")) == 14
    assert sorted({r["to"] for r in rows("demo-34_to_14")} - {"void"}, key=int) == [str(i) for i in range(14)]
    assert len(rows("demo-34_to_14")) == 34


def test_protocol_names_only_things_of_the_table() -> None:
    classes = load_reader("demo").classes
    things = {n for n, thing in zip(classes.names, classes.things, strict=True) if thing}
    assert set(load_reader("demo").protocol["instance_sizes"]) == things
