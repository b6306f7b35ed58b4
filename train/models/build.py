"""A recipe's network from its parts: `build_model(config.model, num_classes, config.loss)`.

Encoders are timm's (any name), or segmentation-models-pytorch's own such as "mit_b2". Decoders are smp's for
DeepLabV3+ and SegFormer, ours (heads.py, ladder/) for HRNetV2, the linear head and ladders. All upsampling keeps pixel
centres (align_corners false), also where smp's default does not: with corners aligned, a network trained on crops
would see another geometry on whole images.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from shards.errors import SettingsError, UserError
from train.config import Loss, Model
from train.models.cosine import ClassVectors, CosineModel, Gamma, project
from train.models.embedding import ClassEmbeddings, EmbeddingModel, Temperature
from train.models.features import PatchTokens, encoder_of
from train.models.heads import ConcatenationHead, LinearHead
from train.models.ladder import LadderDenseNet, Laddered, LadderFeatures, LadderModel, ladder_parts
from train.models.memory_bank import give_memory
from train.models.norms import set_momentum, with_group_norm
from train.models.segmentation import SegmentationModel
from train.models.weights import load_encoder_weights


def build_model(
    config: Model, num_classes: int, loss: Loss | None = None, remembered: Sequence[int] = ()
) -> SegmentationModel:
    """The network of a recipe, with its weights.

    Args:
        config: the recipe's section.
        num_classes: C of the class table.
        loss: the recipe's section, whose temperature and distance an embedding head has; left out, the defaults.
        remembered: classes that a cosine head keeps a memory of, `model.bank` (train.objective_mixed.remembered); a
            network built without reads the weights of one with it, and forgets the memory.

    Raises:
        SettingsError: an unknown encoder (the nearest name is suggested), or one that the decoder cannot use.
        UserError: weights that cannot be found, fetched or fitted.
    """
    _check_encoder(config)
    _check_options(config)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries: what fails is told in one line
    channels = {"dense": num_classes, "embedding": config.embedding_dim, "cosine": 1}[config.head]
    try:
        encoder, decoder = _PARTS[config.arch](config, channels)
    except SettingsError:
        raise
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _unusable(config, error) from error
    if config.weights not in ("none", "timm"):
        named = encoder.as_timm() if isinstance(encoder, (LadderDenseNet, LadderFeatures)) else encoder
        load_encoder_weights(named, config.encoder, config.weights)
    if config.norm_momentum is not None:
        set_momentum(encoder, config.norm_momentum)
    if config.norm == "group":
        encoder, decoder = with_group_norm(encoder), with_group_norm(decoder)
    mean, std = _statistics(config)
    width = project(decoder, config.cosine_dim) if config.head == "cosine" else 0
    pooled = config.arch in ("deeplabv3plus", "ladder") and config.norm == "batch"
    parts: dict[str, Any] = {
        "encoder": encoder,
        "decoder": decoder,
        "mean": mean,
        "std": std,
        "multiple": encoder.patch if isinstance(encoder, PatchTokens) else _multiple(config),
        "freeze_norm": config.freeze_norm,
        "smallest_batch": 2 if pooled else 1,
    }
    if config.head == "cosine":
        model = _cosine(config, num_classes, width, parts)
        give_memory(model, width, num_classes, loss or Loss(), remembered)
        return model
    if config.arch == "ladder":
        return LadderModel(**parts)
    return SegmentationModel(**parts) if config.head == "dense" else _embedding(config, num_classes, loss, parts)


def _multiple(config: Model) -> int:
    """What the input's height and width are padded to a multiple of."""
    if config.arch == "ladder":
        return config.down
    return config.output_stride if config.arch in ("deeplabv3plus", "linear") else 32


def _embedding(config: Model, num_classes: int, loss: Loss | None, parts: dict[str, Any]) -> EmbeddingModel:
    loss = loss or Loss()
    table = ClassEmbeddings(num_classes, config.embedding_dim, loss.mode == "nearest" and loss.search_every > 1)
    return EmbeddingModel(table, Temperature(loss.tau, loss.learn_tau), config.renormalise, loss.distance, **parts)


def _cosine(config: Model, num_classes: int, width: int, parts: dict[str, Any]) -> CosineModel:
    if config.arch == "ladder":
        parts["decoder"] = nn.Sequential(parts["decoder"], LastLogits())
    gamma = Gamma(config.score_scale, config.score == "standardised")
    return CosineModel(ClassVectors(num_classes, width), gamma, config.score == "standardised", **parts)


