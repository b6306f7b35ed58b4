"""A recipe: one training run as one validated value (the schema; `train/config.py` reads the files).

    seg-train --list                                                  # the recipes that are shipped
    seg-train --shards data/demo --recipe demo --out runs/demo --set optim.lr=0.01 --dry-run

Every section is frozen, knows its keys and refuses any other. In TOML, which has no null, the string "none"
stands for an option that is off.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from shards.errors import SettingsError
from shards.scale import Scale
from train.schema_fit import LADDER_ONLY, left_out, misfit


def _off(value: object) -> object:
    return None if value == "none" else value


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _reduced(text: str) -> str:
    try:
        return str(Scale.parse(text))
    except SettingsError as error:
        raise ValueError(str(error)) from None


Sequenced = Field(strict=False)  # TOML and JSON have lists where a frozen model keeps tuples
ScaleName = Annotated[
    str,
    Field(pattern=r"^[1-9][0-9]{0,4}(/[1-9][0-9]{0,4})?$"),
    BeforeValidator(_text),  # `--set data.scales=1` reads as a number
    AfterValidator(_reduced),  # 2/8 is the scale that is stored as 1/4
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[tuple[Annotated[int, Field(ge=8, le=65536)], Annotated[int, Field(ge=8, le=65536)]], Sequenced]
Range = Annotated[tuple[Annotated[float, Field(gt=0, le=16)], Annotated[float, Field(gt=0, le=16)]], Sequenced]
Triple = Annotated[tuple[float, float, float], Sequenced]


class Section(BaseModel):
    """Base of every part of a recipe: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Expected(Section):
    """A published score for this set-up, in the paper's own units; never a score of ours."""

    dataset: str
    split: str = "val"
    metric: str = "miou"
    value: float  # as printed in the source: mIoU in per cent
    source: str


class Data(Section):
    """Which samples, at which stored scales, with which kind of label.

    labels: "soft" the share of each class in a cell; "nearest" the source label at the pixel nearest to each cell's
    centre (Pillow, torch "nearest-exact"); "nearest-corner" the source label at floor(i * k) (torch "nearest",
    OpenCV); "hardened" the arg-max of the soft label.
    mode: "stored" reads one of the stored `scales`, drawn at random; "rescale" reads scale 1 and recomputes image and
    label together at a random scale out of augment.rescale.
    """

    scales: Annotated[tuple[ScaleName, ...], Field(strict=False, min_length=1), BeforeValidator(_one_or_more)] = ("1",)
    labels: Literal["soft", "nearest", "nearest-corner", "hardened"] = "soft"
    split: Annotated[str, Field(min_length=1)] = "train"
    mode: Literal["stored", "rescale"] = "stored"
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    max_classes_per_cell: Annotated[int, Field(ge=1, le=256)] = 8


