"""The section [loss] of a recipe: what is minimised. See `train.schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from train.schema_types import NonNegative, Positive, Section, Share


class Loss(Section):
    """What is minimised. void: what happens to cells that are partly void (train/batch.py).

    multi_class_cells: false leaves cells with more than one class out of the loss (the MC switch of the soft-label
    paper's Table 3).

    With model.arch = "ladder" alone:
    aux_weight: the share of the auxiliary losses in the whole.
    aux_targets: of a coarse cell: "soft", the shares of all classes in it, or "nearest", the label at its centre.

    With model.head = "embedding" alone:
    mode: "nearest" a softmax over a cell's own classes and the k nearest others; "exact" over all classes.
    distance: logits are -|x - e|^2 / tau ("squared", the paper's) or -|x - e| / tau ("plain", the release's).
    tau: the temperature, or where it starts if learn_tau.
    margin: least distance between class embeddings; margin_weight: of the regulariser that asks for it (0: off).
    search: what finds the nearest classes; search_every: steps between two looks of the search at the class table.
    lvis_negatives: classes that LVIS did not check on an image are no candidates there (meta of cocolvis shards).

    With model.head = "cosine" alone (train/losses/image_level.py, attention.py; LarvSeg's equations 1 to 6):
    image_weight: of the loss of average-pooled scores on image labels. attention_weight: of the same on attentively
    pooled ones (0: the simple baseline, no memory). sampled_classes: with 1 or more, candidates are the classes present
    and that many others, drawn anew each step; 0: all.
    attention: regions by the "memory" of other images, or of the "image" alone (the paper's Table 5).
    memory_size, memory_top: M images a class and the K best pixels of each. memory_form: "slots" keeps the M images'
    means, exactly the paper's scores; "running" one mean a class, M times smaller. memory_sync: ranks share one memory.
    foreground: labels that have attention: "novel" classes (paper) or all "present" (release).
    background: suppress what looks like other classes: those present, else those whose `background_top` best pixels
    score above `background_threshold` and whose map is further than `background_distance` from the foreground's.
    attention_tau: what attended scores are divided by.
    """

    kind: Literal["cross-entropy", "kl"] = "cross-entropy"
    void: Literal["mask", "renormalise", "keep"] = "mask"
    multi_class_cells: bool = True
    aux_weight: Share = 0.4
    aux_targets: Literal["soft", "nearest"] = "soft"
    mode: Literal["nearest", "exact"] = "nearest"
    k: Annotated[int, Field(ge=1, le=65535)] = 8
    tau: Positive = 0.05
    learn_tau: bool = False
    distance: Literal["squared", "plain"] = "squared"
    margin: Annotated[float, Field(ge=0, le=2)] = 0.2
    margin_weight: NonNegative = 1.0
    search: Literal["auto", "torch", "faiss", "triton"] = "auto"
    search_every: Annotated[int, Field(ge=1, le=100_000_000)] = 1
    lvis_negatives: bool = False
    image_weight: NonNegative = 0.1
    attention_weight: NonNegative = 0.1
    sampled_classes: Annotated[int, Field(ge=0, le=65535)] = 0
    attention: Literal["memory", "image"] = "memory"
    memory_size: Annotated[int, Field(ge=1, le=4096)] = 20
    memory_top: Annotated[int, Field(ge=1, le=65536)] = 20
    memory_dtype: Literal["float32", "float16"] = "float32"
    memory_form: Literal["slots", "running"] = "slots"
    memory_sync: bool = True
    foreground: Literal["novel", "present"] = "novel"
    background: bool = True
    background_top: Annotated[int, Field(ge=1, le=65536)] = 5
    background_threshold: Annotated[float, Field(ge=-1, le=1)] = 0.35
    background_distance: NonNegative = 2.0
    attention_tau: Positive = 1.0
