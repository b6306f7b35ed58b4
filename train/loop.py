"""The order of steps: batches in, one optimiser step each, a checkpoint now and then, a clean stop when asked.

    seg-train --shards data/demo --recipe demo --out runs/demo

A step sums the cost over all labelled cells of the global batch and divides once, by the sum of their weights over
all micro-batches and ranks: `loop.accumulate` and the number of processes change nothing but rounding. (A mixture
divides what pixels and what images cost each by its own sum: train/mixed_step.py.) The margin
regulariser of an embedding head depends on the class table alone: its gradient is added once, after that division (and
not at all in a step without a labelled cell). Before each step torch is seeded with (seed, step, rank), so a resumed
run draws the same dropout without any stored state.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.errors import SegshardsError, UserError
from shards.order import generator
from shards.terminal import Progress, say
from train import checkpoint, compilation, mixture, panel
from train.batch import Batch
from train.checkpoint import Checkpoint
from train.class_match import Rule
from train.distributed import World, enough_memory
from train.evaluate import Split, evaluate, open_for_scoring
from train.feed import Positions, Timed, batches
from train.inference import use_bf16, views_of
from train.mixed_step import Cost, MixedStep
from train.mixed_stream import MixedStream
from train.models import EmbeddingModel, build_model
from train.objective import build_objective, check_search, margin_gradients
from train.objective_mixed import build_mixed_objective, remembered
from train.oddities import Oddities
from train.optim import build_optimizer, clip_gradients, set_rates
from train.report import per_cent
from train.run import Run, versions
from train.runlog import RunLog
from train.stream import Stream

LESS = "lower loop.batch (or raise loop.accumulate), augment.crop or data.workers, and resume or start again"


class DivergedError(UserError):
    """The training loss or the gradient is no longer a finite number."""


@dataclass(frozen=True)
class Step:
    """What one optimiser step was.

    Args:
        step: steps done, this one included.
        loss: mean cost a labelled cell over the global batch; None where every cell was void.
        lr: common learning rate.
        grad_norm: L2 norm of the gradient before clipping.
        asked_to_stop: whether any rank got a signal.
        parts: what else an embedding head logs: "margin" (the regulariser, unweighted), "tau" where it is learnt.
    """

    step: int
    loss: float | None
    lr: float
    grad_norm: float
    asked_to_stop: bool
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """How a call of `Trainer.run` ended."""

    step: int
    finished: bool
    loss: float | None  # mean over the last 20 steps
    seconds: float
    samples_per_second: float


@dataclass
class Trainer:
    """A run in memory: model, optimiser and where they stand.

    Args:
        setup: recipe, classes and folder.
        stream: its samples.
        world: this process among all.
        quiet: print errors only.
    """

    setup: Run
    stream: Stream | MixedStream
    world: World
    quiet: bool = False
    step: int = 0
    model: nn.Module = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)
    stopping: bool = field(default=False, init=False)
    oddities: Oddities = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.setup.recipe
        make_deterministic(recipe.loop.deterministic)
        torch.manual_seed(recipe.loop.seed)
        mixture.check(recipe, self.world.size)
        Positions(recipe, self.world)  # refuses a batch that does not divide, before anything is written
        fetched = {"weights": "none"} if self.setup.start else {}  # its network comes from elsewhere: train/start.py
        kept, count = remembered(recipe, self.setup.space), len(self.setup.classes)
        model = build_model(recipe.model.model_copy(update=fetched), count, recipe.loss, kept)
        if recipe.model.sync_norm:
            self.world.synchronise(model)
        self.stream.fill = mean_colour(model)
        layout = torch.channels_last if recipe.loop.channels_last else torch.contiguous_format
        self.model = model.to(self.world.device).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub
        self.optimiser = build_optimizer(model, recipe.optim)
        check_search(self.model, recipe.loss)
        self.loss = build_objective(recipe)
        self.oddities = Oddities(recipe)
        self.mixed = self._open_mixed(recipe.loss.memory_sync) if self.setup.space else None
        self._buffers = shadows(self.model)
        self.bf16 = use_bf16(recipe, self.world.device)
        self.val = self._open_val() if recipe.loop.eval_every else None

    def load(self) -> None:
        """Go back to the folder's last checkpoint; to step 0 where the run was stopped before its first.

        Raises:
            FormatError: it is broken, or does not belong to this run.
            UserError: there is none, and the run did not begin from scratch.
        """
        path = self.setup.folder / checkpoint.NAME
        if self.setup.start and not path.exists():
            raise UserError(f"no {checkpoint.NAME} in {self.setup.folder}: delete the folder and give --start again")
        if not path.exists():
            say(f"no {checkpoint.NAME} in {self.setup.folder}: starting at step 0", self.quiet or not self.world.first)
            return
        saved = checkpoint.load(path)
        checkpoint.belongs(saved, self.setup.classes.digest, self.setup.digests, path)
        checkpoint.fit(self.model, saved, path)
        checkpoint.fit_optimiser(self.optimiser, saved, path)
        self.step = saved.step

    def save(self) -> None:
        """Publish a checkpoint; rank 0 alone writes."""
        if not self.world.first:
            return
        setup = self.setup
        checkpoint.save(
            setup.folder / checkpoint.NAME,
            Checkpoint(
                model=self.model.state_dict(),
                optimiser=self.optimiser.state_dict(),
                step=self.step,
                recipe=setup.recipe.to_dict(),
                classes=setup.classes.to_dict(),
                classes_digest=setup.classes.digest,
                digests=setup.digests,
                versions=versions(),
            ),
        )

    def run(self) -> Summary:
        """Train from the present step to the recipe's last, or until a signal; saved either way.

        Raises:
            DivergedError: loss or gradient is not finite; the last good state is saved.
            SegshardsError: a shard is broken.
        """
        loop, began, first = self.setup.recipe.loop, time.perf_counter(), self.step
        losses: list[float] = []
        with (
            RunLog(self.setup.folder, self.step, self.world.first) as log,
            Progress(loop.steps, "steps", self.quiet or not self.world.first, self.step) as progress,
            self._signals(),
            batches(self.stream, self.world, self.step) as source,
        ):
            if source.choice.workers:
                log.write({"step": self.step, "feed": vars(source.choice)})
            network = compilation.translated(self.model, loop.compile)
            wrapped = network if self.mixed else self.world.wrap(network)
            self.model.train()
            timed = Timed(source)
            while self.step < loop.steps:
                done = self._saved_on_error(wrapped, timed)
                losses = [*losses[-19:], done.loss] if done.loss is not None else losses
                self._report(log, progress, done, timed)
                if done.asked_to_stop:
                    break
                if self.val is not None and (self.step % loop.eval_every == 0 or self.step == loop.steps):
                    self.save()  # scoring takes long, and may fail or be killed
                    self._evaluate(self.val, log)
                elif loop.checkpoint_every and self.step % loop.checkpoint_every == 0 and self.step < loop.steps:
                    self.save()
            self.save()
            seconds = time.perf_counter() - began
            rate = (self.step - first) * loop.batch / max(seconds, 1e-9)
            mean = float(np.mean(losses)) if losses else None
            summary = Summary(self.step, self.step >= loop.steps, mean, round(seconds, 3), round(rate, 3))
            log.write({"step": self.step, "summary": vars(summary)})
        self.world.wait()
        return summary

    def _saved_on_error(self, wrapped: nn.Module, timed: Timed) -> Step:
        """One step; where it fails with an error for people, the state before it is saved."""
        for kept, buffers in self._buffers:
            torch._foreach_copy_(kept, buffers)
        try:
            with enough_memory(LESS), compilation.one_line():
                return self._step(wrapped, timed)
        except SegshardsError:
            for kept, buffers in self._buffers:  # the failed forward has moved BatchNorm's statistics
                torch._foreach_copy_(buffers, kept)
            self.save()
            raise

    def _step(self, wrapped: nn.Module, timed: Timed) -> Step:
        recipe, step = self.setup.recipe, self.step
        torch.manual_seed(seed_of(recipe.loop.seed, step, self.world.rank))
        lr = set_rates(self.optimiser, step, recipe.loop.steps, recipe.optim, recipe.schedule, self.stream.epoch_steps)
        self.optimiser.zero_grad(set_to_none=True)
        cost = self._plain_cost(wrapped, timed) if self.mixed is None else self._mixed_cost(self.mixed, wrapped, timed)
        norm = float(clip_gradients(self.model.parameters(), recipe.optim.clip))
        if not (math.isfinite(cost.loss or 0.0) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(cost.loss or 0.0) else "gradient"
            raise DivergedError(
                f"the {what} of step {step + 1} is not a finite number (batch of {', '.join(cost.keys[:8])}"
                f"{' ...' if len(cost.keys) > 8 else ''}); step {step} is saved: lower optim.lr or set optim.clip"
            )
        self.optimiser.step()
        if self.mixed is not None:
            self.mixed.remember()
        self.step += 1
        return Step(self.step, cost.loss, lr, norm, cost.stop, cost.parts)

    def _plain_cost(self, wrapped: nn.Module, timed: Timed) -> Cost:
        """Gradients of the mean cost a labelled cell."""
        recipe = self.setup.recipe
        if isinstance(self.model, EmbeddingModel) and self.step % recipe.loss.search_every == 0:
            self.model.classes.look()
        loss, weight, keys = self._accumulate(wrapped, timed)
        total, mass, stop = self.world.sum([loss, weight, float(self.stopping)])
        self._scale_gradients(self.world.size / mass if mass else 0.0)
        mean = total / mass if mass else None if math.isfinite(total) else total
        return Cost(mean, self._regularise(mass), keys, stop > 0)

    def _mixed_cost(self, mixed: MixedStep, wrapped: nn.Module, timed: Timed) -> Cost:
        """Gradients of the mean costs of each kind of label."""
        batches = []
        for _ in range(self.setup.recipe.loop.accumulate):
            batch = timed.next()
            self.oddities.look(batch, self.quiet or not self.world.first)
            batches.append(batch.to(self.world.device))
            timed.last = timed.last if batch.tags is not None else batches[-1]
        return mixed.backward(batches, lambda batch: self._output(wrapped, batch), self.stopping)

    def _accumulate(self, wrapped: nn.Module, timed: Timed) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Forward and backward over the step's micro-batches: summed cost, summed weights, keys."""
        parts, device = self.setup.recipe.loop.accumulate, self.world.device
        cost = torch.zeros((), dtype=torch.float64, device=device)
        mass = torch.zeros((), dtype=torch.float64, device=device)
        keys: list[str] = []
        for part in range(parts):
            batch = timed.next().to(device)
            last = part == parts - 1 or not isinstance(wrapped, nn.parallel.DistributedDataParallel)
            with nullcontext() if last else wrapped.no_sync():  # type: ignore[operator]
                masks = () if batch.allowed is None else (batch.allowed,)
                loss, weight = self.loss(self._output(wrapped, batch), batch.ids, batch.weights, *masks)
                loss.backward()
            cost, mass = cost + loss.detach(), mass + weight.detach()
            keys += batch.keys
            self.oddities.look(batch, self.quiet or not self.world.first)
            timed.last = batch
        return cost, mass, keys

    def _output(self, wrapped: nn.Module, batch: Batch) -> Any:
        images = batch.images
        if self.setup.recipe.loop.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            return wrapped(images)  # logits [B, C, H, W], or what another head's loss takes

    def _scale_gradients(self, factor: float) -> None:
        """Gradients of a sum become those of the mean over all cells of all ranks (DDP has averaged over ranks)."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def _regularise(self, mass: float) -> dict[str, float]:
        """Add the margin regulariser's gradient to that of the mean cost; what is logged of it. Ranks hold the same
        class table; they take the gradient of rank 0, as sums on a GPU may differ in their last bits."""
        model, config = self.model, self.setup.recipe.loss
        if not isinstance(model, EmbeddingModel):
            return {}
        margin, gradient = margin_gradients(model, config)
        weight = model.classes.weight
        if mass and config.margin_weight and weight.grad is not None:
            weight.grad += self.world.share(gradient)
        tau = model.temperature()
        learnt = {"tau": float(tau.detach())} if isinstance(tau, torch.Tensor) else {}
        return {"margin": float(margin), **learnt}

    def _report(self, log: RunLog, progress: Progress, done: Step, timed: Timed) -> None:
        """Log line of every step; curves and progress every `log_every`; pictures every `image_every`."""
        loop = self.setup.recipe.loop
        seconds, waited = timed.lap()
        rate, wait = loop.batch / max(seconds, 1e-9), waited / max(seconds, 1e-9)
        values = {"loss": done.loss, **done.parts, "lr": done.lr, "grad_norm": done.grad_norm}
        speed = {"seconds": round(seconds, 4), "samples_per_second": round(rate, 3), "data_wait": round(wait, 4)}
        log.write({"step": done.step, **self.stream.passes(done.step), **values, **speed})
        progress.advance(1)
        if done.step % loop.log_every == 0 or done.step == loop.steps:
            log.curves(done.step, {**values, **speed})
            progress.set(loss="void" if done.loss is None else f"{done.loss:.4f}", lr=f"{done.lr:.2g}")
        if loop.image_every and done.step % loop.image_every == 0 and self.world.first and timed.last is not None:
            log.picture(done.step, "image-label-prediction", panel.of_batch(self.model, timed.last, self.setup.classes))

    def _evaluate(self, val: Split, log: RunLog) -> None:
        """Score the split `val`; ranks share it, and training goes on as if nothing was."""
        self.world.share_buffers(self.model)
        scores, _ = evaluate(self.model, val, views_of(self.setup.recipe, self.world.device), self.world)
        self.model.train()
        names = ("miou", "miou_base", "miou_novel", "pixel_accuracy", "mean_accuracy", "fwiou")
        values = {name: scores[name] for name in names if name in scores}
        log.write({"step": self.step, "eval": {**values, "per_class": scores["per_class"]}})
        log.curves(self.step, values, "val")
        say(f"step {self.step}: val mIoU {per_cent(values['miou'])}", self.quiet or not self.world.first)

    def _open_val(self) -> Split:
        """The split that is scored: opened before the first step, as a later refusal would cost a run."""
        recipe = self.setup.recipe
        try:
            path, space = self.stream.sources.scored, self.setup.space
            rule, base = (Rule(), space.base) if space else (None, None)  # a mixture has other classes than each set
            shown, check = recipe.eval.input_scale, recipe.data.check
            return open_for_scoring(path, "val", shown, self.setup.classes, "this run", rule, base, check)
        except UserError as error:
            raise UserError(f"loop.eval_every is set: {error}; or give --set loop.eval_every=0") from None

    def _open_mixed(self, sync: bool) -> MixedStep:
        """The loss of a mixture over this network."""
        assert self.setup.space is not None
        bank = getattr(self.model, "bank", None)
        return MixedStep(self.model, build_mixed_objective(self.setup.recipe, self.setup.space, bank), self.world, sync)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step first; a second one ends at once."""
        names = (signal.SIGINT, signal.SIGTERM)

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            for name, handler in before.items():
                signal.signal(name, handler)

        before = {name: signal.getsignal(name) for name in names}
        try:
            for name in names:
                signal.signal(name, stop)
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def shadows(model: nn.Module) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """The model's buffers, those of one type together, each list with copies to keep their values in."""
    kinds: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in model.buffers():
        kinds.setdefault(buffer.dtype, []).append(buffer)
    return [([buffer.clone() for buffer in buffers], buffers) for buffers in kinds.values()]


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generators in one step on one rank; a pure function, distinct for distinct arguments."""
    return int(generator("torch", seed, step, rank).integers(2**63))


def mean_colour(model: nn.Module) -> tuple[int, int, int]:
    """The model's input mean as a colour 0..255, for padding."""
    red, green, blue = (round(float(value)) for value in model.get_buffer("mean").flatten())
    return red, green, blue


def make_deterministic(asked: bool) -> None:
    """Use only operations that give the same bits each time, where `asked`."""
    if asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(asked)
    torch.backends.cudnn.benchmark = not asked
