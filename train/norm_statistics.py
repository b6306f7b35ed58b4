"""BatchNorm statistics as exact averages over the training set, taken after training.

    seg-norms --run runs/demo
    torchrun --nproc-per-node 4 --no-python seg-norms --run runs/demo

The statistics that training leaves are decayed moving averages: they know the last few dozen batches, seen by earlier
weights. Here the final weights see every training sample once more (Krešo et al. 2021, section 5.1), cropped and
augmented as in training, and each layer gets the average of the same quantities over all batches, each batch counting
by its values: the batch's mean, and the batch's variance (unbiased, as torch's moving average takes it). The network
works as in training, batch statistics included; sums are in float64. Batches are of one device's share of a step, as
equal in size as the number of samples allows.

Nothing is drawn from anywhere but (seed, epoch, place), so the result is the same each time; every `SAVE_EVERY`
batches the sums are saved (16 bytes a channel) and a run that was stopped goes on from there. Under torchrun the ranks
share the batches, which are the same ones whatever the number of ranks, and their sums are added at the end; each rank
saves its own, which as many ranks go on from. The result is a checkpoint of its own beside the run's, which seg-eval
and seg-predict then take.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shards.errors import UserError
from train import checkpoint
from train.checkpoint import Checkpoint
from train.distributed import World
from train.feed import batches
from train.inference import use_bf16
from train.loop import make_deterministic, mean_colour, seed_of
from train.models import build_model
from train.run import Run
from train.stream import Stream

PARTIAL = "norms.partial.pt"
SAVE_EVERY = 50  # batches
Watcher = Callable[[int, int], None]  # batches done, of how many


@dataclass
class Sums:
    """What one layer has seen: values a channel, and batch means and variances times those, float64 [C]."""

    values: float = 0.0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    variance: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, inputs: Tensor) -> None:
        """Take in the values [B, C, ...] that the layer is about to normalise."""
        values = inputs.numel() // inputs.shape[1]
        others = list(range(1, inputs.ndim - 1))  # of one image [C, ...], all but the channels
        total = torch.stack([image.double().sum(others) for image in inputs]).sum(0)
        mean = total / values
        column = mean.view(-1, *[1] * len(others))
        squares = torch.stack([(image.double() - column).square().sum(others) for image in inputs]).sum(0)
        self.values += values
        self.mean = self.mean.to(mean.device) + values * mean
        self.variance = self.variance.to(mean.device) + values * (squares / (values - 1))


def exact_norms(run: Run, stream: Stream, world: World, watch: Watcher = lambda done, of: None) -> tuple[Path, int]:
    """Write the run's last checkpoint once more, with exact statistics.

    Args:
        run: the run; its folder holds a checkpoint.
        stream: its training samples.
        world: this process among all; every rank calls this.
        watch: told after each batch of this rank.

    Returns:
        The file, and how many samples were seen.

    Raises:
        FormatError: no checkpoint, or a broken one.
        UserError: no BatchNorm layer that training moves.
    """
    make_deterministic(run.recipe.loop.deterministic)
    source = run.folder / checkpoint.NAME
    saved = checkpoint.load(source)
    checkpoint.belongs(saved, run.classes.digest, run.digests, source)
    model = build_model(run.recipe.model.model_copy(update={"weights": "none"}), len(run.classes), run.recipe.loss)
    checkpoint.fit(model, saved, source)
    model = model.to(world.device).train()
    stream.fill = mean_colour(model)
    sums = _watched_layers(model)
    of = checkpoint.digest(source)
    parts = epoch_parts(saved.step, run.recipe.loop.batch, run.recipe.loop.accumulate, len(stream))
    own = range(world.rank, len(parts), world.size)
    partial = run.folder / _partial_name(world)
    done = _resumed(partial, of, len(parts), sums, world.device)
    with _counting(model, sums), batches(stream, world, positions=[parts[i] for i in own[done:]]) as source_of:
        for number in own[done:]:
            _look(model, next(source_of).to(world.device).images, run, number, world)
            done += 1
            if done % SAVE_EVERY == 0:
                _save(partial, of, done, len(parts), sums)
            watch(done, len(own))
    _add_up(sums, world)
    path = run.folder / checkpoint.NORMS
    if world.first:
        checkpoint.save(path, _with_statistics(saved, sums, of, len(stream)))
    world.wait()
    partial.unlink(missing_ok=True)
    return path, len(stream)


def _partial_name(world: World) -> str:
    return PARTIAL if world.size == 1 else f"norms.rank-{world.rank}-of-{world.size}.partial.pt"


def _add_up(sums: dict[str, Sums], world: World) -> None:
    """Let every rank have the sums of all, by one all-reduce in float64."""
    if world.size == 1:
        return
    flat = torch.cat([torch.cat([s.mean.new_tensor([s.values]), s.mean, s.variance]).cpu() for s in sums.values()])
    totals = world.sum_counts(flat).split([1 + 2 * len(s.mean) for s in sums.values()])
    for own, total in zip(sums.values(), totals, strict=True):
        own.values = float(total[0])
        own.mean, own.variance = total[1:].chunk(2)


def epoch_parts(step: int, batch: int, accumulate: int, samples: int) -> list[list[int]]:
    """The stream's positions of the first epoch that training has not begun, in batches as equal as may be."""
    size = max(1, batch // accumulate)
    epoch, count = -(-step * batch // samples), -(-samples // size)
    bounds = [epoch * samples + samples * i // count for i in range(count + 1)]
    return [list(range(low, high)) for low, high in pairwise(bounds)]


def _watched_layers(model: nn.Module) -> dict[str, Sums]:
    """Empty sums by the name of each layer whose statistics move in training."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    moving = [name for name, layer in layers.items() if layer.training and layer.track_running_stats]
    if not moving:
        why = "all are frozen (model.freeze_norm)" if layers else "it has none"
        raise UserError(f"no BatchNorm statistics to take: {why}; leave seg-norms out for this run")
    zeros = {name: torch.zeros(layers[name].num_features, dtype=torch.float64) for name in moving}
    return {name: Sums(0.0, zero, zero.clone()) for name, zero in zeros.items()}


@contextmanager
def _counting(model: nn.Module, sums: dict[str, Sums]) -> Iterator[None]:
    """Inside, whatever passes through the layers is added to their sums."""

    def hook(own: Sums) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda layer, inputs: own.add(inputs[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(own)) for name, own in sums.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(model: nn.Module, images: Tensor, run: Run, number: int, world: World) -> None:
    """One batch through the network, dropout and all, as a step of training would send it."""
    recipe = run.recipe
    torch.manual_seed(seed_of(recipe.loop.seed, recipe.loop.steps + number, 0))
    if recipe.loop.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=use_bf16(recipe, world.device)):
        model(images)


def _with_statistics(saved: Checkpoint, sums: dict[str, Sums], of: str, samples: int) -> Checkpoint:
    """`saved` with the averages in the place of the moving ones."""
    state = dict(saved.model)
    for name, own in sums.items():
        if own.values:
            for key, total in (("running_mean", own.mean), ("running_var", own.variance)):
                old = state[f"{name}.{key}"]
                state[f"{name}.{key}"] = (total / own.values).to(old.dtype).to(old.device)
    told = {checkpoint.NORMS_OF: of, checkpoint.NORMS_SAMPLES: str(samples)}
    return replace(saved, model=state, optimiser={}, versions={**saved.versions, **told})


def _save(path: Path, of: str, done: int, parts: int, sums: dict[str, Sums]) -> None:
    values = {
        name: {"values": s.values, "mean": s.mean.cpu(), "variance": s.variance.cpu()} for name, s in sums.items()
    }
    draft = path.with_name(path.name + ".partial")
    torch.save({"of": of, "done": done, "parts": parts, "sums": values}, draft)
    draft.replace(path)


def _resumed(path: Path, of: str, parts: int, sums: dict[str, Sums], device: torch.device) -> int:
    """Fill `sums` from an earlier attempt on the same checkpoint; batches done. Any other file is passed over."""
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
        if (kept["of"], kept["parts"], kept["sums"].keys()) != (of, parts, sums.keys()):
            return 0
        for name, own in kept["sums"].items():
            sums[name].values, sums[name].mean, sums[name].variance = own["values"], own["mean"], own["variance"]
        return int(kept["done"])
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError):
        return 0
