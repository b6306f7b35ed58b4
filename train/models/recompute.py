"""Gradient checkpointing of part of a network: `recompute(self.bottleneck, *features)` inside a module's forward.

Only the inputs are held for backward; what lies between is computed a second time there (torch.utils.checkpoint,
non-reentrant). The second pass draws the same dropout masks and works in the same autocast type. It runs on copies of
the buffers, so that BatchNorm's running statistics are exactly those of training without checkpointing: they are
neither updated twice nor is the momentum corrected for it (the release of Kreso et al. 2021 did the latter: m' with
2 m' - m'^2 = m is the right mean, yet another sequence of values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Any], *tensors: Tensor, owner: nn.Module | None = None) -> Any:
    """`function(*tensors)`, whose inner tensors are computed again in backward instead of being held.

    Outside of training (module in eval mode, or no gradients asked for) the function is called as it is. Under
    torch.compile the compiler recomputes (in eval mode too, unless under no_grad); it updates buffers in the forward
    graph alone.

    Args:
        function: a module, a method of one, or any function together with `owner`.
        tensors: its inputs: all that requires a gradient and is no parameter of `owner`.
        owner: the module whose buffers (its own and its children's) the function updates; left out, the function
            itself or the module that it is a method of.

    Raises:
        TypeError: a function that is no module's, and no `owner`.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    if torch.compiler.is_compiling():
        return checkpoint(function, *tensors, use_reentrant=False)
    module = _owner(function) if owner is None else owner
    if not module.training:
        return function(*tensors)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), on_copies_of_buffers(module)

    return checkpoint(function, *tensors, use_reentrant=False, context_fn=contexts)


def _owner(function: Callable[..., Any]) -> nn.Module:
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
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
