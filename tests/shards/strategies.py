"""Hypothesis strategies for labels, soft labels and class tables."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from shards import IGNORE, soften, soften_to
from shards.softlabel import U16, SoftLabel


@st.composite
def hard_labels(draw: st.DrawFn, classes: int = 5, most: int = 40) -> U16:
    """uint16 [H, W] of blocks, noise or one class, with void among the classes."""
    h, w = draw(st.integers(1, most)), draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block = draw(st.sampled_from([1, 3, 7, 64]))
    coarse = random.integers(0, classes + 1, (h // block + 1, w // block + 1))
    label = coarse[np.arange(h)[:, None] // block, np.arange(w)[None] // block]
    return np.where(label == classes, IGNORE, label).astype(np.uint16)


@st.composite
def soft_labels(draw: st.DrawFn, classes: int = 5) -> SoftLabel:
    """Soft labels of every filter, exact and rounded denominators, and hard ones."""
    hard = draw(hard_labels(classes))
    how = draw(st.sampled_from(["box 1/2", "box 1/3", "box 1/8", "bilinear 1/2", "triangle 1/3", "free", "hard"]))
    if how == "hard":
        return SoftLabel.from_hard(hard)
    if how == "free":
        return soften_to(hard, (draw(st.integers(1, 30)), draw(st.integers(1, 30))), "triangle")
    return soften(hard, how.split()[1], how.split()[0])
