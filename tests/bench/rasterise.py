"""Rasterising COCO and LVIS masks: ours against pycocotools, on the real samples, side by side in one process.

    python -m tests.bench.rasterise [--rounds 15]

Prints median milliseconds for the same annotations, parsed already: polygons to run-length codes; whole label maps,
first come first served; and whether all pixels are equal. A code is not rasterised before it is painted, so for codes
only the label maps are timed.
Needs the folders coco and lvis of real data (SEGSHARDS_DATA).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from prep.coco.annotation import Annotation, annotation_runs, parse_annotations
from prep.coco.paint import paint
from tests.bench.overlap_study import SOURCES, mask_of
from tests.bench.timing import alternate, markdown
from tests.real import real_root

Image = tuple[int, int, list[Annotation], list[dict[str, Any]]]


def load(root: Path) -> list[Image]:
    """(height, width, our annotations, the same as JSON objects) of all real samples; stuff as compressed codes."""
    found = []
    for path in SOURCES.values():
        content = json.loads((root / path).read_text())
        for image in content["images"]:
            mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            if mine:
                parsed = parse_annotations("\n".join(map(json.dumps, mine)).encode(), "x")
                found.append((image["height"], image["width"], parsed, mine))
    return found


def as_codes(images: list[Image]) -> list[Image]:
    """The same masks as compressed run-length codes, the form of COCO's stuff files."""
    found = []
    for height, width, _, raw in images:
        codes = [code_of(a["segmentation"], height, width) for a in raw]
        theirs = [{**a, "segmentation": code} for a, code in zip(raw, codes, strict=True)]
        text = [
            {**a, "segmentation": {**a["segmentation"], "counts": a["segmentation"]["counts"].decode()}} for a in theirs
        ]
        ours = parse_annotations("\n".join(map(json.dumps, text)).encode(), "x")
        found.append((height, width, ours, theirs))
    return found


def code_of(mask: Any, height: int, width: int) -> dict[str, Any]:
    """pycocotools' compressed code of a segmentation; what its `annToRLE` does."""
    if isinstance(mask, list):
        return dict(coco.merge(coco.frPyObjects(mask, height, width)))
    return dict(coco.frPyObjects(mask, height, width)) if isinstance(mask["counts"], list) else mask


def ours(images: list[Image]) -> None:
    """Runs of every mask."""
    for height, width, mine, _ in images:
        for annotation in mine:
            annotation_runs(annotation, height, width, "x")


def theirs(images: list[Image]) -> None:
    """Every mask as pycocotools' code."""
    for height, width, _, raw in images:
        for annotation in raw:
            code_of(annotation["segmentation"], height, width)


def our_map(image: Image) -> NDArray[np.uint16]:
    """The label map of an image, painted by annotation order."""
    height, width, parsed, _ = image
    runs = [annotation_runs(annotation, height, width, "x") for annotation in parsed]
    classes = [annotation.category_id for annotation in parsed]
    return paint(runs, np.arange(len(runs)), classes, (height, width), 0).hard


def their_map(image: Image) -> NDArray[np.uint16]:
    """The same with pycocotools and NumPy."""
    height, width, _, raw = image
    out = np.zeros((height, width), np.uint16)
    for annotation in raw:
        mask = coco.decode(code_of(annotation["segmentation"], height, width))
        out[(mask > 0) & (out == 0)] = annotation["category_id"]
    return out


def equal(images: list[Image]) -> str:
    """Checks masks and maps."""
    for height, width, parsed, raw in images:
        for mine, other in zip(parsed, raw, strict=True):
            mask = mask_of(annotation_runs(mine, height, width, "x"), height, width)
            if not np.array_equal(mask, coco.decode(code_of(other["segmentation"], height, width))):
                return f"annotation {mine.id} DIFFERS"
    return "equal" if all(np.array_equal(our_map(image), their_map(image)) for image in images) else "maps DIFFER"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds, root = parser.parse_args().rounds, real_root()
    if root is None:
        raise SystemExit("no real data found: set SEGSHARDS_DATA to the folder that holds coco and lvis")
    polygons = load(root)
    rows = []
    for name, images in (
        ("polygons and crowds as they are", polygons),
        ("the same as compressed codes", as_codes(polygons)),
    ):
        count = sum(len(image[2]) for image in images)
        maps = (
            lambda images=images: [our_map(image) for image in images],
            lambda images=images: [their_map(image) for image in images],
        )
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {f"{len(images)} label maps": maps}
        if images is polygons:
            pairs[f"{count} masks"] = partial(ours, images), partial(theirs, images)
        for what, (mine, other) in pairs.items():
            times = alternate({"ours": mine, "theirs": other}, rounds)
            milliseconds = [f"{times[who] * 1e3:.2f} ms" for who in ("ours", "theirs")]
            rows.append([name, what, *milliseconds, f"{times['theirs'] / times['ours']:.1f}x", equal(images)])
    print(markdown(["input", "what", "ours", "pycocotools", "ratio", "pixels"], rows))


if __name__ == "__main__":
    main()
