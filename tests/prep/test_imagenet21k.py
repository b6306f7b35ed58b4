"""The imagenet21k reader: layouts, variants, class names, mappings, and what must not pass in silence."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shards
from prep.datasets import load_reader
from prep.wnids import variants
from shards.errors import FormatError, LayoutError, SettingsError, UserError
from shards.manifest import load_manifest
from shards.verify import verify
from tests.fakes import taxonomy_rows
from tests.fakes_imagenet import (
    WNIDS,
    fake_folders,
    fake_kaggle,
    fake_tars,
    fake_tiny,
    fake_whole_tar,
    jpeg,
    pictures,
    synset_tars,
    tar_bytes,
    write,
)
from tests.prep.builds import SegPrep, quarantine, run_build
from tests.real import real_data

READER = load_reader("imagenet21k")


def built(root: Path, out: Path, split: str = "train", **options: Any) -> dict[str, Any]:
    """{key: sample} of a build at scale 1."""
    run_build("imagenet21k", root, out, scales="1", **options)
    return {sample.key: sample for sample in shards.open(out, split=split, scale="1")}


def wnid_of(out: Path, sample: Any) -> str:
    """The wnid that a sample's weak label says."""
    (index,) = sample.weak
    return str(load_manifest(out).class_table.wnids[int(index)])


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def as_mixture(root: Path) -> Path:
    """Two wnids as folders, one as a tar, one in a tar of tars."""
    tars = synset_tars()
    fake_folders(root, {wnid: WNIDS[wnid] for wnid in ("n02084071", "n12345678")})
    write(root / "n02121808.tar", tars["n02121808.tar"])
    write(root / "more.tar", tar_bytes({"some/folder/n04399382.tar": tars["n04399382.tar"]}))
    return root


@pytest.mark.parametrize("make", [fake_folders, fake_tars, fake_whole_tar, as_mixture])
def test_all_layouts_give_the_same_samples(tmp_path: Path, make: Any) -> None:
    root = make(tmp_path / "in")
    assert READER.bind(root, {}).splits(root) == ("train",)
    found = built(root, tmp_path / "out")
    want = pictures()
    assert list(found) == sorted(want)
    for key, sample in found.items():
        assert np.array_equal(sample.image, shards.codec.decode_image(want[key]))
        assert np.abs(sample.image.astype(int) - decoded(want[key])).max() <= 2
        assert wnid_of(tmp_path / "out", sample) == key.split("/")[0]
        assert sample.hard is None
        assert sample.soft is None
    assert quarantine(tmp_path / "out") == []
    assert list(verify(tmp_path / "out")) == []


def test_folders_and_tars_give_the_same_shards(tmp_path: Path) -> None:
    """The source's path aside, which each sample's meta holds."""
    outs = []
    for make in (fake_folders, fake_tars, fake_whole_tar):
        samples = built(make(tmp_path / make.__name__), tmp_path / f"{make.__name__}-out")
        outs.append([(s.key, list(s.weak), s.image.tobytes(), s.meta["size"]) for s in samples.values()])
    assert outs[0] == outs[1] == outs[2]


def test_sources_are_named_below_the_root(tmp_path: Path) -> None:
    key = "n02121808/n02121808_7"
    for make, source in (
        (fake_folders, f"{key}.JPEG"),
        (fake_tars, "n02121808.tar/n02121808_7.JPEG"),
        (fake_whole_tar, "fall11_whole.tar/n02121808.tar/n02121808_7.JPEG"),
    ):
        sample = built(make(tmp_path / make.__name__), tmp_path / f"{make.__name__}-out")[key]
        assert sample.meta["source"] == source


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = fake_tiny(tmp_path / "tiny")
    assert READER.splits(root) == ("train", "val")
    train = built(root, tmp_path / "out")
    assert Counter(key.split("/")[0] for key in train) == Counter(WNIDS)
    assert all(wnid_of(tmp_path / "out", sample) == key.split("/")[0] for key, sample in train.items())
    val = {s.key: s for s in shards.open(tmp_path / "out", split="val", scale="1")}
    assert list(val) == sorted(val)
    rows = [line.split("\t") for line in (root / "val/val_annotations.txt").read_text().splitlines()]
    assert sorted(val) == sorted(f"{row[1]}/{row[0].removesuffix('.JPEG')}" for row in rows)
    for key, sample in val.items():
        wnid = key.split("/")[0]
        assert wnid_of(tmp_path / "out", sample) == wnid
        assert np.array_equal(sample.image, shards.codec.decode_image(jpeg(wnid, 100)))
    assert quarantine(tmp_path / "out") == []
    assert load_manifest(tmp_path / "out").protocol["ignored"] == {"count": 2, "first": ["test/", "wnids.txt"]}


