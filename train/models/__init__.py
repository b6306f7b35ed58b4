"""Segmentation networks: `build_model(config.model, num_classes, config.loss)`."""

from train.models.build import build_model
from train.models.cosine import Cosined, CosineModel
from train.models.embedding import Embedded, EmbeddingModel
from train.models.segmentation import SegmentationModel

__all__ = ["CosineModel", "Cosined", "Embedded", "EmbeddingModel", "SegmentationModel", "build_model"]
