"""NumPy batches in an order that any number of ranks shares, resumable: python examples/read_numpy.py data/demo"""

import sys

import numpy as np

import shards


def batches(folder, split="train", scale="1/2", batch=4, rank=0, ranks=1, start=None):
    """(image uint8 [B, H, W, 3], shares float32 [B, H, W, C], state): hand the last state back as `start` to go on."""
    source = shards.open(folder, split=split, scale=scale)
    loader = shards.Loader(source, batch=batch, seed=0, rank=rank, ranks=ranks, start=start)
    for samples in filter(None, loader.epoch()):  # one epoch; a last batch of few samples is empty on some ranks
        shares = np.stack([sample.soft.dense(len(source.classes)) for sample in samples])
        yield np.stack([sample.image for sample in samples]), shares, loader.state()


if __name__ == "__main__":
    for image, shares, state in batches(sys.argv[1]):
        print(image.shape, shares.shape, state["position"])
