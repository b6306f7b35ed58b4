"""Tiny raw datasets in the layouts of PASCAL VOC + SBD, ADE20K (150 and full), COCO-Stuff and COCO panoptic.

    fake_voc(tmp_path / "VOCdevkit", splits={"train": 3, "val": 2})

Label maps are written from `blobs`, so a test reads its truth back from the files or recomputes it from the seed.
Equal arguments give equal files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from tests.fakes import Size, blobs, picture, save, taxonomy_rows

SIZE = (20, 28)
DROPPED_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
COCO_IDS = [i for i in range(1, 183) if i not in DROPPED_COCO_IDS]


def photo(path: Path, label: NDArray[Any], seed: int = 0) -> Path:
    """A JPEG of a label map."""
    rng = np.random.default_rng([7, seed])
    return save(picture(rng, (label % 256).astype(np.uint8)), path, quality=90, subsampling=0)


def label_of(seed: Iterable[int], values: Iterable[int], size: Size = SIZE) -> NDArray[np.uint16]:
    """A map uint16 [H, W] whose regions hold some of the values."""
    values = np.array(list(values), np.uint16)
    rng = np.random.default_rng(list(seed))
    return values[(blobs(rng, size, 12, cell=5).astype(np.int64) * 17 + int(rng.integers(len(values)))) % len(values)]


def voc_palette() -> list[int]:
    """VOC's colour map: the bits of an index go to the high bits of red, green and blue in turn."""
    flat = []
    for index in range(256):
        rgb = [sum((index >> (3 * j + c) & 1) << (7 - j) for j in range(3)) for c in range(3)]
        flat += rgb
    return flat


