"""For MMSegmentation: dict(type="ShardDataset", folder="data/demo", split="train", pipeline=[...]) in a config."""

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

import shards


@DATASETS.register_module()
class ShardDataset(BaseSegDataset):  # its pipeline begins after LoadImageFromFile and LoadAnnotations; void is 255
    def __init__(self, folder, split, **options):
        self.source = shards.open(folder, split=split)
        info = {"classes": self.source.classes.names, "palette": [list(c) for c in self.source.classes.colours]}
        super().__init__(metainfo=info, reduce_zero_label=False, **options)

    def load_data_list(self):
        return [{"img_path": key, "reduce_zero_label": False} for key in self.source.keys()]  # noqa: SIM118

    def get_data_info(self, idx):
        sample = self.source[idx]
        label = np.where(sample.hard == shards.IGNORE, 255, sample.hard).astype(np.uint8)
        loaded = {"img": sample.image[..., ::-1].copy(), "gt_seg_map": label, "seg_fields": ["gt_seg_map"]}  # BGR
        return {**super().get_data_info(idx), **loaded, "img_shape": label.shape, "ori_shape": label.shape}
