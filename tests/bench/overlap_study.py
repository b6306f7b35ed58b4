"""Which rule of overlaps is right: contested pixels of real samples against panoptic masks that say who is in front.

    python -m tests.bench.overlap_study

Prints three tables. How many pixels are claimed by annotations of different classes, on all real COCO and LVIS
samples. For the images that also have a COCO panoptic mask: how often each rule's winner has the panoptic class, over
the contested pixels where some claimant has it. For the largest contested regions of the others: how often the winner
is what a person sees there (`SEEN`). Needs the folders coco and lvis of real data (SEGSHARDS_DATA).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prep.coco.annotation import annotation_runs, parse_annotations
from prep.coco.merge import OVERLAPS
from prep.coco.runs import Runs
from tests.bench.timing import markdown
from tests.real import real_root

Masks = NDArray[np.bool_]
SOURCES = {
    "COCO train2017": "coco/annotations/instances_train2017.json",
    "COCO val2017": "coco/annotations/instances_val2017.json",
    "LVIS v0.5": "lvis/annotations/lvis_v0.5_val_9.json",
}
# What one sees where two classes of an image claim the same pixels, judged by eye on crops of every contested region
# of at least 100 pixels (LVIS: 60). Left out because one cannot tell: 491497 chair and couch (one armchair), 11813
# camera and tripod (its head), 296649 car and truck (one vehicle), 289393 giraffe and cow, 516168 chair and wine
# glass (slivers). People behind the windows of a bus or car count as seen.
SEEN = {
    (386912, "person", "chair"): "chair",
    (516168, "wine glass", "dining table"): "wine glass",
    (463730, "bus", "person"): "person",
    (463730, "car", "person"): "person",
    (463730, "person", "backpack"): "backpack",
    (296649, "motorcycle", "person"): "person",
    (37777, "dining table", "banana"): "banana",
    (37777, "dining table", "orange"): "orange",
    (547503, "person", "wine glass"): "wine glass",
    (475546, "person", "wine glass"): "wine glass",
    (527220, "motor_scooter", "headlight"): "headlight",
}


def mask_of(runs: Runs, height: int, width: int) -> Masks:
    """Runs down columns -> bool [H, W]."""
    flat = np.zeros(height * width, bool)
    for start, end in runs:
        flat[start:end] = True
    return flat.reshape(width, height).T


def images(root: Path, path: str) -> Iterator[tuple[int, NDArray[np.int64], Masks, dict[str, int]]]:
    """(image id, categories [n], masks [n, H, W], {name: category}) of every image of a file; crowds are left out."""
    content: dict[str, Any] = json.loads((root / path).read_text())
    names = {category["name"]: category["id"] for category in content["categories"]}
    for image in content["images"]:
        size = image["height"], image["width"]
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        if mine:
            parsed = parse_annotations("\n".join(map(json.dumps, mine)).encode(), str(image["id"]))
            masks = [mask_of(annotation_runs(annotation, *size, "x"), *size) for annotation in parsed]
            yield image["id"], np.array([annotation.category_id for annotation in parsed]), np.stack(masks), names


def panoptic(root: Path) -> dict[int, NDArray[np.int64]]:
    """{image id: COCO category of every pixel, 0 where there is none}."""
    found = {}
    for split in ("train2017", "val2017"):
        folder = root / "coco" / "annotations"
        for annotation in json.loads((folder / f"panoptic_{split}.json").read_text())["annotations"]:
            rgb = np.asarray(Image.open(folder / f"panoptic_{split}" / annotation["file_name"]).convert("RGB"))
            segments = rgb @ np.array([1, 256, 65536])
            truth = np.zeros(segments.shape, np.int64)
            for segment in annotation["segments_info"]:
                truth[segments == segment["id"]] = segment["category_id"]
            found[int(annotation["image_id"])] = truth
    return found


def winners(classes: NDArray[np.int64], masks: Masks, rule: str) -> NDArray[np.int64]:
    """The class that keeps each pixel, 0 where nobody claims it."""
    areas = masks.sum((1, 2))
    order = {"first": np.arange(len(areas)), "smallest": np.argsort(areas, kind="stable")}
    order["largest"] = np.argsort(-areas, kind="stable")
    out = np.zeros(masks.shape[1:], np.int64)
    for position in order[rule][::-1]:
        out[masks[position]] = classes[position]
    return out


def claims(classes: NDArray[np.int64], masks: Masks, one: int) -> Masks:
    """Pixels claimed by annotations of a class."""
    return masks[classes == one].any(0)


def right(classes: NDArray[np.int64], masks: Masks, where: Masks, truth: NDArray[np.int64]) -> list[int]:
    """Of the pixels `where`, how many there are and how many each rule gives their true class."""
    return [int(where.sum()), *(int((winners(classes, masks, rule) == truth)[where].sum()) for rule in OVERLAPS)]


def study(root: Path) -> tuple[list[list[Any]], list[list[Any]], list[list[Any]]]:
    """The rows of the three tables."""
    truths, shares, measured, seen = panoptic(root), [], [], []
    for name, path in SOURCES.items():
        sums = np.zeros(4, np.int64)
        for image, ids, masks, names in images(root, path):
            twice = np.sum([claims(ids, masks, one) for one in np.unique(ids)], axis=0) > 1
            sums += 1, twice.size, masks.any(0).sum(), twice.sum()
            if image in truths and name != "LVIS v0.5":  # no pixel of the two LVIS images is contested
                true = truths[image]
                known = twice & (masks & (ids[:, None, None] == true[None])).any(0)
                measured.append([f"{name} {image}", *right(ids, masks, known, true)])
            for (where, a, b), front in SEEN.items():
                if where == image:
                    both = claims(ids, masks, names[a]) & claims(ids, masks, names[b])
                    seen.append(
                        [f"{image}: {a}, {b}", *right(ids, masks, both, np.full_like(twice, names[front], int))]
                    )
        shares.append([name, *sums.tolist(), f"{sums[3] / sums[2]:.2%}"])
    return shares, measured, seen


def shown(rows: list[list[Any]]) -> list[list[Any]]:
    """Counts as shares, and a last row for all."""
    total = np.array([row[1:] for row in rows]).sum(0).tolist()
    rows = [row for row in [*rows, ["all", *total]] if row[1]]
    return [[*row[:2], *(f"{n / row[1]:.1%}" for n in row[2:])] for row in rows]


def main() -> None:
    """Print the tables."""
    root = real_root()
    if root is None:
        raise SystemExit("no real data found: set SEGSHARDS_DATA to the folder that holds coco and lvis")
    shares, measured, seen = study(root)
    header = ["samples", "images", "pixels", "labelled", "claimed by two classes", "share of labelled"]
    print(markdown(header, shares), end="\n\n")
    print(markdown(["against panoptic", "pixels", *OVERLAPS], shown(measured)), end="\n\n")
    print(markdown(["as seen", "pixels", *OVERLAPS], shown(seen)))


if __name__ == "__main__":
    main()
