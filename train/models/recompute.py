"""Gradient checkpointing of part of a network: `recompute(self.bottleneck, *features)` inside a module's forward.

Only the inputs are held for backward; what lies between is computed a second time there (torch.utils.checkpoint,
non-reentrant), up to the last layer whose input backward needs. The second pass draws the same dropout masks and works
in the same autocast type. It runs on copies of the buffers, so that BatchNorm's running statistics are exactly those of
training without checkpointing: they are neither updated twice nor is the momentum corrected for it (the release of
Kreso et al. 2021 did the latter: m' with 2 m' - m'^2 = m is the right mean, yet another sequence of values).

On the CPU, where the statistics of a batch take ten times as long as what is done with them, the first pass keeps each
BatchNorm's mean and deviation (a number a channel) and the second takes them from there, to the same bits. On CUDA
cuDNN's kernels cannot be repeated with given statistics bit for bit: there they are computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

Statistics = tuple[Tensor, Tensor]  # a batch's mean and 1 / deviation, float [C] each


def recompute(function: Callable[..., Any], *tensors: Tensor, owner: nn.Module | None = None) -> Any:
    """`function(*tensors)`, whose inner tensors are computed again in backward instead of being held.

    Outside of training (module in eval mode, or no gradients asked for) the function is called as it is. Under
    torch.compile the compiler recomputes; it updates buffers in the forward graph alone.

    Args:
        function: a module, a method of one, or any function together with `owner`.
        tensors: its inputs: all that requires a gradient and is no parameter of `owner`.
        owner: the module whose buffers (its own and its children's) the function updates; left out, the function
            itself or the module that it is a method of.

    Raises:
        TypeError: a function that is no module's, and no `owner`.
    """
    module = _owner(function) if owner is None else owner
    if not (module.training and torch.is_grad_enabled()):
        return function(*tensors)
    if torch.compiler.is_compiling():
        return checkpoint(function, *tensors, use_reentrant=False)

    def contexts() -> tuple[Norms, SecondPass]:
        kept: list[Statistics] = []
        return Norms(kept, again=False), SecondPass(module, kept)

    return checkpoint(function, *tensors, use_reentrant=False, context_fn=contexts)


def _owner(function: Callable[..., Any]) -> nn.Module:
    if isinstance(function, nn.Module):
        return function
    owner = function.__self__ if isinstance(function, MethodType) else None
    if not isinstance(owner, nn.Module):
        raise TypeError(f"recompute({function!r}): neither a module nor a method of one; name the owner of its buffers")
    return owner


@contextmanager
def on_copies_of_buffers(module: nn.Module) -> Iterator[None]:
    """Inside, the buffers of `module` and its children are copies, forgotten at the end; the tensors themselves are
    not written to, so that whoever has saved them for backward finds them unchanged."""
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers and part.training]
    try:
        for part, buffers in kept:
            part._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


class SecondPass:
    """Backward's pass through a segment of `module`: on copies of its buffers, with the first one's statistics.

    It may be entered several times, one after the other: whoever keeps the graph goes backward more than once.
    """

    def __init__(self, module: nn.Module, kept: list[Statistics]) -> None:
        self.module, self.kept = module, kept

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(on_copies_of_buffers(self.module))
            stack.enter_context(Norms(self.kept, again=True))
            self.left = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        self.left.__exit__(*error)


class Norms(TorchFunctionMode):
    """Inside, each batch_norm in training on the CPU leaves its statistics in `kept`, or takes the next from there."""

    def __init__(self, kept: list[Statistics], again: bool) -> None:
        super().__init__()
        self.kept, self.again = kept, again

    def __enter__(self) -> Self:
        self.left = iter(self.kept if self.again else ())
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`func` itself, unless it is torch.nn.functional.batch_norm."""
        return (self.batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As torch.nn.functional.batch_norm: [B, C, ...] -> the same shape."""
        repeats = weight is None or weight.dtype in (torch.float32, torch.float64)
        if not (training and repeats and input.device.type == "cpu" and input.numel() > input.shape[1]):
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        given = next(self.left) if self.again else None
        out: Tensor
        out, *found = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps, given)
        if not self.again:
            self.kept.append((found[0], found[1]))
        return out


class _BatchNorm(torch.autograd.Function):
    """BatchNorm by the batch's statistics, found or `given`: -> (normalised, mean [C], 1 / deviation [C])."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        given: Statistics | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if given is None:
            out, mean, scale = torch.native_batch_norm(
                input, weight, bias, running_mean, running_var, True, momentum, eps
            )
        else:  # deviation 1, the true one being part of the weight: the kernel multiplies those two first
            mean, scale = given
            steep = scale if weight is None else weight * scale
            out = torch.native_batch_norm(input, steep, bias, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]
        ctx.save_for_backward(input, weight, mean, scale)
        ctx.mark_non_differentiable(mean, scale)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return out, mean, scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        input, weight, mean, scale = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, input, weight, None, None, mean, scale, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        asked = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(value if needed else None for value, needed in asked), None, None, None, None, None)