class Jitter(Section):
    """Colour jitter: each factor is drawn from [1 - x, 1 + x] (hue: shift out of [-x, x] turns); 0 = off."""

    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augment(Section):
    """What is done to image and label together.

    crop: [height, width] in cells of the training grid; what lies outside of the image is void.
    rescale: [low, high] relative to the source's size; mode "rescale" only, resized with `filter`.
    """

    flip: bool = True
    crop: Annotated[Size | None, BeforeValidator(_off)] = None
    rescale: Annotated[Range | None, BeforeValidator(_off)] = None
    filter: Literal["bilinear", "triangle"] = "triangle"
    jitter: Jitter = Jitter()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.rescale is not None and self.rescale[0] > self.rescale[1]:
            raise ValueError(f"augment.rescale = {list(self.rescale)}: expected [low, high] with low <= high")
        return self


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

    With model.arch = "ladder" alone (train/models/ladder; `dropout` is that of DenseNet's units, 0 if not given):
    down, up: strides of the pyramid of pools and of the logits, "d -> u" in the paper; no ladder if they are equal.
    dilated: the encoder keeps stride 8 or 16 by dilation; `down` is then the same number.
    spp_width: the pyramid's widths: "paper" d/2, d/8, d/4; 512 as in the release: 512, 128, 512 for any encoder; 256
    likewise 512, 128, 256, which the paper's counts for DenseNet-161 and 169 agree with.
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
    mean: Annotated[Triple | None, BeforeValidator(_off)] = None
    std: Annotated[Triple | None, BeforeValidator(_off)] = None
    freeze_norm: bool = False
    head: Literal["dense", "embedding"] = "dense"
    embedding_dim: Annotated[int, Field(ge=1, le=8192)] = 12
    renormalise: bool = True
    norm: Literal["batch", "group"] = "batch"
    sync_norm: bool = False
    norm_momentum: Annotated[Annotated[float, Field(gt=0, le=1)] | None, BeforeValidator(_off)] = None
    down: Literal[8, 16, 32, 64, 128] = 64
    up: Literal[2, 4, 8, 16, 32, 64, 128] = 4
    spp_width: Literal["paper", 256, 512] = "paper"
    ladder_residual: bool = True
    depthwise: bool = False
    dilated: Annotated[Literal[8, 16] | None, BeforeValidator(_off)] = None
    auxiliary: bool = True
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
        if self.head != "dense":
            return f'model.head = "{self.head}": expected "dense" with model.arch = "ladder"'
        if self.up > self.down:
            return f"model.up = {self.up}: expected at most model.down = {self.down}"
        if (self.dilated or 0) != self.down and (self.dilated or self.down == 8):
            return f"model.dilated = {self.dilated or 'none'} with model.down = {self.down}: expected the same number"
        if self.encoder.startswith("densenet"):
            return None
        if self.dropout:
            return f"model.dropout = {self.dropout}: expected 0 with a ladder over {self.encoder}, or a DenseNet"
        if self.segments != "none":
            return f'model.segments = "{self.segments}": expected "none", as {self.encoder} has no such layers'
        return None


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


class Optim(Section):
    """The optimiser. encoder_lr_scale multiplies lr for the encoder; clip is the largest gradient norm.

    "amsgrad" is Adam with the largest second moment so far and weight decay as part of the gradient (Adam's own way,
    not AdamW's); its betas are (0.9, 0.99) if not given.

    With model.head = "embedding" alone: the class table has its own factor on lr, its own momentum (sgd) and its own
    power of schedule "poly"; it has no weight decay. A learnt temperature likewise, at a hundredth of the rate.
    """

    name: Literal["sgd", "adamw", "amsgrad"] = "sgd"
    lr: Positive = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    betas: Annotated[tuple[Share, Share], Sequenced] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-4
    encoder_lr_scale: NonNegative = 1.0
    decay_norm_and_bias: bool = True
    clip: Annotated[Positive | None, BeforeValidator(_off)] = None
    embedding_lr_scale: NonNegative = 1.0
    embedding_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    embedding_power: Positive = 0.95

    @model_validator(mode="before")
    @classmethod
    def _with_betas(cls, given: Any) -> Any:
        return {"betas": (0.9, 0.99), **given} if isinstance(given, dict) and given.get("name") == "amsgrad" else given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov = true: expected optim.momentum above 0")
        if max(self.betas) >= 1:
            raise ValueError(f"optim.betas = {list(self.betas)}: expected two numbers in [0, 1)")
        return self


class Schedule(Section):
    """The learning rate over the steps: warm-up from 0 (linear), then poly, cosine or constant, never below min_lr.

    unit: what the rate falls with: every step, or every epoch (all steps of an epoch have the rate of its first).
    """

    name: Literal["poly", "cosine", "constant"] = "poly"
    unit: Literal["step", "epoch"] = "step"
    power: Positive = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    min_lr: NonNegative = 0.0

    @model_serializer(mode="wrap")
    def _as_before(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `unit` where it is the usual one: stored recipes are those from before there was another."""
        return {key: value for key, value in values(self).items() if (key, value) != ("unit", "step")}


class Loop(Section):
    """Steps and what happens around them. batch is global: over all ranks and all `accumulate` parts of a step."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] = 1000
    batch: Annotated[int, Field(ge=1, le=65536)] = 8
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    amp: Literal["auto", "bf16", "off"] = "auto"
    deterministic: bool = False
    channels_last: bool = False
    checkpoint_every: Annotated[int, Field(ge=0)] = 500  # 0: only at the end and when stopped
    log_every: Annotated[int, Field(ge=1)] = 10
    image_every: Annotated[int, Field(ge=0)] = 500
    eval_every: Annotated[int, Field(ge=0)] = 0  # 0: off

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"loop.batch = {self.batch}: expected a multiple of loop.accumulate = {self.accumulate}")
        return self


class Evaluation(Section):
    """How a run is evaluated; scores are always taken at the source's resolution.

    scales: factors applied to the input image; the softmax outputs are averaged (embedding head: the embeddings). flip:
    average with the mirror image.
    input_scale: "1" feeds the source image, a stored scale such as "1/4" the image stored at that scale.
    """

    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=8)], ...],
        Field(strict=False, min_length=1),
        BeforeValidator(_one_or_more),
    ] = (1.0,)
    flip: bool = False
    input_scale: ScaleName = "1"


class Recipe(Section):
    """A whole training run. Fields not given take the defaults above; `name` comes from the file."""

    name: Annotated[str, Field(min_length=1)]
    description: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]*$")]
    expected: Annotated[tuple[Expected, ...], Sequenced] = ()
    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    loss: Loss = Loss()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    loop: Loop = Loop()
    eval: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        problem = misfit(self)
        if problem:
            raise ValueError(problem)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings, for checkpoints and JSON; `config.from_dict` reads it back."""
        return self.model_dump(mode="json", exclude=left_out(self))
