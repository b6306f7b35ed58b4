"""Plain webdataset, without segshards: python examples/read_webdataset.py data/demo"""

import json
import sys
from pathlib import Path

import webdataset as wds
from decode import decode  # the 12 lines that each shard set's README.md holds


def samples(folder, split="train", scale="1-2"):
    """Key, image uint8 [H, W, 3] and shares float32 [h, w, C + 1], void last."""
    tars = sorted(folder.glob(f"{split}/{scale}/*.tar"))
    classes = len(json.loads((folder / "manifest.json").read_text())["classes"]["names"])
    for sample in wds.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode("rgb8"):
        image = next(sample[name] for name in ("jpg", "png", "webp") if name in sample)
        yield sample["__key__"], image, decode(sample["soft.npz"], classes)


if __name__ == "__main__":
    for key, image, shares in samples(Path(sys.argv[1])):
        print(key, image.shape, shares.shape)
