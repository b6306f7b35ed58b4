"""`loop.compile`: the network of a training run translated by torch.compile.

    seg-train --shards data/demo --recipe demo --out runs/demo --set loop.compile=true

Training steps alone run the translation, which shares weights and buffers with the network itself: checkpoints,
validation and pictures do not know of it. Checkpointed segments (`model.segments`) stay checkpointed, statistics of
BatchNorm stay those of one pass. Roundings differ from those of the network as it is, so that a run keeps the setting
that it was begun with. The first step takes as long as the translation does; on the CPU it needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from shards.errors import UserError


def translated(model: nn.Module, asked: bool) -> nn.Module:
    """The model, or what torch.compile makes of it (at its first call)."""
    return cast(nn.Module, torch.compile(model)) if asked else model


@contextmanager
def one_line() -> Iterator[None]:
    """What the compiler cannot do, as one line.

    Raises:
        UserError: torch.compile has failed.
    """
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2])  # which compiler, and what it says
        told = f"loop.compile = true: torch.compile failed ({reason[:200]}); give --set loop.compile=false"
        raise UserError(told) from None
