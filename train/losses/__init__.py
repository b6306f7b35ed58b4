"""Losses over sparse soft targets."""

from train.losses.auxiliary import LadderLoss
from train.losses.cosine import CosineLoss
from train.losses.embedding import nearest_cross_entropy, nearest_cross_entropy_sums
from train.losses.margin import margin_regulariser
from train.losses.soft import SoftLoss, build_loss, single_class_only, soft_cross_entropy, soft_kl
from train.losses.streaming import streaming_cross_entropy, streaming_cross_entropy_sums

__all__ = [
    "CosineLoss",
    "LadderLoss",
    "SoftLoss",
    "build_loss",
    "margin_regulariser",
    "nearest_cross_entropy",
    "nearest_cross_entropy_sums",
    "single_class_only",
    "soft_cross_entropy",
    "soft_kl",
    "streaming_cross_entropy",
    "streaming_cross_entropy_sums",
]
