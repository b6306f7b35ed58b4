"""Shard sets become models, scores and pictures. The only package that imports torch. ``seg-train --help``."""