@pytest.mark.parametrize("below", ["", "ILSVRC"])
def test_imagenet_1k_with_flat_validation_images(tmp_path: Path, below: str) -> None:
    root = fake_kaggle(tmp_path / "k") / below
    if below:  # the list lies one folder up then, and nothing is looked for outside of the root
        shutil.move(tmp_path / "k/LOC_val_solution.csv", root)
    assert READER.splits(root) == ("train", "val")
    train = built(root, tmp_path / "out")
    assert sorted(train) == sorted(pictures())
    val = {s.key: s for s in shards.open(tmp_path / "out", split="val", scale="1")}
    assert sorted(val) == sorted(f"{wnid}/ILSVRC2012_val_{90 - n:08d}" for n, wnid in enumerate(WNIDS))
    assert all(wnid_of(tmp_path / "out", sample) == key.split("/")[0] for key, sample in val.items())


def test_the_split_folders_of_imagenet_21k_p(tmp_path: Path) -> None:
    root = tmp_path / "p/imagenet21k_resized"
    fake_folders(root / "imagenet21k_train", WNIDS)
    fake_folders(root / "imagenet21k_val", {"n02084071": 1})
    fake_folders(root / "imagenet21k_small_classes", {"n01503061": 1})
    for start in (root, root.parent):
        reader = READER.bind(start, {})
        assert reader.splits(start) == ("train", "val")
        assert [s.key for s in reader.samples(start, "val")] == ["n02084071/n02084071_0"]
        assert reader.protocol["ignored"]["first"] == ["imagenet21k_small_classes/"]
        assert reader.classes.wnids == tuple(sorted(WNIDS))


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    root = tmp_path / "in"
    fake_folders(root / "train", {"n02121808": 1})
    fake_folders(root / "val", {"n02084071": 1})
    reader = READER.bind(root, {})
    assert reader.classes.wnids == ("n02084071", "n02121808")
    assert [s.weak for s in reader.samples(root, "train")] == [(1,)]
    assert [s.weak for s in reader.samples(root, "val")] == [(0,)]


# Variants and names


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("ImageNet-21K fall11", "imagenet21k-21841.tsv", 21841),
        ("ImageNet-21K with two more wnids (goog)", "imagenet21k-goog-21843-wnids.txt", 21843),
        ("ImageNet-21K-P fall11 (miil)", "imagenet21k-miil-11221-wnids.txt", 11221),
        ("ImageNet-21K-P winter21 (miil)", "imagenet21k-miil-winter21-10450-wnids.txt", 10450),
        ("ImageNet-1k (ILSVRC2012)", "imagenet1k-wnids.txt", 1000),
    ],
)
def test_fingerprints_are_those_of_the_published_lists(name: str, file: str, count: int) -> None:
    lines = real_data(f"taxonomies/{file}").read_text().splitlines()[1:]
    wnids = [line.split("\t")[0] for line in lines]
    assert len(wnids) == count
    assert variants.recognise(wnids[::-1]) == variants.Variant(name, True)
    assert not variants.recognise(wnids[1:]).known
    table = variants.classes_of(wnids)
    assert len(set(table.names)) == count
    assert table.wnids == tuple(sorted(wnids))
    assert not [n for n, w in zip(table.names, table.wnids, strict=True) if n == w], "a wnid without a name"


