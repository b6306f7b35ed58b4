"""Memory and time of the cocolvis reader on annotation files of real size.

    python -m tests.bench.cocolvis_memory [--share 1.0]

Writes, in a temporary folder, an LVIS v1 train file of 100,170 images and 1.27 million annotations (1.1 GB) and a
stuff file of a fifth of the real one's annotations (all of them would take the disk's room), both made of real
polygons; then, in a process of its own each: indexes the files, plans the whole build, and builds the first 32 images
with one worker. Prints seconds and the peak of resident memory. Needs the folders coco, lvis and taxonomies of real
data (SEGSHARDS_DATA), and 1.5 GB of disk, which are freed at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from prep.taxonomy import rows
from tests.bench.timing import markdown
from tests.real import real_root

IMAGES, LVIS, STUFF, BUILT = 100_170, 1_270_141, 150_000, 32
RUN = """
import resource, sys, time
from pathlib import Path
from prep.build.settings import Settings
from prep.coco.index import load_index
from prep.datasets import load_reader
from prep.pipeline import build, make_checked_plan
from shards.scale import Scale
what, root, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
reader = load_reader("cocolvis").bind(root, {})
load_index(root / "annotations" / "stuff_val2017.json")  # compiled before the clock starts
start = time.perf_counter()
if what == "index":
    done = len(load_index(root / "annotations" / "lvis_v1_train.json").image_ids)
elif what == "plan":
    done = make_checked_plan(reader, Settings("cocolvis", root, splits=("train",)), None).samples
elif what == "build":
    settings = Settings("cocolvis", root, splits=("train",), scales=Scale.parse_many("1,1/2"), limit=int(sys.argv[4]))
    done = build(reader, settings, out, quiet=True).manifest.splits["train"].samples
else:
    done = 0
seconds = time.perf_counter() - start
print(done, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
"""


def write_root(data: Path, root: Path, share: float) -> None:
    """The layout, with real pictures for the first images and real masks throughout."""
    chance = random.Random(0)
    content = json.loads((data / "coco/annotations/instances_train2017.json").read_text())
    lvis = json.loads((data / "lvis/annotations/lvis_v0.5_val_9.json").read_text())
    polygons = [a["segmentation"] for a in [*content["annotations"], *lvis["annotations"]] if not a.get("iscrowd")]
    pictures = [i for i in content["images"] if (data / "coco/images/train2017" / i["file_name"]).exists()]
    sizes = [pictures[n % len(pictures)] for n in range(int(IMAGES * share))]
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    (root / "val2017").mkdir()
    for n, picture in enumerate(sizes[:BUILT]):
        shutil.copy(data / "coco/images/train2017" / picture["file_name"], root / "train2017" / f"{n:012d}.jpg")
    images = [image_of(n, picture, chance) for n, picture in enumerate(sizes)]
    table = rows("cocolvis-1296_to_1284")
    names = {"lvis-v1": [r for r in table if r["source"] == "lvis-v1"]}
    names["cocostuff"] = [r for r in table if r["source"] == "cocostuff" and r["source_id"] != "255"]
    things = (annotation_of(n, len(sizes), polygons, chance) for n in range(int(LVIS * share)))
    write(root / "annotations/lvis_v1_train.json", images, names["lvis-v1"], things)
    codes = {id(picture): codes_of(picture, polygons[:20]) for picture in pictures}
    stuff = (stuff_of(n, n % len(sizes), codes[id(sizes[n % len(sizes)])], chance) for n in range(int(STUFF * share)))
    plain = [{key: image[key] for key in ("id", "width", "height", "coco_url", "file_name")} for image in images]
    write(root / "annotations/stuff_train2017.json", plain, names["cocostuff"], stuff)
    write(root / "annotations/stuff_val2017.json", [], names["cocostuff"], iter(()))


def image_of(n: int, picture: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """An LVIS image record."""
    return {
        "date_captured": "2013-11-18 09:26:14",
        "neg_category_ids": chance.sample(range(1, 1204), 8),
        "id": n,
        "license": 4,
        "height": picture["height"],
        "width": picture["width"],
        "flickr_url": "http://farm5.staticflickr.com/4127/4995614203_f0e4b9b7a4_z.jpg",
        "coco_url": f"http://images.cocodataset.org/train2017/{n:012d}.jpg",
        "file_name": f"{n:012d}.jpg",
        "not_exhaustive_category_ids": [],
    }


def annotation_of(n: int, images: int, polygons: list[Any], chance: random.Random) -> dict[str, Any]:
    """An LVIS annotation of a random image; most have one more polygon, so that the file has its real size."""
    mask = [*chance.choice(polygons), *(chance.choice(polygons) if n % 6 else [])]
    box = [437.44, 4.93, 22.17, 13.43]
    return {
        "area": 4222.66,
        "id": n + 1,
        "segmentation": mask,
        "image_id": chance.randrange(images),
        "bbox": box,
        "category_id": chance.randint(1, 1203),
    }


def codes_of(picture: dict[str, Any], polygons: list[Any]) -> list[dict[str, Any]]:
    """Compressed masks of a picture's size."""
    size = picture["height"], picture["width"]
    codes = [coco.merge(coco.frPyObjects(polygon, *size)) for polygon in polygons]
    return [{"counts": code["counts"].decode(), "size": list(size)} for code in codes]


def stuff_of(n: int, image: int, codes: list[dict[str, Any]], chance: random.Random) -> dict[str, Any]:
    """A stuff annotation."""
    return {
        "segmentation": chance.choice(codes),
        "area": 4222.0,
        "iscrowd": 0,
        "image_id": image,
        "bbox": [0.0, 0.0, 100.0, 100.0],
        "category_id": chance.randint(92, 183),
        "id": 10_000_000 + n,
    }


def write(path: Path, images: list[dict[str, Any]], categories: list[dict[str, str]], annotations: Any) -> None:
    """A COCO file, an annotation at a time."""
    with path.open("w") as file:
        kinds = [{"id": int(row["source_id"]), "name": row["name"]} for row in categories]
        file.write(
            f'{{"info": {{}}, "images": {json.dumps(images)}, "categories": {json.dumps(kinds)}, "annotations": ['
        )
        for n, annotation in enumerate(annotations):
            file.write((", " if n else "") + json.dumps(annotation))
        file.write("]}")


def measure(what: str, root: Path) -> list[str]:
    """[what, how many, seconds, peak MB] of a fresh process."""
    command = [sys.executable, "-c", RUN, what, str(root), str(root.parent / "out"), str(BUILT)]
    count, seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [what, count, f"{float(seconds):.1f} s", f"{float(peak):.0f} MB"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the real numbers of images and annotations")
    share, data = parser.parse_args().share, real_root()
    if data is None:
        raise SystemExit("no real data found: set SEGSHARDS_DATA to the folder that holds coco and lvis")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coco"
        root.mkdir()
        write_root(data, root, share)
        for path in sorted((root / "annotations").iterdir()):
            print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")
        table = [measure(what, root) for what in ("nothing", "index", "plan", "build")]
    print(markdown(["what", "annotations or samples", "time", "peak resident memory"], table))


if __name__ == "__main__":
    main()
