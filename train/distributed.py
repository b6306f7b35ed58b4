"""Processes and devices: one process by default, one a device under torchrun.

    torchrun --nproc-per-node 4 --no-python seg-train --shards data/demo --recipe demo --out runs/demo

Every rank reads its own part of each global batch; rank 0 alone writes. Sums that the loop needs (loss, weights, who
was asked to stop) cross the ranks in one small all-reduce a step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from shards.errors import SettingsError, UserError
from train.models.norms import with_sync_norm

_KILLED = r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)|MemoryError in DataLoader worker"

BUCKET = 2**25  # bytes of gradients that cross the ranks together


@dataclass(frozen=True)
class World:
    """This process among all processes of a run, and the device that it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and talks."""
        return self.rank == 0

    def sum(self, values: Sequence[torch.Tensor | float]) -> list[float]:
        """Each value summed over the ranks, in float64 (one all-reduce, one synchronisation with the device)."""
        vector = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.size > 1:
            distributed.all_reduce(vector)
        return [float(value) for value in vector.tolist()]

    def sum_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """A tensor of counts summed over the ranks."""
        if self.size == 1:
            return counts
        moved = counts.to(self.device, copy=True)
        distributed.all_reduce(moved)
        return moved

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the ranks in backward; alone, the model itself."""
        if self.size == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients summed over the ranks, in place; those that some ranks lack count as 0, what all lack stays."""
        if self.size == 1:
            return
        held = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.tensor([parameter.grad is not None for parameter in held], dtype=torch.int32, device=self.device)
        distributed.all_reduce(used, distributed.ReduceOp.MAX)
        chosen = [parameter for parameter, use in zip(held, used.tolist(), strict=True) if use]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        for bucket in _buckets(grads):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            distributed.all_reduce(flat)
            for grad, total in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(total.view(grad.shape))
        for parameter, grad in zip(chosen, grads, strict=True):
            parameter.grad = grad

    def synchronise(self, model: nn.Module) -> None:
        """Let BatchNorm inside `model` share its statistics over the ranks; alone, nothing changes.

        Raises:
            SettingsError: several ranks, not on CUDA.
        """
        if self.size > 1:
            with_sync_norm(model, self.device)

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's values on every rank, in place."""
        if self.size > 1:
            distributed.broadcast(tensor, 0)
        return tensor

    @torch.no_grad()
    def share_all(self, tensors: Iterable[torch.Tensor]) -> None:
        """Rank 0's values on every rank, in place, many tensors at a time."""
        for bucket in _buckets(list(tensors)) if self.size > 1 else ():
            flat = self.share(torch.cat([tensor.reshape(-1) for tensor in bucket]))
            for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers on every rank: between steps, BatchNorm's statistics are those of a rank's own samples."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.size > 1:
            distributed.barrier()


def choose_device(name: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda".

    Raises:
        SettingsError: CUDA was asked for and is absent, or the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"device {name!r}: expected auto, cpu or cuda")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise SettingsError("--device cuda: no CUDA device was found; use --device cpu or auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors in their order, by runs of one type and of about `BUCKET` bytes."""
    run: list[torch.Tensor] = []
    for tensor in tensors:
        if run and (tensor.dtype != run[0].dtype or sum(one.nbytes for one in run) >= BUCKET):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn what torch, NumPy and the data loader raise where memory runs out into one line that ends in `remedy`.

    Raises:
        UserError: a device, this process or a data worker has run out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise UserError(f"out of memory: {remedy}") from None
    except RuntimeError as error:
        if re.search(_KILLED, str(error)):
            raise UserError(f"a data worker has died, of too little memory most likely: {remedy}") from None
        if "can't allocate memory" in str(error):  # torch's allocator on the CPU
            raise UserError(f"out of memory: {remedy}") from None
        raise


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world that the environment describes (torchrun's RANK, WORLD_SIZE, LOCAL_RANK), left again at the end.

    Raises:
        SettingsError: the device is absent.
    """
    chosen = choose_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(chosen)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(f"WORLD_SIZE is {size}, {missing[0]} is not set: start with torchrun, or unset WORLD_SIZE")
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise SettingsError(f"local rank {local}: {torch.cuda.device_count()} CUDA devices; start fewer processes")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield World(chosen, rank, size)
    finally:
        distributed.destroy_process_group()