def test_the_shipped_table_is_fall11() -> None:
    assert variants.recognise([row["wnid"] for row in taxonomy_rows("imagenet21k-21841")]).name == "ImageNet-21K fall11"
    assert len(READER.classes) == 21841
    assert "21,841" in READER.title


def test_a_variant_is_recognised_from_folders(tmp_path: Path) -> None:
    wnids = real_data("taxonomies/imagenet1k-wnids.txt").read_text().splitlines()[1:]
    for wnid in wnids:
        (tmp_path / wnid).mkdir()
    reader = READER.bind(tmp_path, {})
    assert reader.title == "ImageNet-1k (ILSVRC2012), image-level labels, 1,000 classes"
    assert reader.protocol["variant"] == "ImageNet-1k (ILSVRC2012)"
    (tmp_path / wnids[7]).rmdir()
    reader = READER.bind(tmp_path, {})
    assert reader.protocol["variant"] == "999 wnids, 998 of them in ImageNet-21K fall11"  # the teddy is not
    assert reader.title == f"ImageNet, {reader.protocol['variant']}, image-level labels, 999 classes"


def test_names_do_not_depend_on_which_wnids_are_there(tmp_path: Path) -> None:
    names = {}
    for number, wnids in enumerate((WNIDS, {"n12345678": 1, "n04399382": 1}, {"n02012849": 1, "n02084071": 1})):
        root = fake_folders(tmp_path / str(number), wnids)
        table = READER.bind(root, {}).classes
        for wnid, name in zip(table.wnids, table.names, strict=True):
            assert names.setdefault(wnid, name) == name
    shipped = {row["wnid"]: row["name"] for row in taxonomy_rows("imagenet21k-21841")}
    assert names.pop("n04399382") == "teddy (teddy.n.01)"  # in WordNet, not among the 21,841
    assert names.pop("n12345678") == "n12345678"  # in neither
    assert names == {wnid: shipped[wnid] for wnid in names}


