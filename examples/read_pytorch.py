"""Plain PyTorch: python examples/read_pytorch.py data/demo"""

import sys

import torch
from torch.utils.data import DataLoader

import shards


def batches(folder, split="train", scale="1/2", **options):
    """A DataLoader of images float32 [B, 3, H, W] in 0..1 and shares float32 [B, C, H, W]; void cells sum to 0."""
    source = shards.open(folder, split=split, scale=scale)  # has len() and [index]: a map-style dataset as it is

    def collate(samples):
        images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) / 255 for s in samples])
        shares = [torch.from_numpy(s.soft.dense(len(source.classes))).permute(2, 0, 1) for s in samples]
        return images, torch.stack(shares)

    return DataLoader(source, collate_fn=collate, **options)


if __name__ == "__main__":
    for images, shares in batches(sys.argv[1], batch_size=4, shuffle=True, num_workers=2):
        print(images.shape, shares.shape)
