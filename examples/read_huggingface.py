"""Hugging Face datasets, without segshards: python examples/read_huggingface.py 'data/demo/train/1/*.tar'"""

import io
import sys

import numpy as np
from datasets import Image, load_dataset
from PIL import Image as Pillow


def samples(pattern):
    """An iterable dataset of key, image (Pillow) and label uint8 or uint16 [H, W]; void is the type's largest value."""
    stream = load_dataset("webdataset", data_files={"train": pattern}, split="train", streaming=True)
    stream = stream.cast_column("seg.png", Image(decode=False)).rename_column("__key__", "key")
    return stream.map(lambda s: {"label": np.array(Pillow.open(io.BytesIO(s["seg.png"]["bytes"])))})


if __name__ == "__main__":
    for sample in samples(sys.argv[1]):
        image = next(sample[name] for name in ("jpg", "png", "webp") if name in sample)
        print(sample["key"], image.size, np.asarray(sample["label"]).shape)