def test_the_manifest_names_the_variant(tmp_path: Path) -> None:
    root = fake_folders(tmp_path / "in")
    write(root / "README.txt", b"x")
    built(root, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert manifest.dataset == "imagenet21k"
    assert manifest.title == "ImageNet, 4 wnids, 2 of them in ImageNet-21K fall11, image-level labels, 4 classes"
    assert manifest.protocol["variant"] == "4 wnids, 2 of them in ImageNet-21K fall11"
    assert manifest.protocol["wnids"] == 4
    assert manifest.protocol["ignored"] == {"count": 1, "first": ["README.txt"]}
    assert manifest.splits["train"].labelled is False


# --map-to


def test_map_to_a_file(tmp_path: Path) -> None:
    root = fake_tars(tmp_path / "in")
    table = write(
        tmp_path / "map.tsv",
        b"wnid\tclass\trule\nn04399382\ttoy\tx\nn02121808\tanimal\tx\nn02084071\tanimal\tx\nn00000009\tnone here\tx\n",
    )
    found = built(root, tmp_path / "out", given={"map-to": str(table)})
    manifest = load_manifest(tmp_path / "out")
    assert manifest.class_table.names == ("toy", "animal", "none here")
    want = {"n04399382": [0], "n02121808": [1], "n02084071": [1]}
    assert {key: list(sample.weak) for key, sample in found.items()} == {
        key: want[key.split("/")[0]] for key in pictures() if key.split("/")[0] in want
    }
    assert manifest.protocol["map_to"] == "map.tsv"
    assert (manifest.protocol["mapped_wnids"], manifest.protocol["left_out"]) == (3, 1)
    assert "mapped to map.tsv: 3 of 4 wnids, 1 left out" in manifest.title
    assert manifest.title.endswith("3 classes")


def test_void_leaves_a_wnid_out(tmp_path: Path) -> None:
    table = write(tmp_path / "map.tsv", b"wnid\tclass\nn04399382\tvoid\nn02121808\tcat\nn02084071\tdog\n")
    found = built(fake_folders(tmp_path / "in"), tmp_path / "out", given={"map-to": str(table)})
    assert load_manifest(tmp_path / "out").class_table.names == ("cat", "dog")
    assert {key[:9]: list(sample.weak) for key, sample in found.items()} == {"n02121808": [0], "n02084071": [1]}


def test_map_to_leaves_out_listed_images_too(tmp_path: Path) -> None:
    root = fake_tiny(tmp_path / "in")
    table = write(tmp_path / "map.tsv", b"wnid\tclass\nn04399382\ttoy\n")
    built(root, tmp_path / "out", given={"map-to": str(table)})
    for split, count in (("train", WNIDS["n04399382"]), ("val", 1)):
        found = shards.open(tmp_path / "out", split=split, scale="1")
        assert [(sample.key[:9], list(sample.weak)) for sample in found] == [("n04399382", [0])] * count
    assert quarantine(tmp_path / "out") == []


def test_map_to_a_dataset(tmp_path: Path) -> None:
    wnids = {"n04460130": 1, "n00015388": 2, "n00006484": 1}  # tower, animal, cell
    root = fake_folders(tmp_path / "in", wnids)
    found = built(root, tmp_path / "out", given={"map-to": "ade20k"})
    table = load_manifest(tmp_path / "out").class_table
    assert table.names == tuple(row["name"] for row in taxonomy_rows("ade20k-150"))
    assert {table.names[i].split(",")[0] for sample in found.values() for i in sample.weak} == {"tower", "animal"}
    assert not [key for key in found if key.startswith("n00006484")]


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        (None, SettingsError, "neither ade20k, ade20k-full, cocostuff, cocolvis nor a file"),
        (b"wnid\tclass\nn00000009\tnowhere\n", SettingsError, "none of its 1 wnids is among the 4 under the root"),
        (b"wnid\tname\nn02084071\tdog\n", FormatError, "lacks wnid or class"),
        (b"", FormatError, "no rows"),
        (b"wnid\tclass\nn02084071\ta\nn02084071\tb\n", FormatError, "twice"),
        (b"wnid\tclass\nn02084071\tdog\nn0208407\tcat\n", FormatError, "line 3: 'n0208407' is no WordNet id"),
        (b"wnid\tclass\nn02084071\tVoid\n", UserError, "'Void' found; expected void, in lower case"),
    ],
)
def test_a_bad_mapping_is_refused(
    tmp_path: Path, text: bytes | None, error: type[Exception], why: str, seg_prep: SegPrep
) -> None:
    root, path = fake_folders(tmp_path / "in"), tmp_path / "map.tsv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(error, match=why):
        READER.bind(root, {"map-to": str(path)})
    assert why in seg_prep.refused("imagenet21k", "--root", root, "--out", tmp_path / "o", "--map-to", path)


# What must not pass in silence


def test_unusual_images_are_stored_as_rgb(tmp_path: Path) -> None:
    """ImageNet holds CMYK and greyscale JPEGs, a PNG named .JPEG, rotated photos."""
    rgb = np.asarray(Image.open(io.BytesIO(jpeg("n02084071", 5, (30, 40)))))
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise to be upright
    for name, picture, options in (
        ("cmyk.JPEG", image.convert("CMYK"), {"format": "JPEG", "quality": 95}),
        ("grey.JPEG", image.convert("L"), {"format": "JPEG", "quality": 95}),
        ("png.JPEG", image, {"format": "PNG"}),
        ("turned.JPEG", image, {"format": "JPEG", "quality": 95, "exif": exif}),
        ("moving.gif", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("alpha.PNG", image.convert("RGBA"), {"format": "PNG"}),
    ):
        (tmp_path / "in/n02084071").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "in/n02084071" / name, **options)
    found = built(tmp_path / "in", tmp_path / "out")
    assert quarantine(tmp_path / "out") == []
    assert len(found) == 6
    want = dict.fromkeys(("cmyk", "png", "moving", "alpha"), rgb)
    want |= {"turned": np.rot90(rgb, -1), "grey": np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)}
    for name, pixels in want.items():
        got = found[f"n02084071/{name}"].image
        assert got.shape == pixels.shape
        assert np.abs(got.astype(int) - pixels).mean() < (0.01 if name in ("png", "alpha") else 4), name


