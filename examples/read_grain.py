"""Batches of NumPy arrays for JAX, by grain: python examples/read_grain.py data/demo"""

import sys

import grain
import numpy as np

import shards


def batches(folder, split="train", scale="1/2", batch=4, seed=0):
    """Dicts of image uint8 [B, H, W, 3] and shares float32 [B, H, W, C]; jax.device_put takes them as they are."""
    source = shards.open(folder, split=split, scale=scale)  # has len() and [index]: all that grain asks of a source

    def arrays(sample):
        return {"image": sample.image, "shares": sample.soft.dense(len(source.classes))}

    return grain.MapDataset.source(source).shuffle(seed=seed).map(arrays).to_iter_dataset().batch(batch)


if __name__ == "__main__":
    for step in batches(sys.argv[1]):
        print({name: (value.shape, np.asarray(value).dtype) for name, value in step.items()})
