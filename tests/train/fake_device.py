"""A make-believe device: tensors that say they lie elsewhere, hold their numbers on the CPU, and refuse to be mixed.

    with elsewhere() as device:
        torch.zeros(3, device=device) + torch.rand(3)          # RuntimeError, as on a GPU

What may be mixed on a GPU may be here: numbers of no dimension, indices on the CPU, copies. The device is "meta" by
name, as torch asks a GPU's driver before it hands anything on; autocast, which "meta" lacks, does nothing within.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class Elsewhere(Tensor):
    """See the module."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(  # type: ignore[no-any-return,attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """torch refuses subclasses this."""
        return self.held.tolist()

    def item(self) -> Any:
        """torch asks the device's driver before it copies a number."""
        return self.held.item()

    def __bool__(self) -> bool:
        return bool(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __float__(self) -> float:
        return float(self.held)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(tensor: Tensor) -> Tensor:
    """The same numbers there, a leaf that wants a gradient where `tensor` does."""
    return Elsewhere(tensor.detach().clone()).requires_grad_(tensor.requires_grad)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device; within, it can be made tensors on."""
    with (
        mock.patch("torch.autocast", return_value=nullcontext()),
        mock.patch("torch.tensor", partial(_made, torch.tensor)),  # of "meta" these two never ask anybody
        mock.patch("torch.as_tensor", partial(_made, torch.as_tensor)),
        _Mode(),
    ):
        yield DEVICE


def _made(make: Any, data: Any, device: Any = None, **options: Any) -> Tensor:
    made: Tensor = make(data, **options)
    return made if device is None else made.to(device)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in given if isinstance(value, Elsewhere)]
    _check(func, args, given, bool(there))
    wraps = {id(value.held): value for value in there}
    device = kwargs.get("device")
    wanted = bool(there) if device is None else torch.device(device) == DEVICE
    kwargs = {**kwargs, **({"device": torch.device("cpu")} if device is not None else {})}
    plain_args, plain = tree_map(lambda value: value.held if isinstance(value, Elsewhere) else value, (args, kwargs))
    if func is torch.ops.aten._to_copy.default:
        plain["non_blocking"] = False
    out = func(*plain_args, **plain)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
            return value
        if not wanted:
            return value
        return wraps[id(value)] if id(value) in wraps else Elsewhere(value)

    found = tree_map(wrapped, out)
    if func is torch.ops.aten._to_copy.default and not wanted and there:
        return found.clone()
    return found


def _check(func: Any, args: Any, given: list[Tensor], any_there: bool) -> None:
    name = func.name().split(".")[0]
    here = [value for value in given if not isinstance(value, Elsewhere) and value.ndim]
    if not any_there or not here or name in COPIES:
        return
    if name in INDEXING and isinstance(args[0], Elsewhere):
        here = [value for value in args[2:3] if isinstance(value, Tensor) and value.ndim and value in here]
        if not here:
            return
    raise RuntimeError(f"{name}: expected all tensors on one device, found two")