def test_damaged_files_are_quarantined_and_the_rest_is_built(tmp_path: Path) -> None:
    root = fake_folders(tmp_path / "in", {"n02084071": 2})
    folder = root / "n02084071"
    good = jpeg("n02084071", 9)
    write(folder / "a-cut.JPEG", good[:-20])
    write(folder / "b-empty.JPEG", b"")
    write(folder / "c-text.JPEG", b"<html>This photo is no longer available</html>")
    write(folder / "d-note.txt", b"a note")
    (folder / "e-folder").mkdir()
    (folder / "f-nowhere.JPEG").symlink_to("nowhere")
    (folder / "g-loop.JPEG").symlink_to("g-loop.JPEG")
    write(folder / ".DS_Store", b"x")
    write(folder / "n02084071_boxes.txt", b"x")
    assert sorted(built(root, tmp_path / "out")) == ["n02084071/n02084071_0", "n02084071/n02084071_7"]
    reasons = {bad["key"].split("/")[1]: bad["reason"] for bad in quarantine(tmp_path / "out")}
    for key, part in {
        "a-cut": "truncated or damaged",
        "b-empty": "empty file",
        "c-text": "not an image",
        "d-note": "not an image",
        "e-folder": "a folder where an image is expected",
        "f-nowhere": "missing file",
        "g-loop": "unreadable file",
    }.items():
        assert part in reasons.pop(key)
    assert not reasons


def test_links_and_foreign_members_of_tars(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, data in (
            ("n02084071_0.JPEG", tarfile.REGTYPE, jpeg("n02084071", 0)),
            ("._n02084071_0.JPEG", tarfile.REGTYPE, b"what macOS leaves behind"),
            ("n02084071_1.JPEG", tarfile.LNKTYPE, b""),
            ("notes.txt", tarfile.REGTYPE, b"a note"),
        ):
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.size, member.linkname = kind, len(data), "./n02084071_0.JPEG"
            tar.addfile(member, io.BytesIO(data))
    write(tmp_path / "in/n02084071.tar", out.getvalue())
    assert list(built(tmp_path / "in", tmp_path / "out")) == ["n02084071/n02084071_0"]
    assert [(bad["key"], bad["reason"]) for bad in quarantine(tmp_path / "out")] == [
        ("n02084071/n02084071_1", "a hard link in a tar; expected an image"),
        ("n02084071/notes", "n02084071.tar/./notes.txt: not an image file (6 bytes)"),
    ]


def test_images_of_another_wnid_in_a_tar_are_quarantined(tmp_path: Path) -> None:
    inside = {f"{wnid}/{wnid}_0.JPEG": jpeg(wnid, 0) for wnid in ("n02084071", "n02121808")}
    write(tmp_path / "in/n02084071.tar", tar_bytes(inside))
    found = built(tmp_path / "in", tmp_path / "out")
    assert list(found) == ["n02084071/n02084071_0"]
    (bad,) = quarantine(tmp_path / "out")
    assert bad["reason"].startswith("n02121808/n02121808_0.JPEG lies in the tar of n02084071")


def test_names_with_dots_and_other_scripts(tmp_path: Path) -> None:
    folder = tmp_path / "in/n02084071"
    for number, name in enumerate(("a.b.c.JPEG", "potter's_wheel.JPEG", "犬 2.JPEG", "no_suffix")):
        write(folder / name, jpeg("n02084071", number))
    found = built(tmp_path / "in", tmp_path / "out")
    assert sorted(found) == [f"n02084071/{stem}" for stem in ("__2", "a_b_c", "no_suffix", "potter_s_wheel")]
    assert quarantine(tmp_path / "out") == []


def test_equal_keys_are_neighbours_and_the_second_is_quarantined(tmp_path: Path) -> None:
    folder = tmp_path / "in/n02084071"
    for number, name in enumerate(("a.b.JPEG", "a0.JPEG", "a_b.png", "a_b.JPEG")):
        write(folder / name, jpeg("n02084071", number))
    names = [sample.image.name for sample in READER.samples(tmp_path / "in", "train")]
    assert names == ["a0.JPEG", "a.b.JPEG", "a_b.JPEG", "a_b.png"]
    found = built(tmp_path / "in", tmp_path / "out")
    assert sorted(found) == ["n02084071/a0", "n02084071/a_b"]
    assert np.array_equal(found["n02084071/a_b"].image, shards.codec.decode_image(jpeg("n02084071", 0)))
    assert ["duplicate key" in bad["reason"] for bad in quarantine(tmp_path / "out")] == [True, True]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("dogs/a.JPEG", r"1 entries that belong to no wnid \(dogs/\)"),
        ("n0208407/a.JPEG", r"\(n0208407/\)"),
        ("photo.JPEG", r"\(photo.JPEG\)"),
        ("n02121808.tar.gz", r"\(n02121808.tar.gz\)"),
    ],
)
def test_what_belongs_to_no_wnid_is_named(tmp_path: Path, name: str, part: str, seg_prep: SegPrep) -> None:
    root = fake_folders(tmp_path / "in", {"n02084071": 1})
    write(root / name, b"x")
    with pytest.raises(LayoutError, match=part):
        READER.bind(root, {})
    assert "belong to no wnid" in seg_prep.refused("imagenet21k", "--root", root, "--out", tmp_path / "out")