def _deeplabv3plus(config: Model, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Chen et al. 2018, with separable convolutions in the pyramid."""
    rates = (6, 12, 18) if config.output_stride == 16 else (12, 24, 36)  # the paper's, for either stride
    net = smp.DeepLabV3Plus(
        encoder_name=_smp_name(config.encoder),
        encoder_weights=_smp_weights(config),
        encoder_output_stride=config.output_stride,
        decoder_channels=config.decoder_channels,
        decoder_atrous_rates=rates,
        decoder_aspp_dropout=config.dropout,
        classes=num_classes,
        upsampling=1,
    )
    net.decoder.up.align_corners = False
    return net.encoder, nn.Sequential(net.decoder, net.segmentation_head)


def _segformer(config: Model, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Xie et al. 2021: linear maps of all stages, fused at stride 4."""
    net = smp.Segformer(
        encoder_name=_smp_name(config.encoder),
        encoder_weights=_smp_weights(config),
        decoder_segmentation_channels=config.decoder_channels,
        classes=num_classes,
        upsampling=1,
    )
    return net.encoder, nn.Sequential(net.decoder, nn.Dropout2d(config.dropout), net.segmentation_head)


def _hrnet(config: Model, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """HRNetV2: the four streams themselves, not the wider maps that HRNet's classifier makes of them."""
    options: dict[str, Any] = {"feature_location": ""} if config.encoder.startswith("hrnet") else {}
    encoder = encoder_of(config.encoder, config.weights == "timm", 32, config.drop_path, **options)
    kept = [i for i, stride in enumerate(encoder.model.feature_info.reduction()) if stride >= 4]
    channels = [encoder.channels[i] for i in kept]
    head = ConcatenationHead(channels, config.decoder_channels, num_classes, config.dropout)
    return encoder, nn.Sequential(Kept(kept), head)


def _linear(config: Model, num_classes: int) -> tuple[nn.Module, nn.Module]:
    encoder = encoder_of(config.encoder, config.weights == "timm", config.output_stride, config.drop_path)
    return encoder, LinearHead(encoder.channels[-1], num_classes, config.dropout)


_PARTS = {
    "deeplabv3plus": _deeplabv3plus,
    "segformer": _segformer,
    "hrnet": _hrnet,
    "linear": _linear,
    "ladder": ladder_parts,
}


class Kept(nn.Module):
    """Some maps of a list."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.indices = tuple(indices)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps at the kept indices."""
        return [maps[i] for i in self.indices]


class LastLogits(nn.Module):
    """What a ladder's last step says."""

    def forward(self, output: Laddered) -> Tensor:
        """[B, C, h, w], the network's own `logits`."""
        return output.logits


def _of_smp(encoder: str) -> bool:
    """Whether smp has an encoder of its own by this name that timm has not."""
    return encoder in smp.encoders.get_encoder_names() and not timm.is_model(encoder)


def _smp_name(encoder: str) -> str:
    return encoder if _of_smp(encoder) else f"tu-{encoder}"


def _smp_weights(config: Model) -> str | bool | None:
    if config.weights != "timm":
        return None
    return "imagenet" if _of_smp(config.encoder) else True


def _check_encoder(config: Model) -> None:
    name, own = config.encoder, config.arch in ("deeplabv3plus", "segformer")
    if timm.is_model(name) or (own and _of_smp(name)):
        return
    known = timm.list_models() + (smp.encoders.get_encoder_names() if own else [])
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; give a name that timm.list_models() holds"
    raise SettingsError(f"model.encoder: no encoder named {name!r}{hint}")


def _check_options(config: Model) -> None:
    """What the schema cannot tell of a head and an architecture together."""
    if config.head == "cosine" and config.arch == "ladder" and config.auxiliary:
        raise SettingsError('model.auxiliary = true: expected false with model.head = "cosine"')
    if config.drop_path and config.arch not in ("linear", "hrnet"):
        raise SettingsError(f'model.drop_path = {config.drop_path}: expected 0 with model.arch = "{config.arch}"')


def _statistics(config: Model) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the input: the recipe's, else those that the encoder was trained with."""
    known = timm.models.get_pretrained_cfg(config.encoder) if timm.is_model(config.encoder) else None
    mean = config.mean or (known.mean if known else IMAGENET_DEFAULT_MEAN)
    std = config.std or (known.std if known else IMAGENET_DEFAULT_STD)
    return mean, std


def _unusable(config: Model, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if config.weights == "timm":
        return UserError(
            f'model.weights = "timm": {config.encoder} could not be built or its weights fetched ({reason}); '
            f"give a .safetensors file, or none"
        )
    return SettingsError(f"model.encoder = {config.encoder!r} does not fit model.arch = {config.arch!r} ({reason})")
