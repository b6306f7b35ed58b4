"""The section [model] of a recipe: which network. See `train.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from train.schema_fit import LADDER_ONLY
from train.schema_types import Positive, Section, Triple, off


class Model(Section):
    """The network. `encoder` is any timm name, or one of smp's own ("mit_b2") for SegFormer.

    weights: "none" (random), "timm" (downloaded by timm) or the path of a .safetensors file with timm's key names.
    mean, std: of the input in 0..1; left out, those of the timm encoder's data configuration.
    freeze_norm: BatchNorm layers of the encoder stay in evaluation mode.
    head: "dense" gives a channel a class; "embedding" gives `embedding_dim` channels, a point on the unit sphere, and
    a table of class embeddings there: the nearest class is the answer (train/models/embedding.py).
    renormalise: put pixel embeddings back on the sphere after upsampling (false: as the release of ESSNet).
    norm: "group" replaces every BatchNorm2d of encoder and decoder by GroupNorm with groups of 16 channels; scales and
    shifts are kept. sync_norm: BatchNorm shares its statistics over all ranks (CUDA, several processes).
    norm_momentum: of the encoder's BatchNorm statistics; "none" leaves each layer's own (ladders: 0.05 throughout).
    drop_path: stochastic depth of timm encoders that have it (ViTs).

    With model.head = "cosine" alone (train/models/cosine.py): cosine_dim: of pixel and class vectors, "none": as wide
    as what they are projected from. score: what the softmax sees of the cosines: "standardised" over the candidate
    classes, times a learned factor that starts at score_scale (LarvSeg's release), or "scaled" by score_scale alone.

    With model.arch = "ladder" alone (train/models/ladder; `dropout` is that of DenseNet's units, 0 if not given):
    down, up: strides of the pyramid of pools and of the logits, "d -> u" in the paper; no ladder if they are equal.
    dilated: the encoder keeps stride 8 or 16 by dilation; `down` is then the same number.
    spp_width: the pyramid's widths: "paper" d/2, d/8, d/4; 512 as in the release: 512, 128, 512 for any encoder; 256
    likewise 512, 128, 256, which the paper's counts for DenseNet-161 and 169 agree with.
    spp: "paper", or what Table 9 of the paper tries for it: "square" grids, "none" (train/models/ladder/spp.py).
    short_units: a DenseNet's units go without their 1x1 where it would not narrow, as the release has them without
    ImageNet weights. split_block: with down = 64, which dense block is cut in half; 4 in the paper's Table 7.
    ladder_residual: each step's output has its resized input added (the release). depthwise: separable 3x3 in steps.
    auxiliary: logits at every step's input and at the pooled tensors, for the loss in training.
    segments: what is recomputed in backward instead of being held (the paper's Table 11; "none": nothing).
    """

    arch: Literal["deeplabv3plus", "segformer", "hrnet", "linear", "ladder"] = "deeplabv3plus"
    encoder: Annotated[str, Field(min_length=1)] = "resnet50"
    weights: Annotated[str, Field(min_length=1)] = "none"
    output_stride: Literal[8, 16, 32] = 16
    decoder_channels: Annotated[int, Field(ge=1, le=8192)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mean: Annotated[Triple | None, BeforeValidator(off)] = None
    std: Annotated[Triple | None, BeforeValidator(off)] = None
    freeze_norm: bool = False
    head: Literal["dense", "embedding", "cosine"] = "dense"
    embedding_dim: Annotated[int, Field(ge=1, le=8192)] = 12
    renormalise: bool = True
    norm: Literal["batch", "group"] = "batch"
    sync_norm: bool = False
    norm_momentum: Annotated[Annotated[float, Field(gt=0, le=1)] | None, BeforeValidator(off)] = None
    down: Literal[8, 16, 32, 64, 128] = 64
    up: Literal[2, 4, 8, 16, 32, 64, 128] = 4
    spp_width: Literal["paper", 256, 512] = "paper"
    ladder_residual: bool = True
    depthwise: bool = False
    dilated: Annotated[Literal[8, 16] | None, BeforeValidator(off)] = None
    auxiliary: bool = True
    spp: Literal["paper", "square", "none"] = "paper"
    short_units: bool = False
    split_block: Literal[3, 4] = 3
    cosine_dim: Annotated[Annotated[int, Field(ge=2, le=8192)] | None, BeforeValidator(off)] = None
    score: Literal["standardised", "scaled"] = "standardised"
    score_scale: Positive = 1.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    segments: Literal["none", "3x3", "cat-1x1", "cat-1x1, 3x3", "block+stem+td+tu", "unit", "unit+stem+td+tu"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _without_dropout(cls, given: Any) -> Any:
        """Ladders have no dropout unless a recipe asks for it."""
        return {"dropout": 0.0, **given} if isinstance(given, dict) and given.get("arch") == "ladder" else given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problem = self._misfit() or self._ladder_misfit()
        if problem:
            raise ValueError(problem)
        return self

    def _misfit(self) -> str | None:
        if self.arch == "deeplabv3plus" and self.output_stride == 32:
            return "model.output_stride = 32: expected 8 or 16 for deeplabv3plus"
        if self.std is not None and min(self.std) <= 0:
            return f"model.std = {list(self.std)}: expected three numbers above 0"
        if self.embedding_dim == 1:
            return "model.embedding_dim = 1: expected 2 or more; a unit vector of one number is a sign: it cannot learn"
        of_batch = {"freeze_norm": self.freeze_norm, "sync_norm": self.sync_norm, "norm_momentum": self.norm_momentum}
        wrong = [name for name, value in of_batch.items() if value]
        if self.norm == "group" and wrong:
            return f'model.{wrong[0]} = {of_batch[wrong[0]]!r}: expected model.norm = "batch", as GroupNorm has none'
        return None

    def _ladder_misfit(self) -> str | None:
        if self.arch != "ladder":
            given = sorted(LADDER_ONLY["model"] & self.model_fields_set)
            return f'model.{given[0]} is set: expected model.arch = "ladder", or leave it out' if given else None
        if self.head == "embedding":
            return 'model.head = "embedding": expected "dense" or "cosine" with model.arch = "ladder"'
        if self.up > self.down:
            return f"model.up = {self.up}: expected at most model.down = {self.down}"
        if (self.dilated or 0) != self.down and (self.dilated or self.down == 8):
            return f"model.dilated = {self.dilated or 'none'} with model.down = {self.down}: expected the same number"
        if self.spp != "paper" and self.spp_width != "paper":
            return f'model.spp_width = {self.spp_width} with model.spp = "{self.spp}": expected "paper"'
        if self.spp == "none" and self.auxiliary and self.up == self.down:
            return 'model.spp = "none" without a ladder: expected model.auxiliary = false, as nothing bears its heads'
        return self._encoder_misfit()

    def _encoder_misfit(self) -> str | None:
        if self.split_block != 3 and (self.down != 64 or not self.encoder.startswith("densenet")):
            return "model.split_block = 4: expected model.down = 64 and a DenseNet, or 3"
        if self.encoder.startswith("densenet"):
            if self.short_units and self.weights != "none":
                return f'model.short_units = true with model.weights = "{self.weights}": expected weights = "none"'
            return None
        if self.short_units:
            return f"model.short_units = true: expected false with a ladder over {self.encoder}, or a DenseNet"
        if self.dropout:
            return f"model.dropout = {self.dropout}: expected 0 with a ladder over {self.encoder}, or a DenseNet"
        if self.segments != "none":
            return f'model.segments = "{self.segments}": expected "none", as {self.encoder} has no such layers'
        return None