def test_data_beside_split_folders_is_named(tmp_path: Path) -> None:
    root = fake_tiny(tmp_path / "in")
    fake_folders(root, {"n02084071": 1})
    with pytest.raises(LayoutError, match=r"1 entries.*\(n02084071\).*no other data beside train/ and val/"):
        READER.splits(root)


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    root = fake_folders(tmp_path / "in", {"n02084071": 1})
    (root / "n02084071" / "images").symlink_to("..")
    (root / "n02121808").symlink_to(root)
    found = built(root, tmp_path / "out")
    assert sorted(found) == ["n02084071/n02084071_0"]
    assert {bad["key"]: bad["reason"] for bad in quarantine(tmp_path / "out")} == {
        f"{wnid}/{name}": "a folder where an image is expected"
        for wnid, name in (("n02084071", "images"), ("n02121808", "n02084071"), ("n02121808", "n02121808"))
    }
    (root / "n01503061").symlink_to("n01503061")
    with pytest.raises(LayoutError, match=r"\(n01503061\)"):
        READER.bind(root, {})


def test_linked_folders_of_wnids_are_read(tmp_path: Path) -> None:
    fake_folders(tmp_path / "elsewhere", {"n02084071": 2})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/n02084071").symlink_to(tmp_path / "elsewhere/n02084071")
    assert len(built(tmp_path / "in", tmp_path / "out")) == 2


def test_a_wnid_in_two_places_is_refused(tmp_path: Path) -> None:
    root = fake_folders(tmp_path / "in")
    write(root / "n02121808.tar", synset_tars()["n02121808.tar"])
    with pytest.raises(LayoutError, match=r"n02121808 found twice, in .*n02121808 and in .*n02121808\.tar.*remove"):
        READER.bind(root, {})
    (root / "n02121808.tar").rename(root / "whole.tar")
    write(root / "whole.tar", tar_bytes({"n02121808.tar": b""}))
    with pytest.raises(LayoutError, match=r"n02121808 found twice, in .* and in .*whole\.tar/n02121808\.tar"):
        READER.bind(root, {})


