"""Published encoder weights: a .safetensors file with timm's key names, loaded strictly.

A file holds the whole classifier. What belongs to the classifier's end (the last convolution, the fully connected
layer) has no place in an encoder and is left out; anything else that is missing, unknown or of another shape is an
error. A wrong file never trains silently from random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shards.errors import UserError
from train.models.features import PatchTokens


def load_encoder_weights(encoder: nn.Module, name: str, path: str | Path) -> None:
    """Fill `encoder` in place.

    Args:
        encoder: a timm feature extractor, or a module that keeps one as `.model`, or one of smp's own encoders.
        name: the encoder's name in timm, or smp's.
        path: a .safetensors file.

    Raises:
        UserError: no such file, not a safetensors file, keys or shapes that do not fit (the first few are named).
    """
    tensors = _read(Path(path))
    if isinstance(encoder, PatchTokens):
        tensors = encoder.fitted(tensors)
    places = {_plain(key): key for key in encoder.state_dict()}
    found = {places[_plain(key)]: tensor for key, tensor in tensors.items() if _plain(key) in places}
    own = encoder.state_dict()
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    _refuse(path, name, "lacks", missing)
    _refuse(path, name, "has unknown", _unknown(tensors, places, name))
    _refuse(path, name, "has other shapes for", [k for k, t in found.items() if own[k].shape != t.shape])
    encoder.load_state_dict({**own, **found})


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise UserError(f'model.weights = "{path}": expected "none", "timm" or the path of a .safetensors file')
    if not path.is_file():
        raise UserError(f"weights {path} not found; give the path of an existing .safetensors file")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {path}: not a readable safetensors file ({error}); fetch it again") from None
    return tensors


def _plain(key: str) -> str:
    """A key without what wrappers change: smp's and timm's leading "model.", and dots that timm flattens away."""
    return key.removeprefix("model.").removeprefix("model.").replace(".", "_")


def _unknown(tensors: Mapping[str, Tensor], places: Mapping[str, str], name: str) -> list[str]:
    spare = [key for key in tensors if _plain(key) not in places]
    end = _classifier_keys(name)
    return [key for key in spare if key not in end and not key.startswith(("head.", "fc.", "classifier."))]


def _classifier_keys(name: str) -> set[str]:
    """Every key of the whole classifier that timm knows by this name (built without memory)."""
    if not timm.is_model(name):
        return set()
    with torch.device("meta"):
        return set(timm.create_model(name).state_dict())


def _refuse(path: str | Path, name: str, what: str, keys: Iterable[str]) -> None:
    listed = list(keys)
    if listed:
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise UserError(
            f"weights {path} do not fit encoder {name}: the file {what} {', '.join(listed[:3])}{more}; "
            f"give the file of this encoder, or set model.encoder to the file's"
        )