def save_palette(ids: NDArray[Any], path: Path, palette: list[int] | None = None) -> Path:
    """A palette PNG, as VOC's."""
    image = Image.fromarray(ids.astype(np.uint8), mode="L")
    image.putpalette(palette or voc_palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


VOC_VALUES = [*range(21), 255]


def voc_label(stem: str, sbd: bool = False) -> NDArray[np.uint16]:
    """What VOC (with void), or SBD (without), says of an image."""
    seed = [*stem.encode(), int(sbd)]
    return label_of(seed, range(21) if sbd else VOC_VALUES)


def fake_voc(root: Path, splits: Mapping[str, int] | None = None, folder: str = "VOC2012") -> Path:
    """JPEGImages/, SegmentationClass/, ImageSets/Segmentation/ below `folder`; test has no labels."""
    base = root / folder
    (base / "SegmentationClass").mkdir(parents=True)
    for number, (split, count) in enumerate((splits or {"train": 3, "val": 2}).items()):
        stems = [f"2007_{number}{n:05d}" for n in range(count)]
        for stem in stems:
            photo(base / "JPEGImages" / f"{stem}.jpg", voc_label(stem))
            if split != "test":
                save_palette(voc_label(stem), base / "SegmentationClass" / f"{stem}.png")
        write_list(base / "ImageSets" / "Segmentation" / f"{split}.txt", stems)
    return root


def write_list(path: Path, lines: Iterable[str]) -> Path:
    """A text file of one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def sbd_mat(ids: NDArray[Any]) -> bytes:
    """A `.mat` file as SBD writes them: the struct GTcls with Boundaries, CategoriesPresent and Segmentation."""
    file = io.BytesIO()
    truth = {"Boundaries": np.zeros((2, 2)), "CategoriesPresent": np.unique(ids), "Segmentation": ids.astype(np.uint8)}
    savemat(file, {"GTcls": truth}, do_compression=True)
    return file.getvalue()


def fake_sbd(base: Path, folder: Path, train: list[str], val: list[str]) -> None:
    """SBD's dataset folder: cls/*.mat, train.txt and val.txt; photos go to VOC's JPEGImages where they are missing."""
    (folder / "cls").mkdir(parents=True)
    for stem in (*train, *val):
        (folder / "cls" / f"{stem}.mat").write_bytes(sbd_mat(voc_label(stem, sbd=True)))
        if not (base / "JPEGImages" / f"{stem}.jpg").is_file():
            photo(base / "JPEGImages" / f"{stem}.jpg", voc_label(stem))
    write_list(folder / "train.txt", train)
    write_list(folder / "val.txt", val)


def fake_ade20k(root: Path, splits: Mapping[str, int] | None = None, folder: str = "ADEChallengeData2016") -> Path:
    """images/ and annotations/ of the SceneParsing release, ids 0..150."""
    for split, count in (splits or {"training": 3, "validation": 2}).items():
        for n in range(count):
            stem = f"ADE_{split[:3] if split != 'training' else 'train'}_{n:08d}"
            label = label_of([*stem.encode()], range(151))
            photo(root / folder / "images" / split / f"{stem}.jpg", label)
            save(label.astype(np.uint8), root / folder / "annotations" / split / f"{stem}.png")
    return root


def ade_full_label(stem: str) -> NDArray[np.uint16]:
    """Ids of the 2021 release: some of the 847, some of the others, some unlabelled."""
    known = [int(row["release_id"]) for row in taxonomy_rows("ade20k-full-847")]
    others = [0, 5, 3000 + 688, 3687, 2979]
    return label_of([*stem.encode()], [*known[::40], 3156, 6, *others])


def save_seg(ids: NDArray[np.uint16], path: Path) -> Path:
    """A `*_seg.png`: class = R // 10 * 256 + G; the last digit of R and all of B are the instance's."""
    noise = (np.indices(ids.shape).sum(0) % 10).astype(np.uint8)
    red = (ids // 256 * 10).astype(np.uint8) + noise
    return save(np.stack([red, (ids % 256).astype(np.uint8), noise * 20], axis=-1), path)


def fake_ade20k_full(root: Path, scenes: Mapping[str, list[str]] | None = None) -> Path:
    """The 2021 release: below images/ADE/<split>/<scene>/ each image with its maps and masks, as they unpack."""
    scenes = scenes or {
        "training/urban/street": ["ADE_train_00000001", "ADE_train_00000003"],
        "training/home/bedroom": ["ADE_train_00000002"],
        "validation/urban/street": ["ADE_val_00000001"],
    }
    for scene, stems in scenes.items():
        folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / scene
        for stem in stems:
            label = ade_full_label(stem)
            photo(folder / f"{stem}.jpg", label)
            save_seg(label, folder / f"{stem}_seg.png")
            save_seg(label, folder / f"{stem}_parts_1.png")
            (folder / f"{stem}.json").write_text("{}")
            save((label > 9).astype(np.uint8), folder / stem / f"instance_000_{stem}.png")
    return root


def ade_tif_label(stem: str) -> NDArray[np.uint16]:
    """Class indices of the preprocessed form, 65535 = void."""
    return label_of([*stem.encode()], [0, 1, 255, 256, 300, 845, 846, 65535])


def fake_ade20k_full_tif(root: Path, stems: Mapping[str, list[str]] | None = None) -> Path:
    """MaskFormer's form: images_detectron2/ and annotations_detectron2/."""
    for split, names in (stems or {"training": ["ADE_train_1", "ADE_train_2"], "validation": ["ADE_val_1"]}).items():
        for stem in names:
            label = ade_tif_label(stem)
            photo(root / "images_detectron2" / split / f"{stem}.jpg", label)
            save(label, root / "annotations_detectron2" / split / f"{stem}.tif")
    return root


def fake_cocostuff(root: Path, maps: str = "stuffthingmaps", images: str = "images") -> Path:
    """COCO 2017 images with stuffthingmaps: official id - 1, 255 = unlabelled."""
    for split, numbers in (("train2017", (9, 25, 30)), ("val2017", (139, 285))):
        for number in numbers:
            label = label_of([number], [*(i - 1 for i in COCO_IDS), 255])
            photo(root / images / split / f"{number:012d}.jpg", label)
            save(label.astype(np.uint8), root / maps / split / f"{number:012d}.png")
    return root


def stuff10k_label(stem: str) -> NDArray[np.uint16]:
    """Official ids, 0 = unlabelled."""
    return label_of([*stem.encode()], [0, *COCO_IDS])


def stuff10k_mat(ids: NDArray[Any], names: int = 183) -> bytes:
    """A `.mat` file as COCO-Stuff 10K writes them."""
    file = io.BytesIO()
    cells = np.array([f"class {n}" for n in range(names)], object)[:, None]
    savemat(file, {"S": ids, "names": cells, "captions": np.array([["a dog"]], object)}, do_compression=True)
    return file.getvalue()


def fake_cocostuff10k(root: Path, splits: Mapping[str, int] | None = None) -> Path:
    """images/, annotations/ and imageLists/ of cocostuff-10k-v1.1."""
    every: list[str] = []
    for split, count in (splits or {"train": 3, "test": 2}).items():
        stems = [f"COCO_train2014_{n * 7 + 77 * len(split):012d}" for n in range(count)]
        for stem in stems:
            photo(root / "images" / f"{stem}.jpg", stuff10k_label(stem))
            path = root / "annotations" / f"{stem}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stuff10k_mat(stuff10k_label(stem)))
        write_list(root / "imageLists" / f"{split}.txt", stems)
        every += stems
    write_list(root / "imageLists" / "all.txt", every)
    return root


def fake_panoptic(root: Path, images: str = ".", edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """COCO panoptic: PNGs of segment ids and the two JSON files; a segment's category follows from its region.

    Args:
        edit: changes each JSON document before it is written.
    """
    table = json_categories()
    for split, numbers in (("train2017", (9, 25, 30)), ("val2017", (139, 285))):
        document: dict[str, Any] = {"info": {"year": 2017}, "licenses": [{"id": 1}], "categories": table}
        document |= {"images": [], "annotations": []}
        for number in numbers:
            _add_panoptic(root, root / images / split, split, number, document)
        if edit:
            edit(document)
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(document))
    return root


def json_categories() -> list[dict[str, Any]]:
    """The 133 categories as the JSON files list them."""
    return [
        {"id": int(row["coco_id"]), "name": row["name"], "supercategory": row["category"], "isthing": int(row["thing"])}
        for row in taxonomy_rows("coco-panoptic-133")
    ]


def _add_panoptic(root: Path, images: Path, split: str, number: int, document: dict[str, Any]) -> None:
    regions = label_of([number, 5], range(9)).astype(np.int64)
    regions[:2] = np.arange(regions.shape[1]) % 9  # all of them, void too
    ids = np.where(regions == 0, 0, regions * 70_001 + number).astype(np.uint32)  # 0 is void
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    save(rgb, root / "annotations" / f"panoptic_{split}" / f"{number:012d}.png")
    photo(images / f"{number:012d}.jpg", regions)
    height, width = regions.shape
    document["images"].append(
        {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width, "coco_url": "http://x"}
    )
    categories = [category["id"] for category in document["categories"]]
    segments = [
        {
            "id": int(segment),
            "category_id": categories[(int(segment) * 31) % 133],
            "iscrowd": int(segment % 2),
            "bbox": [0, 0, 1, 1],
            "area": int((ids == segment).sum()),
        }
        for segment in reversed(np.unique(ids[ids > 0]))
    ]
    document["annotations"].append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": segments})