def test_an_empty_or_foreign_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="holds nothing and no wnid: expected folders or tars named by wnid"):
        READER.bind(tmp_path, {})
    write(tmp_path / "pictures/a.JPEG", b"x")
    with pytest.raises(LayoutError, match=r"holds 1 other entries \(pictures/\) and no wnid"):
        READER.bind(tmp_path, {})
    (tmp_path / "train").mkdir()
    with pytest.raises(LayoutError, match=r"pictures/"):
        READER.splits(tmp_path)


def test_a_compressed_whole_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "winter21_whole.tar.gz", b"\x1f\x8b")
    with pytest.raises(LayoutError, match=r"winter21_whole\.tar\.gz is compressed.*tar -xf winter21_whole\.tar\.gz"):
        READER.bind(tmp_path, {})
    fake_tars(tmp_path)  # unpacked beside it: no hindrance
    assert READER.bind(tmp_path, {}).protocol["ignored"]["first"] == ["winter21_whole.tar.gz"]


def test_empty_wnid_folders_are_classes_without_images(tmp_path: Path) -> None:
    root = fake_folders(tmp_path / "in", {"n02121808": 1})
    (root / "n02084071").mkdir()
    assert READER.bind(root, {}).classes.wnids == ("n02084071", "n02121808")
    assert [s.weak for s in READER.samples(root, "train")] == [(1,)]


# Lists of validation images


def test_validation_images_and_list_that_disagree(tmp_path: Path) -> None:
    root = fake_tiny(tmp_path / "tiny")
    (root / "val/images/val_4.JPEG").unlink()
    write(root / "val/images/unlisted.JPEG", jpeg("n02084071", 3))
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write("../../secret.JPEG\tn02084071\t1\nval_9.JPEG\tdog\t1\nval_3.JPEG\tn12345678\nalone\n\n")
    built(root, tmp_path / "out", split="val", splits=("val",))
    reasons = [bad["reason"] for bad in quarantine(tmp_path / "out")]
    assert len(shards.open(tmp_path / "out", split="val", scale="1")) == 2  # val_3 has two wnids, so it has none
    for reason, part in zip(
        reasons,
        (
            "val_4.JPEG: missing file",
            *["not in val_annotations.txt, or more than once"] * 2,
            *("../../secret", "'val_9", "'val_3", "'alone'"),
        ),
        strict=True,
    ):
        assert part in reason
    wrong = {bad["source"] for bad in quarantine(tmp_path / "out") if bad["key"].startswith("line-")}
    assert wrong == {"val/val_annotations.txt"}


def test_flat_validation_images_need_their_list(tmp_path: Path) -> None:
    root = fake_kaggle(tmp_path / "k")
    text = (root / "LOC_val_solution.csv").read_text()
    (root / "LOC_val_solution.csv").write_text(text.replace("_val_", "_other_"))
    with pytest.raises(LayoutError, match=r"none of the 4 lines of .*LOC_val_solution.csv leads to an image"):
        READER.splits(root)
    (root / "LOC_val_solution.csv").unlink()
    with pytest.raises(LayoutError, match=r"no folders named by wnid, and there is no LOC_val_solution.csv"):
        READER.splits(root)


# Memory, and real samples


@pytest.mark.parametrize("make", [fake_folders, fake_tars])
def test_a_wnid_is_opened_when_its_turn_comes(tmp_path: Path, make: Any) -> None:
    """Listing holds one wnid at a time: what lies in later ones is not looked at before."""
    root = make(tmp_path / "in", {"n02084071": 2, "n02121808": 2})
    samples = READER.bind(root, {}).samples(root, "train")
    first = [next(samples), next(samples)]
    assert [s.key[:9] for s in first] == ["n02084071"] * 2
    shutil.move(root / make_name(make, "n02121808"), tmp_path / "gone")
    with pytest.raises(LayoutError, match=r"n02121808(\.tar)? cannot be (listed|read)"):
        next(samples)


