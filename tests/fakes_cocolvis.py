"""A tiny COCO root with LVIS v1 and stuff annotations, in the layout and with the fields of the published files.

fake = FakeCoco(); fake.image("train", 9); fake.lvis(9, 3, [[0, 0, 9, 0, 9, 9]]); fake.write(tmp_path / "coco")
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from tests.fakes import blobs, picture, save, taxonomy_rows

SIZE = (24, 32)
Mask = list[list[float]] | dict[str, Any]


def counts_of(mask: NDArray[np.bool_]) -> list[int]:
    """Uncompressed run-length counts of a mask [H, W]: zeros and ones in turn, down the columns."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = [0, *np.flatnonzero(flat[1:] != flat[:-1]).tolist(), mask.size]
    return [end - start for start, end in pairwise(edges)]


def box(x: int, y: int, width: int, height: int, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """A rectangle as a mask [H, W]."""
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def code(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO's uncompressed run-length code."""
    return {"counts": counts_of(mask), "size": list(mask.shape)}


@dataclass
class FakeCoco:
    """What a root will hold; methods add to it, `write` writes it.

    Attributes:
        folders: {image id: folder of the picture}.
        lvis_files, stuff_files: {"train", "val": {"images": [...], "annotations": [...]}}.
    """

    size: tuple[int, int] = SIZE
    folders: dict[int, str] = field(default_factory=dict)
    lvis_files: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    stuff_files: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in ("train", "val"):
            self.lvis_files[split] = {"images": [], "annotations": []}
            self.stuff_files[split] = {"images": [], "annotations": []}

    def image(self, split: str, id: int, lvis: str | None = "", stuff: bool = True, **more: Any) -> None:
        """An image in <split>2017; `lvis` names the LVIS file that lists it ("" = the split's, None = none)."""
        self.folders[id] = f"{split}2017"
        name = f"{id:012d}.jpg"
        record = {"id": id, "height": self.size[0], "width": self.size[1], "license": 1, "date_captured": "2013"}
        url = f"http://images.cocodataset.org/{split}2017/{name}"
        if stuff:
            self.stuff_files[split]["images"].append({**record, "file_name": name, "coco_url": url})
        if lvis is not None:
            checked = {"neg_category_ids": [], "not_exhaustive_category_ids": []} | more
            self.lvis_files[lvis or split]["images"].append({**record, "coco_url": url, **checked})

    def lvis(self, image: int, category: int, mask: Mask, file: str = "train", **more: Any) -> int:
        """An LVIS annotation; its id."""
        return self._annotate(self.lvis_files[file]["annotations"], image, category, mask, more)

    def stuff(self, image: int, category: int, mask: Mask, file: str = "train", **more: Any) -> int:
        """A stuff annotation; its id."""
        return self._annotate(self.stuff_files[file]["annotations"], image, category, mask, {"iscrowd": 0} | more)

    def _annotate(self, found: list[Any], image: int, category: int, mask: Mask, more: dict[str, Any]) -> int:
        id = len(found) + 1
        entry = {"id": id, "image_id": image, "category_id": category, "segmentation": mask, "area": 1.0, "bbox": []}
        found.append(entry | more)
        return id

    def write(self, root: Path, images: str = "", indent: int | None = None) -> Path:
        """Write the root; `images` is the folder of train2017 and val2017 within it."""
        (root / "annotations").mkdir(parents=True)
        for folder in ("train2017", "val2017"):
            (root / images / folder).mkdir(parents=True, exist_ok=True)
        for id, folder in self.folders.items():
            rng = np.random.default_rng(id)
            save(picture(rng, blobs(rng, self.size, 5)), root / images / folder / f"{id:012d}.jpg", quality=90)
        lvis = [
            {"id": int(row["lvis_id"]), "name": row["name"], "synset": row["synset"], "frequency": row["category"][0]}
            for row in taxonomy_rows("lvis-v1-1203")
        ]
        stuff = [
            {"id": int(row["source_id"]), "name": row["name"], "supercategory": "stuff"}
            for row in taxonomy_rows("cocolvis-1296_to_1284")
            if row["source"] == "cocostuff" and row["source_id"] != "255"
        ]
        for split in ("train", "val"):
            content = {"info": {"year": 2020}, **self.lvis_files[split], "categories": lvis, "licenses": []}
            (root / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(content, indent=indent))
            content = {"info": {"year": 2017}, **self.stuff_files[split], "categories": stuff}
            (root / "annotations" / f"stuff_{split}2017.json").write_text(json.dumps(content, indent=indent))
        return root


def small_coco() -> FakeCoco:
    """Train: 9 and 25 by LVIS train, 30 by LVIS val, 31 by stuff alone. Val: 42 by LVIS val, 43 by stuff alone."""
    fake = FakeCoco()
    fake.image("train", 9, neg_category_ids=[3, 1203], not_exhaustive_category_ids=[7])
    fake.image("train", 25)
    fake.image("train", 30, lvis="val", neg_category_ids=[11])
    fake.image("train", 31, lvis=None)
    fake.image("val", 42)
    fake.image("val", 43, lvis=None)
    fake.lvis(9, 7, [[2.0, 2, 10, 2, 10, 9, 2, 9]])
    fake.lvis(25, 100, [[0.0, 0, 12, 0, 12, 12]])
    fake.lvis(9, 5, code(box(6, 4, 10, 10)))
    fake.stuff(9, 98, compressed(box(0, 0, 32, 12)))
    fake.stuff(9, 94, code(box(0, 12, 32, 12)))
    fake.lvis(30, 8, [[1.0, 1, 9, 1, 9, 9]], file="val")
    fake.stuff(30, 110, code(box(0, 0, 32, 24)))
    fake.stuff(31, 182, code(box(3, 3, 9, 9)))
    fake.lvis(42, 9, [[1.0, 1, 9, 1, 9, 9]], file="val")
    fake.stuff(42, 165, code(box(0, 0, 32, 24)), file="val")
    fake.stuff(43, 168, code(box(0, 0, 5, 5)), file="val")
    return fake


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO's compressed run-length code."""
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"counts": found["counts"].decode(), "size": list(mask.shape)}
