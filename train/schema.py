"""A recipe: one training run as one validated value (the schema; `train/config.py` reads the files).

    seg-train --list                                                  # the recipes that are shipped
    seg-train --shards data/demo --recipe demo --out runs/demo --set optim.lr=0.01 --dry-run

Every section is frozen, knows its keys and refuses any other. In TOML, which has no null, the string "none"
stands for an option that is off.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from shards.order import RUN, WINDOW
from train.schema_fit import left_out, misfit
from train.schema_loss import Loss
from train.schema_mixture import Mixture
from train.schema_model import Model
from train.schema_types import (
    NonNegative,
    Positive,
    Range,
    ScaleName,
    Section,
    Sequenced,
    Share,
    Size,
    off,
    one_or_more,
)


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
    loader: who makes the samples ahead of the loop: "threads" or "processes" (data.workers of them), "auto": whichever
    a trial at the start finds faster (train/feed.py). No sample and no order depends on it.
    window, run: shards whose samples are mixed with each other in the order of an epoch, in runs of so many samples
    from anywhere in the set, or whole: run = "none", window = 4 reads shard by shard, for sets at a URL that are larger
    than the cache (shards/order.py).
    scaled_decode: with mode = "rescale", let JPEGs that shrink to 1/2 or less be decoded at 1/2, 1/4 or 1/8 first
    (shards/codec/scaled.py): faster, and not quite the same pixels. Labels stay exact.
    check: compare checksums when samples are read (shards/dataset.py); without, damage may pass for data.
    target_stride: k > 1 softens the label to one cell for k x k pixels of the image, after augmentation: with
    model.head = "cosine" alone, whose loss is taken on that grid.
    """

    scales: Annotated[tuple[ScaleName, ...], Field(strict=False, min_length=1), BeforeValidator(one_or_more)] = ("1",)
    labels: Literal["soft", "nearest", "nearest-corner", "hardened"] = "soft"
    split: Annotated[str, Field(min_length=1)] = "train"
    mode: Literal["stored", "rescale"] = "stored"
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    max_classes_per_cell: Annotated[int, Field(ge=1, le=256)] = 8
    target_stride: Literal[1, 2, 4, 8, 16, 32] = 1
    loader: Literal["auto", "threads", "processes"] = "auto"
    window: Annotated[int, Field(ge=1, le=1_000_000)] = WINDOW
    scaled_decode: bool = False
    check: bool = True
    run: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, BeforeValidator(off)] = RUN


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
    crop: Annotated[Size | None, BeforeValidator(off)] = None
    rescale: Annotated[Range | None, BeforeValidator(off)] = None
    filter: Literal["bilinear", "triangle"] = "triangle"
    jitter: Jitter = Jitter()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.rescale is not None and self.rescale[0] > self.rescale[1]:
            raise ValueError(f"augment.rescale = {list(self.rescale)}: expected [low, high] with low <= high")
        return self


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
    clip: Annotated[Positive | None, BeforeValidator(off)] = None
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
    """Steps and what happens around them. batch is global: over all ranks and all `accumulate` parts of a step.

    compile: training steps run the network as torch.compile translates it (train/compilation.py).
    """

    steps: Annotated[int, Field(ge=1, le=100_000_000)] = 1000
    batch: Annotated[int, Field(ge=1, le=65536)] = 8
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    amp: Literal["auto", "bf16", "off"] = "auto"
    deterministic: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpoint_every: Annotated[int, Field(ge=0)] = 500  # 0: only at the end and when stopped
    log_every: Annotated[int, Field(ge=1)] = 10
    image_every: Annotated[int, Field(ge=0)] = 500
    eval_every: Annotated[int, Field(ge=0)] = 0  # 0: off

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"loop.batch = {self.batch}: expected a multiple of loop.accumulate = {self.accumulate}")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `compile` where it is off: stored recipes are those from before it was there."""
        return {key: value for key, value in values(self).items() if (key, value) != ("compile", False)}


class Evaluation(Section):
    """How a run is evaluated; scores are always taken at the source's resolution.

    scales: factors applied to the input image; the softmax outputs are averaged (embedding head: the embeddings). flip:
    average with the mirror image.
    input_scale: "1" feeds the source image, a stored scale such as "1/4" the image stored at that scale.
    window: [height, width] of the windows in which the (scaled) image is looked at; "none": at once. stride: [down,
    right] from one window to the next; "none": the window's own size.
    """

    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=8)], ...],
        Field(strict=False, min_length=1),
        BeforeValidator(one_or_more),
    ] = (1.0,)
    flip: bool = False
    input_scale: ScaleName = "1"
    window: Annotated[Size | None, BeforeValidator(off)] = None
    stride: Annotated[Size | None, BeforeValidator(off)] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.window is None and self.stride is not None:
            raise ValueError(f"eval.stride = {list(self.stride)}: expected eval.window as well")
        if self.window is not None and min(self.window) < 32:
            raise ValueError(f"eval.window = {list(self.window)}: expected at least 32 pixels a side")
        if self.window and self.stride and any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(f"eval.stride = {list(self.stride)}: expected at most eval.window = {list(self.window)}")
        return self


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
    mixture: Mixture | None = None

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        problem = misfit(self)
        if problem:
            raise ValueError(problem)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings, for checkpoints and JSON; `config.from_dict` reads it back."""
        values = self.model_dump(mode="json", exclude=left_out(self))
        return values if self.mixture is not None else {k: v for k, v in values.items() if k != "mixture"}
