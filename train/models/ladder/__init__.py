"""Ladder DenseNets, and ladders over any other encoder: `build_model(config.model, C)` with `model.arch = "ladder"`.

Source: Krešo, Krapac, Šegvić, "Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images", 2021.
The names d -> u of the paper are `model.down` and `model.up`: the pyramid of pools sits at stride d, the logits at u.
"""

from train.models.ladder.densenet import LadderDenseNet
from train.models.ladder.generic import LadderFeatures
from train.models.ladder.model import Ladder, Laddered, LadderModel, ladder_parts

__all__ = ["Ladder", "LadderDenseNet", "LadderFeatures", "LadderModel", "Laddered", "ladder_parts"]
