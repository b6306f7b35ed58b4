"""Segmentation networks: `build_model(config.model, num_classes)`."""

from train.models.build import build_model
from train.models.segmentation import SegmentationModel

__all__ = ["SegmentationModel", "build_model"]