def make_name(make: Any, wnid: str) -> str:
    return wnid if make is fake_folders else f"{wnid}.tar"


def test_real_tiny_imagenet(tmp_path: Path) -> None:
    root = real_data("imagenet/tiny")
    found = built(root, tmp_path / "out")
    assert len(found) == 1600
    assert quarantine(tmp_path / "out") == []
    manifest = load_manifest(tmp_path / "out")
    assert manifest.title == "Tiny ImageNet, image-level labels, 200 classes"
    assert manifest.protocol["variant"] == "Tiny ImageNet"
    for key in list(found)[::40]:
        assert wnid_of(tmp_path / "out", found[key]) == key.split("/")[0]
        pixels = decoded((root / f"{key}.JPEG").read_bytes())
        assert np.abs(found[key].image.astype(int) - pixels).mean() < 2


def test_real_full_size_samples(tmp_path: Path) -> None:
    root = real_data("imagenet/sample")
    found = built(root, tmp_path / "out")
    assert len(found) == 60
    assert quarantine(tmp_path / "out") == []
    assert all(wnid_of(tmp_path / "out", sample) == key.split("/")[0] for key, sample in found.items())
    kept = [p for p in root.rglob("*.JPEG") if Image.open(io.BytesIO(p.read_bytes())).mode == "RGB"]
    tars = b"".join(p.read_bytes() for p in sorted((tmp_path / "out").rglob("*.tar")))
    assert len(kept) == 55
    assert all(path.read_bytes() in tars for path in kept), "colour JPEGs are stored byte for byte"


def test_map_to_can_take_every_kind_of_a_synset(tmp_path: Path, seg_prep: SegPrep) -> None:
    """A Chihuahua is no class of ADE20K, and a kind of its animal; a synset broader than a class is never taken."""
    root = fake_folders(tmp_path / "in", {"n02085620": 2, "n04546855": 1, "n00015388": 1})
    few = seg_prep("imagenet21k", "--root", root, "--out", tmp_path / "few", "--map-to", "ade20k")
    assert few[0] == 0, few[2]
    many = seg_prep("imagenet21k", "--root", root, "--out", tmp_path / "many", "--map-to", "ade20k", "--descendants")
    assert many[0] == 0, many[2]
    names = {name: shards.open(tmp_path / name, split="train").keys() for name in ("few", "many")}
    assert [sum("n02085620" in key for key in names[name]) for name in ("few", "many")] == [0, 2]
    dogs = [sample for sample in shards.open(tmp_path / "many", split="train") if "n02085620" in sample.key]
    animal = next(int(row["id"]) for row in taxonomy_rows("ade20k-150") if row["name"].startswith("animal"))
    assert [sample.weak.tolist() for sample in dogs] == [[animal]] * 2


def test_broader_synsets_are_no_weak_labels() -> None:
    from prep.mapping import map_classes
    from prep.wnids.mapped import load_mapping

    pairs = map_classes("imagenet21k", "cocolvis").pairs
    broader = {pair.wnid for pair in pairs if pair.rule == "hypernym"}
    assert broader
    found = load_mapping("cocolvis", [pair.wnid for pair in pairs]).weak
    assert set(found) == {pair.wnid for pair in pairs} - broader


def test_descendants_need_a_dataset_to_map_to(tmp_path: Path, seg_prep: SegPrep) -> None:
    root = fake_folders(tmp_path / "in", {"n02085620": 1})
    line = seg_prep.refused("imagenet21k", "--root", root, "--out", tmp_path / "o", "--descendants")
    assert "--descendants found without --map-to" in line
    (tmp_path / "m.tsv").write_text("wnid\tclass\trule\tconfidence\nn02085620\tdog\tlemma\t1\n")
    line = seg_prep.refused(
        "imagenet21k", "--root", root, "--out", tmp_path / "o", "--map-to", tmp_path / "m.tsv", "--descendants"
    )
    assert "expected one of ade20k" in line
