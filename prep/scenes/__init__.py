"""Procedural street scenes in Cityscapes' layout: ``python -m prep.scenes DIR``. See ``write.py``."""

from __future__ import annotations
