"""The section [mixture] of a recipe: several sources of samples in one run. See `train.schema`, train/mixture.py.

    seg-train --shards pixels=data/cocostuff --shards tags=data/ade20k --recipe larvseg-wa150 --out runs/larvseg

[mixture]
parts = 8

[[mixture.sources]]
name = "pixels"
share = 4

[[mixture.sources]]
name = "tags"
labels = "image"
known = "own"
share = 4
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from train.schema_types import Range, Section, Size, off


class Source(Section):
    """Where some of the samples come from: the shard sets that `--shards NAME=DIR` gives under this name.

    labels: "pixel", or "image": the classes that an image shows and nothing of their places. Those are what the shard
    set stores as weak labels; of a shard set with pixel labels, the classes of the whole label before augmentation.
    share: how many parts of a cycle it has, against the other sources' shares: 4 and 4; 3, 3 and 2; 0.7 and 0.3.
    crop, rescale: those of [augment] where not given.
    known: classes that can be wrong here: "own", those of the source's own class table, or "all" of the run's.
    attention: whether its image labels train attentive scores too (loss.attention_weight) and fill the memory.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    split: Annotated[str, Field(min_length=1)] = "train"
    labels: Literal["pixel", "image"] = "pixel"
    share: Annotated[float, Field(gt=0, le=1000)] = 1
    crop: Annotated[Size | None, BeforeValidator(off)] = None
    rescale: Annotated[Range | None, BeforeValidator(off)] = None
    known: Literal["own", "all"] = "own"
    attention: bool = True


class Mixture(Section):
    """Several sources. A step consists of `parts` parts of loop.batch / parts samples, each out of one source.

    Sources take turns evenly by their shares, over parts and steps alike: 4 and 4 with 8 parts is the paper's 4 : 4
    GPUs in every step, on any number of GPUs that share the parts; with one part, steps alternate.
    """

    parts: Annotated[int, Field(ge=1, le=4096)] = 1
    sources: Annotated[tuple[Source, ...], Field(strict=False, min_length=2, max_length=64)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"mixture.sources: two are named {twice[0]!r}, expected a name for each")
        if all(source.labels == "image" for source in self.sources):
            raise ValueError('mixture.sources: all have labels = "image", expected one with labels = "pixel" at least')
        return self
