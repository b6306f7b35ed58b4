"""Losses over sparse soft targets."""

from train.losses.soft import SoftLoss, build_loss, single_class_only, soft_cross_entropy, soft_kl

__all__ = ["SoftLoss", "build_loss", "single_class_only", "soft_cross_entropy", "soft_kl"]
